"""`fedloom audit-privacy` at user level: clients that are canaries, among those of a real run.

A canary is a client beside the run's own, of which a fair coin decides whether it exists. It changes one
number of what clients train and send in the round, its own, by more than the clip (a Dirac canary). Nobody
can move a round by more than C, and canaries do not hide each other, so that no client shows more. What a
round shows of it is that number of Σ Δ_k, in units of the clip, as the server's optimiser is given it, less
what the run's own clients add to it: the attacker of the definition knows all but the coins. All of it is
what `fedloom fed` runs: who is sampled, what sender and server clip, the sum, the noise, the denominator, the
server's step. A canary takes part as likely as a client of the run; one that does not exist never answers.

N, by which the sum is divided and from which σ_b of an adaptive clip comes, grows with the canaries, at the
same q: the privacy of a client is the same, and the adapter moves less than in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedloom.data.randomness import derive_seed, numpy_rng
from fedloom.errors import UserError
from fedloom.federation.aggregate import collect
from fedloom.federation.privacy.audit import log_likelihood_ratio
from fedloom.federation.server import initial_state
from fedloom.federation.transport import ClientTransport
from fedloom.federation.update import Update, encode_update
from fedloom.model.bank import AdapterBank, Row
from fedloom.training.audit_rounds import Played, played_rounds, watched
from fedloom.training.fed_rounds import ClientTraining, ServerProgress
from fedloom.training.private import UserBudget
from fedloom.training.setup_fed import Parts

_BEYOND = 10.0
"""By how much a canary's change exceeds the clip: a clip that is forgotten shows."""

_WITHIN = 0.999
"""Of the clip, which canaries have that count as within it."""


@dataclass(frozen=True)
class CanaryClients:
    """The clients behind the run's own that are canaries.

    Attributes:
        first: The number of the first of them.
        included: Whether each exists.
        within: How many of them keep to the clip, the first ones: as large a share as an adaptive clip wants,
            which so goes where the others' changes take it.
        seed: The run's.
        rows: Coordinates of what is trained, by how many there are: one for each canary.
    """

    first: int
    included: np.ndarray
    within: int
    seed: int
    rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def coordinates(self, trained: Row) -> torch.Tensor:
        """Which number of what is trained, all in a row, each canary changes.

        Raises:
            UserError: There are fewer numbers than canaries.
        """
        size = sum(t.numel() for t in trained.values())
        if size < len(self.included):
            raise UserError(
                f"canaries: {len(self.included):,} need as many parameters, and {size:,} train in a round; "
                "lower canaries, or train more of them"
            )
        if size not in self.rows:
            drawn = numpy_rng(self.seed, "canaries").choice(size, len(self.included), replace=False)
            self.rows[size] = torch.from_numpy(drawn)
        return self.rows[size]

    def change(self, client: int, trained: Row, clip: float) -> Row:
        """What a canary has learned, before anything is clipped."""
        size = _unit(clip) * (_WITHIN if client - self.first < self.within else _BEYOND)
        flat = torch.zeros(sum(t.numel() for t in trained.values()), dtype=torch.float64)
        flat[self.coordinates(trained)[client - self.first]] = size
        pieces = flat.split([t.numel() for t in trained.values()])
        return {n: piece.view(t.shape).to(t) for (n, t), piece in zip(trained.items(), pieces, strict=True)}

    def seen(self, total: Row, clip: float) -> np.ndarray:
        """What Σ Δ_k shows of each canary, in units of the clip."""
        flat = torch.cat([t.flatten() for t in total.values()]).double().cpu()
        return (flat[self.coordinates(total)] / _unit(clip)).numpy()


def _unit(clip: float) -> float:
    """C, or where nothing is clipped any number."""
    return clip if np.isfinite(clip) else 1.0


