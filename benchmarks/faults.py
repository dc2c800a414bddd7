"""Wrong formulas of public implementations, written out anew, and by how much each misses the right one.

    python benchmarks/faults.py                   # the table
    python benchmarks/faults.py docs/methods.md   # put it into the page

Each case has three numbers or tensors: what fedloom's own function gives, the right value written out slowly
from the paper's equation, and the faulty formula. They are facts about formulas; no code is anybody's. Inputs
are random, in float64, with the seed beside them, so that the table is the same everywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.client.optimisers import adam
from fedloom.client.rules.proximal import proximal
from fedloom.data.answers import same_answer
from fedloom.data.partition import partition
from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.krum import krum
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.aggregators.median import median
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.lora_aggregations.fedex import fedex
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.train_factors.alternate import alternate
from fedloom.federation.update import Update
from fedloom.model.adapters.folding import DOWN, UP, FoldedBase
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.products import lora_pairs, truncated_sum
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.wave import Wave

A, B = "m.lora_A.weight", "m.lora_B.weight"
WEIGHTS = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
_SECTION = re.compile(r"(<!-- faults -->\n).*?(<!-- /faults -->)", re.DOTALL)


class Case(NamedTuple):
    """A fault.

    Attributes:
        fault: What is wrong.
        right: The right formula, in words or signs.
        measured: What the three are.
        tensors: fedloom's own, the slow reference, and the faulty one.
    """

    fault: str
    right: str
    measured: str
    tensors: Callable[[], tuple[Tensor, Tensor, Tensor]]


def _clients(d_out: int = 6, d_in: int = 8, rank: int = 2) -> tuple[Changes, Tensor, Tensor]:
    """What three clients send, and their factors: A [clients, rank, d_in], B [clients, d_out, rank]."""
    torch.manual_seed(0)
    before = {A: torch.randn(rank, d_in).double(), B: torch.randn(d_out, rank).double()}
    deltas = {name: torch.randn(3, *t.shape).double() for name, t in before.items()}
    changes = Changes(before, AdapterBank(deltas), WEIGHTS, lora_pairs(before))
    return changes, before[A] + deltas[A], before[B] + deltas[B]


def _after_fedex(changes: Changes) -> Tensor:
    """The change of the base plus the product of the new factors, as fedloom has them."""
    change = fedex(aggregator=weighted_mean)(changes)
    new_a, new_b = (changes.before[name] + change[name] for name in (A, B))
    return change["m" + UP] @ change["m" + DOWN] + new_b @ new_a


def merged_without_scale() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    rank, alpha = 4, 32
    layer = nn.Linear(8, 6, bias=False).double()
    loaded, product = (
        layer.weight.detach().clone(),
        torch.randn(6, rank).double() @ torch.randn(rank, 8).double(),
    )
    FoldedBase(StackedLora(layer, "m", alpha / rank, 0.0, Wave())).set({"m": product})
    return layer.weight.detach(), loaded + alpha / rank * product, loaded + product


def unweighted_mean_taken_off() -> tuple[Tensor, Tensor, Tensor]:
    changes, a, b = _clients()
    right = sum(w * b_k @ a_k for w, a_k, b_k in zip(WEIGHTS, a, b, strict=True))
    mean_a, mean_b = (sum(w * t_k for w, t_k in zip(WEIGHTS, t, strict=True)) for t in (a, b))
    wrong = right - b.mean(0) @ a.mean(0) + mean_b @ mean_a
    return _after_fedex(changes), right, wrong


def residual_transposed() -> tuple[Tensor, Tensor, Tensor]:
    changes, a, b = _clients(d_out=8)
    right = sum(w * b_k @ a_k for w, a_k, b_k in zip(WEIGHTS, a, b, strict=True))
    mean_a, mean_b = (sum(w * t_k for w, t_k in zip(WEIGHTS, t, strict=True)) for t in (a, b))
    wrong = (right - mean_b @ mean_a).T + mean_b @ mean_a
    return _after_fedex(changes), right, wrong


def square_root_on_one_side() -> tuple[Tensor, Tensor, Tensor]:
    _, a, b = _clients()
    total = sum(w * b_k @ a_k for w, a_k, b_k in zip(WEIGHTS, a, b, strict=True))
    U, S, Vh = torch.linalg.svd(total)
    new_a, new_b = truncated_sum(a, b, WEIGHTS, rank=2)
    return new_b @ new_a, U[:, :2] * S[:2] @ Vh[:2], U[:, :2] * S[:2].sqrt() @ Vh[:2]


def resting_factor_left_with_clients() -> tuple[Tensor, Tensor, Tensor]:
    """Two rounds in turns: B, then A, on ½ ‖B A − M_k‖², by one step of gradient descent each."""
    torch.manual_seed(0)
    first = {A: torch.randn(2, 8).double(), B: torch.zeros(6, 2).double()}
    goals, lr = torch.randn(3, 6, 8).double(), 0.05

    def stepped(row: Row, goal: Tensor, name: str) -> Tensor:
        off = row[B] @ row[A] - goal
        return row[name] - lr * (row[B].T @ off if name == A else off @ row[A].T)

    def train(round_: int, clients: list[int], trained: Row, rest: Row, kept: Row) -> list[Update]:
        (name,) = trained
        moved = [{name: stepped(trained | rest, goals[k], name) - trained[name]} for k in clients]
        return [Update(k, delta, 1, 1.0, 1, 1, 1) for k, delta in zip(clients, moved, strict=True)]

    algorithm = Algorithm(client_lr=lr, trains=alternate())
    state = initial_state(first, algorithm)
    for _ in range(2):
        state, _ = federated_round(state, [0, 1, 2], train, algorithm)
    own_b = torch.stack([stepped(first, goal, B) for goal in goals])
    right = {
        B: own_b.mean(0),
        A: torch.stack([stepped(first | {B: own_b.mean(0)}, g, A) for g in goals]).mean(0),
    }
    kept_b = [stepped(first | {B: b}, g, A) for b, g in zip(own_b, goals, strict=True)]
    wrong = {B: own_b.mean(0), A: torch.stack(kept_b).mean(0)}
    return state.adapter[B] @ state.adapter[A], right[B] @ right[A], wrong[B] @ wrong[A]


def second_moment_of_the_momentum() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    gradients, lr = torch.randn(5, 8).double(), 0.1
    optimiser, on = adam(lr), torch.ones(1, dtype=torch.bool)
    bank = AdapterBank({"w": torch.zeros(1, 8).double()})
    state = optimiser.init(bank)
    for g in gradients:
        bank, state = optimiser.step(bank, AdapterBank({"w": g[None]}), state, on)

    def written_out(of_momentum: bool) -> Tensor:
        w = m = v = torch.zeros(8).double()
        for t, g in enumerate(gradients, 1):
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * (m if of_momentum else g) ** 2
            w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        return w

    return bank.tensors["w"][0], written_out(False), written_out(True)


def norm_without_its_square() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    start, now = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    zero, w, w0 = (AdapterBank({"w": t[None]}) for t in (torch.zeros_like(now), now, start))
    found = proximal(0.01).correct(zero, w, w0, {}, {}).tensors["w"][0]

    def gradient(penalty: Callable[[Tensor], Tensor]) -> Tensor:
        at = now.clone().requires_grad_()
        return torch.autograd.grad(penalty(at - start), at)[0]

    return found, gradient(lambda d: 0.01 / 2 * d.square().sum()), gradient(lambda d: 0.01 * d.norm())


def mean_in_place_of(
    aggregator: Callable[[Changes], Row], written_out: Callable[[Tensor], Tensor]
) -> Callable:
    """A robust aggregator and the mean, where one of seven clients sends something huge."""

    def tensors() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        deltas = torch.randn(7, 5, dtype=torch.float64)
        deltas[3] = 100.0
        like = torch.full((7,), 1 / 7, dtype=torch.float64)
        found = aggregator(Changes({"w": torch.zeros(5).double()}, AdapterBank({"w": deltas}), like))["w"]
        return found, written_out(deltas), deltas.mean(0)

    return tensors


def _krum_written_out(deltas: Tensor) -> Tensor:
    """Of 7 senders with one attacker: that whose 7 − 1 − 2 nearest neighbours are nearest."""
    scores = [sorted(float((d - e).square().sum()) for e in deltas)[1 : 1 + 4] for d in deltas]
    return deltas[min(range(7), key=lambda k: sum(scores[k]))]


def drawn_from_what_others_drew() -> tuple[Tensor, Tensor, Tensor]:
    labels = [str(i % 2) for i in range(1000)]

    def owners(shares: list) -> Tensor:
        found = torch.zeros(len(labels), dtype=torch.float64)
        for client, share in enumerate(shares, 1):
            found[torch.as_tensor(np.asarray(share))] = client
        return found

    def ours() -> Tensor:
        return owners(list(partition("dirichlet", labels, 5, seed=1, alpha=0.5)))

    def from_a_global_generator() -> Tensor:
        """As many examples of each label to a client as its share says; the shares are numpy's next draws."""
        found = torch.zeros(len(labels), dtype=torch.float64)
        for label in ("0", "1"):
            own = np.array([i for i, other in enumerate(labels) if other == label])
            np.random.shuffle(own)
            cuts = (np.cumsum(np.random.dirichlet([0.5] * 5)) * len(own)).astype(int)[:-1]
            for client, share in enumerate(np.split(own, cuts), 1):
                found[torch.as_tensor(share)] = client
        return found

    np.random.seed(1)
    first, wrong_first = ours(), from_a_global_generator()
    np.random.seed(1)
    np.random.random()  # somebody else draws a number: a library, a new layer
    second, wrong_second = ours(), from_a_global_generator()
    ones = torch.ones(len(labels), dtype=torch.float64)
    return ones + (first != second), ones, ones + (wrong_first != wrong_second)


