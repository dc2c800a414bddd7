"""Gradient tracking with local steps, K-GT (Liu et al., 2023, arXiv:2301.01313), for peers on a graph.

Peers of unlike data pull apart while they train. Each corrects its gradients by what its neighbours' were,
less its own, as SCAFFOLD does by the server's. With x_i the model of peer i, η the learning rate, K local
steps:

    K times:   y_i ← y_i − η (g_i(y_i) + c_i)        from y_i = x_i
    z_i ← (x_i − y_i) / (K η)                        sent along with y_i
    x_i ← Σ_j W_ij y_j
    c_i ← c_i − z_i + Σ_j W_ij z_j

All c_i begin at 0. The paper has a second step size for the mixed step; here it is 1. W is doubly stochastic,
so that Σ_i c_i = 0 for ever. With one local step it is gradient tracking itself: with y' = g + c, x ← W (x −
η y') and y' ← W y' + g⁺ − g (DIGing, Nedić et al., 2017, arXiv:1607.03218, has x ← W x − η y'). With
clip_norm z is the clipped step. With equal data and equal draws, or on the identity, it is plain gossip. What
is kept and sent here is η z and η c, of the size of a step, so that a codec loses as much of them as of y.
"""

from __future__ import annotations

from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.client.rules import ClientRule, zeros
from fedloom.client.rules.none import none
from fedloom.client.rules.quasi_global import check_descends_by_sgd
from fedloom.model.bank import AdapterBank, Row


def gradient_tracking(*, lr: float, client_optimizer: str, loraplus_lr_ratio: float = 1.0) -> ClientRule:
    """Correct each peer's gradients by its neighbours'.

    Args:
        lr: η, the peers' learning rate.
        client_optimizer: How peers descend.
        loraplus_lr_ratio: How much faster B learns.

    Raises:
        UserError: They do not descend by SGD.
    """
    check_descends_by_sgd("gradient_tracking", client_optimizer, loraplus_lr_ratio)

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        return AdapterBank(
            {
                # memory: η (c − z), from before mixing; received: η Σ_j W_ij z_j.
                name: g + (memory[name] + received[name]) / lr if name in received else g
                for name, g in gradients.tensors.items()
            }
        )

    def finish(
        start: AdapterBank, bank: AdapterBank, steps: Tensor, memory: State, received: Row
    ) -> tuple[State, State]:
        after, sent = dict(memory), {}
        for name, x in start.tensors.items():
            if name in received:
                taken = steps.to(x).clamp(min=1).view(-1, *[1] * (x.ndim - 1))
                sent[name] = (x - bank.tensors[name]) / taken
                after[name] = memory[name] + received[name] - sent[name]
        return after, sent

    return none()._replace(memory=zeros, mixed=zeros, correct=correct, finish=finish)
