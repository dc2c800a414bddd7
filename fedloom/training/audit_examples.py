"""`fedloom audit-privacy` at example level: canaries among the examples of one client of a real run.

A canary stands in the place of one of a client's examples, so that their number and the probability of being
drawn are the run's; a fair coin decides whether it exists, and the draw of one that does not adds nothing.
Its tokens are the client's at random, so that its gradient is larger than the clip and like no other's. The
attacker sees each step's gradient with its noise, before the client's rule, `clip_norm` and optimiser, which
may only hide something; and with it where the client stands, so that each canary's clipped gradient g_i is
known in every step, and what the other examples add, which is taken off: the attacker of the definition knows
all but the coins. All of it is what `fedloom fed` runs: which examples are drawn, the packed pass with its
clipping, which also says what the others add, the noise, the denominator.

Canaries' gradients have much in common. Of a step's sum y = Σ c_j g_j + noise, in which c_j is 1 with
probability q / 2, the best linear estimate of c_i that counts the other canaries as noise is, with K the g's
inner products, v = q / 2 (1 − q / 2), σ = z C and H = K (σ² + v K)⁻¹,

    x_i = (((σ² + v K)⁻¹ G y)_i − q / 2 · Σ_{j ≠ i} H_ij) / H_ii        of variance (1 − v H_ii) / H_ii

which goes into the likelihood ratio. Of orthogonal canaries it is ⟨g_i, y⟩ / C², of variance z².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.client.private import Noised, noised_gradients, rate_of
from fedloom.client.rules import ClientRule
from fedloom.client.steps import Step, passes
from fedloom.data.encode import Tokens
from fedloom.data.randomness import numpy_rng
from fedloom.errors import UserError
from fedloom.federation.privacy.account import Account
from fedloom.federation.privacy.audit import log_likelihood_ratio
from fedloom.federation.server import initial_state, sample_clients
from fedloom.federation.transport import ClientTransport
from fedloom.federation.update import Update
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Batch, counted
from fedloom.model.per_example import clipped_sums
from fedloom.runtimes.in_process import run_clients
from fedloom.training.audit_rounds import Played, played_rounds
from fedloom.training.fed_rounds import ClientTraining, ServerProgress, client_work
from fedloom.training.private import ExampleBudget
from fedloom.training.setup_fed import Parts

_LEAST_NOISE = 0.1
"""Least standard deviation, in units of the clip: nearly equal gradients cannot be told apart without."""


def play_with_examples(
    parts: Parts, rounds: int, canaries: int, on_round: Callable[[int], None] = lambda round_: None
) -> Played:
    """Play a run's rounds with canaries among the examples of the client that takes part most often.

    Args:
        parts: What the run is made of, its privacy at example level.
        rounds: How many, unless the budget is spent before.
        canaries: How many.
        on_round: Is told how many rounds are done.

    Raises:
        UserError: The client has fewer examples, or nothing finite came of a round.
    """
    budget, everybody = parts.budget, len(parts.data.clients)
    assert isinstance(budget, ExampleBudget) and parts.rules.privacy is not None
    per_round = min(parts.per_round, everybody)
    taken = np.zeros(everybody, dtype=np.int64)
    for round_ in range(rounds):
        taken[sample_clients(parts.seed, round_, everybody, per_round)] += 1
    client = int(taken.argmax())
    included = numpy_rng(parts.seed, "coins of the canaries").random(canaries) < 0.5
    parts = _with_canaries(parts, client, canaries)
    attacker = _Attacker(parts, client, included)
    server, steps = initial_state(parts.model.initial, parts.algorithm, len(parts.data.clients)), 0
    for _, after in played_rounds(parts, rounds, attacker.transport):
        server, steps = after.server, after.drawn[client] // parts.schedule.batches * parts.schedule.steps
        on_round(server.round)
    account = Account(attacker.rate, budget.noise, budget.delta, budget.kind)
    return Played(attacker.scores, included, server, account.epsilon(steps), budget.delta)


def _with_canaries(parts: Parts, client: int, canaries: int) -> Parts:
    """A run in which a client's first examples are canaries.

    Raises:
        UserError: It has fewer.
    """
    indices = parts.data.clients[client]
    if len(indices) < canaries:
        raise UserError(
            f"canaries: {canaries:,} stand in the place of examples of client {client + 1}, which has "
            f"{len(indices):,}; lower canaries, or client_num"
        )
    train, first = list(parts.data.train), len(parts.data.train)
    words = np.unique(np.concatenate([np.array(train[int(i)].ids) for i in indices]))
    for place in range(canaries):
        drawn = numpy_rng(parts.seed, "canaries", place).choice(words, size=4096)
        train.append(_at_random(train[int(indices[place])], parts.model.layout.prefix, drawn))
    clients = list(parts.data.clients)
    clients[client] = np.concatenate([np.arange(first, first + canaries), indices[canaries:]])
    return replace(parts, data=replace(parts.data, train=train, clients=clients))


def _at_random(tokens: Tokens, prefix: int, drawn: np.ndarray) -> Tokens:
    """A text of the same shape, of random tokens behind what all begin with; its first and last stay."""
    first = max(prefix, 1)
    middle = np.resize(drawn, max(0, len(tokens.ids) - 1 - first)).tolist()
    rejected = None if tokens.rejected is None else _at_random(tokens.rejected, prefix, drawn[::-1])
    return tokens._replace(
        ids=[*tokens.ids[:first], *middle, *tokens.ids[first + len(middle) :]], rejected=rejected
    )


@dataclass
class _Attacker:
    """Who sees every step of a client, and keeps the canaries' scores."""

    parts: Parts
    client: int
    included: np.ndarray

    def __post_init__(self) -> None:
        indices = self.parts.data.clients[self.client]
        self.canaries = [self.parts.data.train[int(i)] for i in indices[: len(self.included)]]
        self.rate = rate_of(len(indices), self.parts.schedule.per_step)
        self.expected = self.rate * len(indices)
        self.scores = np.zeros(len(self.included))

    def transport(self, now: ServerProgress) -> ClientTransport:
        """Reaches the run's clients; that of the canaries trains under the attacker's eyes."""
        honest = ClientTraining(self.parts, now)

        def train(
            round_: int, clients: Sequence[int], trained: Row, frozen: Row, received: Row
        ) -> Iterator[Update]:
            others = [k for k in clients if k != self.client]
            yield from honest(round_, others, trained, frozen, received)
            if self.client in clients:
                yield from self._seen(now, round_, trained, frozen, received)

        return ClientTransport(range(len(self.parts.data.clients)), train)

    def _seen(
        self, now: ServerProgress, round_: int, trained: Row, frozen: Row, received: Row
    ) -> Iterator[Update]:
        parts, index = self.parts, count()
        work = client_work(parts, now, self.client)

        def see(gradients: AdapterBank, bank: AdapterBank) -> None:
            step, row = next(index), bank.row(0)
            fixed = {name: t for name, t in frozen.items() if name not in row}
            others = [batch for batch in work.steps[step] if batch.key[-1] >= len(self.canaries)]
            y = _flat(gradients) * self.expected - _flat(self._sum(others, bank, fixed))
            canaries = [
                Batch([t], 1 / counted(t, parts.model.layout), (round_, self.client, step, place))
                for place, t in enumerate(self.canaries)
            ]
            self.scores += self._scored(self._clipped(canaries, row, fixed), y[0])

        absent = set(np.flatnonzero(~self.included).tolist())
        there = [[batch for batch in batches if batch.key[-1] not in absent] for batches in work.steps]
        yield from run_clients(
            parts.model,
            trained,
            [replace(work, steps=there)],
            replace(parts.rules, rule=_watched(parts.rules.rule, see)),
            parts.algorithm,
            frozen=frozen,
            received=received,
            memories=now.memories,
            first=parts.first_memory,
            seed=parts.seed,
            round_=round_,
            clip=now.server.clip,
        )

    def _sum(self, batches: Step, bank: AdapterBank, frozen: Row) -> AdapterBank:
        """What some examples add to a step, by the code of the run: where its clip is wrong, so is this."""
        model, rules = self.parts.model, self.parts.rules
        assert rules.privacy is not None
        return noised_gradients(
            model,
            bank,
            passes([batches], model.layout, rules.wave_tokens),
            replace(rules.privacy, noise=0.0),
            [Noised(self.client, 0, expected=1.0)],
            0,
            frozen,
            {},
            rules.dropout_seed,
        )

    def _clipped(self, batches: Sequence[Batch], row: Row, frozen: Row) -> Float[Tensor, "examples d"]:
        """Each example's gradient from where the client stands, cut to the clip."""
        model, rules = self.parts.model, self.parts.rules
        assert rules.privacy is not None
        found = []
        for _, each in passes([[one] for one in batches], model.layout, rules.wave_tokens):
            leaves, fixed = (AdapterBank.repeat(some, len(each)).tensors for some in (row, frozen))
            sums = clipped_sums(model, leaves, fixed, each, math.inf, rules.dropout_seed)
            found.append(_flat(AdapterBank(sums)))
        g = torch.cat(found)
        norms = g.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return g * (rules.privacy.clip / norms).clamp(max=1.0)

    def _scored(self, g: Float[Tensor, "canaries d"], y: Float[Tensor, " d"]) -> np.ndarray:
        """The likelihood ratio of a step."""
        privacy = self.parts.rules.privacy
        assert privacy is not None
        clip = privacy.clip if np.isfinite(privacy.clip) else float(g.norm(dim=1).median())
        x, spread = estimates(g, y, self.rate / 2, max(privacy.noise, _LEAST_NOISE) * clip)
        return log_likelihood_ratio(x.cpu().numpy(), self.rate, spread.cpu().numpy())