def play_with_clients(
    parts: Parts, rounds: int, canaries: int, on_round: Callable[[int], None] = lambda round_: None
) -> Played:
    """Play a run's rounds with canaries among the clients.

    Args:
        parts: What the run is made of, its privacy at user level, with its key.
        rounds: How many, unless the budget is spent before.
        canaries: How many.
        on_round: Is told how many rounds are done.

    Raises:
        UserError: More canaries than parameters, or nothing finite came of a round.
    """
    privacy, budget = parts.algorithm.privacy, parts.budget
    assert privacy is not None and isinstance(budget, UserBudget)
    included = numpy_rng(parts.seed, "coins of the canaries").random(canaries) < 0.5
    kept_within = 0 if privacy.quantile is None else round(privacy.quantile * canaries)
    who = CanaryClients(len(parts.data.clients), included, kept_within, parts.seed)
    gradients: list[AdapterBank] = []
    parts = _with_places(parts, canaries, lambda bank, gradient: gradients.append(gradient))
    places = parts.algorithm.privacy
    assert places is not None
    scores, others = np.zeros(canaries), Row()
    server = initial_state(parts.model.initial, parts.algorithm, len(parts.data.clients))
    for now, after in played_rounds(parts, rounds, lambda now: _transport(parts, now, who, others)):
        # −Δ / client_lr, of which Δ is Σ Δ_k / (q N)
        scale = -parts.algorithm.client_lr * places.per_round
        rest = {name: scale * gradients[-1].tensors[name][0] - t for name, t in others.items()}
        if rest:
            seen = who.seen(rest, now.server.clip)
            scores += log_likelihood_ratio(seen, places.per_round / places.clients, places.sum_noise)
        others.clear()
        gradients.clear()
        server = after.server
        on_round(server.round)
    return Played(scores, included, server, budget.epsilon(server.round), budget.account.delta)


def _with_places(parts: Parts, canaries: int, see: Callable[[AdapterBank, AdapterBank], None]) -> Parts:
    """A run with places for so many more clients, each as likely in a round as before.

    Args:
        parts: What the run is made of.
        canaries: How many more.
        see: Is given what the server's optimiser is given in a round.
    """
    algorithm = parts.algorithm
    privacy = algorithm.privacy
    assert privacy is not None
    # N and q N stay whole numbers.
    times = -(-(privacy.clients + canaries) // privacy.clients)
    privacy = replace(privacy, clients=privacy.clients * times, per_round=privacy.per_round * times)
    nothing = np.array([], dtype=np.int64)
    clients = [*parts.data.clients, *[nothing] * (privacy.clients - len(parts.data.clients))]
    optimiser = watched(algorithm.server_optimiser, see)
    return replace(
        parts,
        data=replace(parts.data, clients=clients),
        algorithm=replace(algorithm, privacy=privacy, server_optimiser=optimiser),
    )


def _transport(parts: Parts, now: ServerProgress, who: CanaryClients, others: Row) -> ClientTransport:
    """Reaches the run's clients, and the canaries that exist.

    Args:
        parts: What the run is made of.
        now: Where it stands.
        who: The canaries.
        others: Gets what is trained in the round, and in it Σ Δ_k of the run's own clients.
    """
    honest, clip = ClientTraining(parts, now), now.server.clip

    def train(
        round_: int, clients: Sequence[int], trained: Row, frozen: Row, received: Row
    ) -> Iterator[Update]:
        others.update({name: torch.zeros_like(t) for name, t in trained.items()})
        who.coordinates(trained)  # too many canaries: say so before anybody trains
        for update in honest(round_, [k for k in clients if k < who.first], trained, frozen, received):
            # As the server counts it, which clips it again, or leaves it out.
            for name, t in collect(trained, [update], parts.algorithm, clip).total.items():
                others[name] += t
            yield update
        for client in (k for k in clients if k >= who.first):
            delta = who.change(client, trained, clip)
            seed = derive_seed(parts.seed, "codec", round_, client)
            payload, _ = encode_update(parts.algorithm, client, delta, {}, {}, seed, clip)
            yield Update(client, payload, examples=1, loss=0.0, correct=0, labels=0, tokens=0)

    return ClientTransport([*range(who.first), *(who.first + np.flatnonzero(who.included)).tolist()], train)