def whole_rationales_compared() -> tuple[Tensor, Tensor, Tensor]:
    expected = [f"First {n} plus {n} is {2 * n}.\n#### {2 * n}" for n in range(1, 21)]
    written = [
        f"{n} and {n} more make {2 * n + (n % 4 == 0)}. The answer is {2 * n + (n % 4 == 0)}."
        for n in range(1, 21)
    ]
    right = [float(n % 4 != 0) for n in range(1, 21)]
    found = [float(same_answer(want, text)) for want, text in zip(expected, written, strict=True)]
    wrong = [float(want == text) for want, text in zip(expected, written, strict=True)]
    return tuple(torch.tensor([sum(t) / 20], dtype=torch.float64) for t in (found, right, wrong))


CASES = [
    Case(
        "LoRA is merged without alpha / r",
        "W₀ + (α / r) B A",
        "merged weight, α 32, r 4",
        merged_without_scale,
    ),
    Case(
        "exact aggregation takes an unweighted mean's product off a weighted one",
        "Σ p_k B_k A_k − B̄ Ā with one p",
        "base and product after the round",
        unweighted_mean_taken_off,
    ),
    Case(
        "the residual is added transposed",
        "W₀ + s R",
        "base and product after the round",
        residual_transposed,
    ),
    Case(
        "factors U √S and Vᵀ",
        "U S and Vᵀ, or √S on both",
        "their product, rank 2 of 6",
        square_root_on_one_side,
    ),
    Case(
        "the factor that rests is not set back to the mean at each client",
        "both factors are everybody's when a turn begins",
        "product after a turn of each",
        resting_factor_left_with_clients,
    ),
    Case(
        "Adam's second moment is fed the momentum",
        "v ← β₂ v + (1 − β₂) g²",
        "way after 5 steps",
        second_moment_of_the_momentum,
    ),
    Case(
        "the proximal term is μ ‖w − w₀‖, tensor by tensor",
        "μ / 2 ‖w − w₀‖²",
        "its gradient, μ 0.01",
        norm_without_its_square,
    ),
    Case(
        "the median is silently a mean",
        "the middle of each number",
        "change, 1 of 7 clients sends 100",
        mean_in_place_of(median(), lambda deltas: deltas.sort(0).values[3]),
    ),
    Case(
        "Krum is silently a mean",
        "the change whose neighbours are nearest",
        "change, 1 of 7 clients sends 100",
        mean_in_place_of(krum(0.2), _krum_written_out),
    ),
    Case(
        "Dirichlet shares come from a global generator",
        "a function of the seed",
        "1 + examples with another owner once somebody drew a number",
        drawn_from_what_others_drew,
    ),
    Case(
        "answers are right where whole rationales are the same",
        "where the final numbers are the same",
        "accuracy of 20 answers, 15 of them right",
        whole_rationales_compared,
    ),
]


def apart(found: Tensor, right: Tensor) -> float:
    """The relative distance, ‖found − right‖ / ‖right‖."""
    return float((found - right).norm() / right.norm())


def table() -> str:
    """The cases as Markdown."""
    lines = [
        "| fault | right | measured | fedloom is off by | the fault is off by |",
        "|---|---|---|---|---|",
    ]
    for case in CASES:
        found, right, wrong = case.tensors()
        ours = "< 1e-10" if apart(found, right) < 1e-10 else f"{apart(found, right):.2g}"
        lines.append(
            f"| {case.fault} | {case.right} | {case.measured} | {ours} | {100 * apart(wrong, right):.3g} % |"
        )
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """A page with the table in its place."""
    return _SECTION.sub(lambda match: match[1] + table() + match[2], page)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for path in map(Path, sys.argv[1:]):
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")
