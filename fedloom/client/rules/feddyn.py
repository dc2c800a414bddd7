"""FedDyn (Acar et al., 2021, arXiv:2111.04263, algorithm 1): a penalty that learns where the clients pull.

With w the server's adapter, m clients, the set P of them sampled, and λ_k the gradient of client k's own loss
where it ended last time:

    w_k ← min over θ of  F_k(θ) − ⟨λ_k, θ⟩ + α / 2 ‖θ − w‖²        by SGD, g ← g − λ_k + α (θ − w)
    λ_k ← λ_k − α (w_k − w)
    h ← h − α / m Σ_{k ∈ P} (w_k − w)                               at the server, and never sent
    w ← mean over P of w_k − h / α

λ_k and h begin at 0. h is the mean of all λ_k, and 0 at a minimum of the mean loss, which every w_k then is,
however unlike the clients are. The paper's clients weigh the same; here the means are those of the run, by
the examples of a client. Where all clients take part, the minimum is that of FedAvg's loss; where a part of
them does, and examples differ, h counts clients and the mean examples, and what it ends at is near the
minimum of neither loss exactly. The change that the server takes grows
from round to round until the λ_k have taken it up: α times client_lr times the number of local steps should
not be far below 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.client.rules import ClientRule, zeros
from fedloom.client.rules.none import none
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank, Row

_H = "h."
"""What stands before the names of h: what is named otherwise than the adapter is not sent."""


def feddyn(alpha: float = 0.1, *, client_lr: float) -> ClientRule:
    """Regularise each client dynamically.

    Args:
        alpha: α.
        client_lr: The clients' learning rate; there is one where there is a server.

    Raises:
        UserError: α is not above 0: the server would divide by 0.
    """
    if not alpha > 0:
        raise UserError(
            f"client_rule: feddyn:{alpha:g} divides by 0; alpha must be above 0, as in feddyn:0.1"
        )

    def kept_of(adapter: Row) -> Row:
        return {_H + name: torch.zeros_like(t) for name, t in adapter.items()}

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        corrected = dict(gradients.tensors)
        for name in memory.keys() & corrected.keys():
            way = bank.tensors[name] - start.tensors[name]
            corrected[name] = corrected[name] - memory[name] + alpha * way
        return AdapterBank(corrected)

    def finish(
        start: AdapterBank, bank: AdapterBank, steps: Tensor, memory: State, received: Row
    ) -> tuple[State, State]:
        after = dict(memory)
        for name in memory.keys() & bank.tensors.keys():
            after[name] = memory[name] - alpha * (bank.tensors[name] - start.tensors[name])
        return after, {}

    def amend(change: Row, kept: Row, share: float) -> tuple[Row, Row]:
        h = {_H + name: kept[_H + name] - alpha * share * t for name, t in change.items()}
        return {name: t - h[_H + name] / alpha for name, t in change.items()}, kept | h

    return none()._replace(memory=zeros, kept=kept_of, correct=correct, finish=finish, amend=amend)
