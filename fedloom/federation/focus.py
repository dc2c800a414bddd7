"""A round of gradient priority: only the layers that matter are trained and sent.

    FedGPL    ACM Transactions on Autonomous and Adaptive Systems, 2025, doi:10.1145/3717835

The server holds a little data of its own, D_0. With w_L for the adapter's parameters in layers L:

    g_0 ← ∇ loss(w; D_0)
    s_l ← score(w_l, g_0,l) for every layer l
    L   ← the layers with the highest scores ∪ some with the lowest, or those of the round before
    for k in S, in parallel:   w_k ← local SGD from w, of w_L alone
    g_L ← Σ_k n_k (w_L − w_k,L) / (client_lr · Σ_k n_k);   elsewhere g ← server_grad_scale · g_0
    w   ← optimiser(w, g)

Lines four to six are `federation.server.federated_round`, so that this works with each of its algorithms;
with all layers selected nothing else is left, and the round is that one. Parameters outside the layers are
always trained and sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fedloom.federation.aggregate import Reduce
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.priority import Projection, layer_scores, names_in, select_layers
from fedloom.federation.server import Diverged, RoundReport, ServerState, federated_round
from fedloom.federation.transport import Train
from fedloom.model.bank import Row

ServerGradient = Callable[[int, Row], tuple[Row, float]]
"""``(round, adapter) -> (gradient of the adapter on the server's own data, loss there)``."""


@dataclass(frozen=True)
class Focus:
    """How a server chooses layers.

    Attributes:
        layers: The adapted projections of every layer that has some, by the layer's number.
        highest, lowest: How many layers with the highest and with the lowest scores are selected.
        policy: One of `priority.LAYER_POLICIES`.
        grad_eval: One of `priority.GRAD_EVALS`.
        server_grad_scale: What the server's own gradient is multiplied by where clients do not train; at 0
            such layers keep their parameters, moments and step counts.
        seed: The run's.
        rounds: For how many rounds a selection stays; 0: for all.
    """

    layers: Mapping[int, Sequence[Projection]]
    highest: int
    lowest: int
    policy: str
    grad_eval: str
    server_grad_scale: float
    seed: int
    rounds: int = 1

    def kept(self, state: ServerState) -> tuple[int, ...] | None:
        """The layers of earlier rounds that stay selected; None where they are to be selected anew."""
        over = state.round % self.rounds == 0 if self.rounds else False
        return None if over else state.selected

    @property
    def selection_bytes(self) -> int:
        """Bytes that tell one client which layers are selected: one bit per layer."""
        return -(-len(self.layers) // 8)

    def unselected_names(self, selected: Sequence[int]) -> set[str]:
        """The parameters in layers that are not selected."""
        return names_in(names for layer, names in self.layers.items() if layer not in selected)


@dataclass(frozen=True)
class FocusReport:
    """What a round says of its choice.

    Attributes:
        selected: The layers that clients trained and sent.
        scores: Of every layer that has an adapter, by its number; empty where nothing needed the server's
            gradient.
        loss: On the server's own data, before the round; None likewise.
    """

    selected: tuple[int, ...]
    scores: dict[int, float]
    loss: float | None


def focused_round(
    state: ServerState,
    clients: Sequence[int],
    train: Train,
    server_gradient: ServerGradient,
    focus: Focus,
    algorithm: Algorithm,
    of: int | None = None,
    reduce: Reduce = lambda local: local,
) -> tuple[ServerState, RoundReport, FocusReport]:
    """One round in which clients train and send the selected layers.

    Args:
        state: The server's state.
        clients: Who takes part.
        train: Trains clients from the server's adapter.
        server_gradient: Computes the server's own gradient.
        focus: How layers are chosen.
        algorithm: Its parts.
        of: As in `federated_round`.
        reduce: As in `federated_round`.

    Raises:
        Diverged: The server's own gradient is not finite, or no client came back with finite numbers.
    """
    numbers, selected = sorted(focus.layers), focus.kept(state)
    to_score = focus.policy == "priority" and selected is None
    to_move = focus.policy != "all" and focus.server_grad_scale > 0
    gradient, scores, loss = Row(), None, None
    if to_score or to_move:
        gradient, loss = server_gradient(state.round, state.adapter)
        if not all(bool(t.isfinite().all()) for t in gradient.values()):
            raise Diverged(f"round {state.round + 1}: the gradient on the server's own data is not finite")
        layers = [focus.layers[number] for number in numbers]
        scores = layer_scores(state.adapter, gradient, layers, focus.grad_eval)
    if selected is None:
        selected = select_layers(
            torch.zeros(len(numbers)) if scores is None else scores,
            highest=focus.highest,
            lowest=focus.lowest,
            policy=focus.policy,
            seed=focus.seed,
            round_number=state.round // max(focus.rounds, 1),  # selections so far
            numbers=numbers,
        )
    unselected = focus.unselected_names(selected)
    unsent = {name: focus.server_grad_scale * t for name, t in gradient.items() if name in unselected}
    after, report = federated_round(
        state,
        clients,
        train,
        algorithm,
        of=of,
        sent=state.adapter.keys() - unselected,
        unsent_gradient=unsent if focus.server_grad_scale else None,
        reduce=reduce,
    )
    receivers = len(report.clients) if algorithm.privacy is None else algorithm.privacy.per_round
    telling = focus.selection_bytes * receivers
    report = replace(report, bytes_down=report.bytes_down + telling)
    by_number = {} if scores is None else dict(zip(numbers, scores.tolist(), strict=True))
    return replace(after, selected=selected), report, FocusReport(selected, by_number, loss)
