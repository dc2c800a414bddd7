"""SCAFFOLD (Karimireddy et al., 2020, arXiv:1910.06378, algorithm 1 with option II): control variates.

Clients of unlike data drift apart while they train. Each keeps an estimate c_i of its own gradient, the
server one, c, of everybody's; the difference takes the drift out of every local step. With x the server's
adapter, K local SGD steps of size η, N clients, S of them sampled:

    y_i ← x;   K times:   y_i ← y_i − η (g_i(y_i) − c_i + c)
    c_i⁺ ← c_i − c + (x − y_i) / (K η)                      option II
    Δc_i ← c_i⁺ − c_i;   c_i ← c_i⁺                         Δc_i is sent with the update
    c   ← c + |S| / N · mean over S of Δc_i

All variates begin at 0, so that the first round is FedAvg's. Where all clients have the same data, c_i = c
and the correction vanishes. The estimate is one of SGD's gradient, so clients must descend by SGD. With
clip_norm it is one of the clipped step: c_i⁺ then mixes the estimate before with the clipped gradient.

Beside an aggregator other than the mean the Δc_i are combined by it too: with norm_bound none counts for more
than so many medians of their norms. Otherwise one client could ruin everybody's steps by its variate alone.
Nothing pulls c back: what is kept of Δc_i stays out of c for good, or in it, so that an attacker within the
bound moves c on from round to round, and of very unlike clients c is no longer the mean of the c_i.
"""

from __future__ import annotations

from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.client.rules import ClientRule, zeros
from fedloom.client.rules.quasi_global import check_descends_by_sgd
from fedloom.model.bank import AdapterBank, Row


def scaffold(
    *, client_lr: float, client_optimizer: str = "sgd", loraplus_lr_ratio: float = 1.0
) -> ClientRule:
    """Correct each client's drift.

    Args:
        client_lr: η, the clients' learning rate.
        client_optimizer: How clients descend.
        loraplus_lr_ratio: How much faster B learns.

    Raises:
        UserError: They do not descend by SGD.
    """
    check_descends_by_sgd("scaffold", client_optimizer, loraplus_lr_ratio)

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        return AdapterBank(
            {
                name: g + (received[name] - memory[name]) if name in received else g
                for name, g in gradients.tensors.items()
            }
        )

    def finish(
        start: AdapterBank, bank: AdapterBank, steps: Tensor, memory: State, received: Row
    ) -> tuple[State, State]:
        after = dict(memory)
        for name, c in received.items():
            x, y = start.tensors[name], bank.tensors[name]
            taken = steps.to(x).view(-1, *[1] * c.ndim)
            after[name] = memory[name] - c + (x - y) / (taken * client_lr)
        return after, {name: after[name] - memory[name] for name in received}

    def absorb(kept: Row, sent: Row, share: float) -> Row:
        return kept | {name: kept[name] + share * change for name, change in sent.items()}

    return ClientRule(memory=zeros, kept=zeros, correct=correct, finish=finish, absorb=absorb)