def _flat(bank: AdapterBank) -> Float[Tensor, "clients d"]:
    return torch.cat([t.flatten(1) for t in bank.tensors.values()], dim=1).double()


def _watched(rule: ClientRule, see: Callable[[AdapterBank, AdapterBank], None]) -> ClientRule:
    """A rule that shows each step's gradients, and where clients stand, before it changes anything."""

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        see(gradients, bank)
        return rule.correct(gradients, bank, start, memory, received)

    return rule._replace(correct=correct)


def estimates(
    g: Float[Tensor, "canaries d"], y: Float[Tensor, " d"], mean: float, noise: float
) -> tuple[Float[Tensor, " canaries"], Float[Tensor, " canaries"]]:
    """How often each canary is in a sum, and the standard deviation of that; see the module.

    Args:
        g: Their gradients.
        y: The sum.
        mean: q / 2, with which probability a canary is in it.
        noise: σ, above 0.
    """
    v, inner = mean * (1 - mean), g @ g.T
    whole = noise**2 * torch.eye(len(g), dtype=g.dtype, device=g.device) + v * inner
    solved = torch.linalg.solve(whole, torch.cat([(g @ y)[:, None], inner], dim=1))
    a, h = solved[:, 0], solved[:, 1:]
    diagonal = h.diagonal().clamp(min=1e-12)
    return (a - mean * (h.sum(1) - diagonal)) / diagonal, ((1 - v * diagonal) / diagonal).clamp(min=0).sqrt()
