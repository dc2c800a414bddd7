"""What a client does to its gradients beyond following them; every file beside this one is one rule.

A rule is functions from explicit state to new state, over a stack of clients, as an optimiser is. What a
client remembers from round to round stays with it; what the server keeps for the rule is sent with the
adapter. All of it is named as the adapter's parameters are. Plain local training is the rule that does
nothing, `none`:

    rule = none()
    g = rule.correct(g, bank, start, memory={}, received={})            # at every step: g as it was
    memory, sent = rule.finish(start, bank, steps, memory={}, received={})  # after the last one: {}, {}

`scaffold.py` is one that remembers on both sides, `feddyn.py` one that has a part in the server's step,
`proximal.py` one that has no memory; `fedrep.py` and `ditto.py` are about personal parameters. Among peers on
a graph there is no server to keep anything; what a rule sends is mixed there by the same matrix as the
adapters (`gradient_tracking.py`), or it has a memory alone (`quasi_global.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.model.bank import AdapterBank, Row

GradientAt = Callable[[AdapterBank], AdapterBank]
"""Each client's gradient of a step's loss at given parameters."""


class ClientRule(NamedTuple):
    """A local rule; see the module.

    Attributes:
        memory: ``adapter -> row``: what a client remembers before its first round.
        kept: ``adapter -> row``: what the server keeps before the first round. Of it that is sent to clients
            which is named as the parameters of the round are, unless `hand_out` says otherwise.
        correct: ``(gradients, bank, start, memory, received) -> gradients``, at every step. ``start`` is
            where the clients began the round, ``memory`` what each remembers, ``[clients, *shape]``,
            ``received`` what the server sent, ``[*shape]``, the same for all; among peers what mixing has
            made of what each sent, ``[peers, *shape]``.
        finish: ``(start, bank, steps, memory, received) -> (memory, sent)`` after the last step; ``steps``
            has how many each client took, ``[clients]``. ``sent`` goes to the server with the update.
        absorb: ``(kept, mean of what was sent, share of the clients that sent it) -> kept``, at the server.
        amend: ``(combined change, kept, share of the clients) -> (change, kept)``, at the server, before
            `absorb` and the server's optimiser; None takes the change as it is.
        mixed: ``adapter -> row``: among peers, what mixing has made of what was sent before anything was;
            None: nothing is sent there.
        head_steps: In so many steps, the first of a round, personal parameters move alone, in the others
            shared ones; 0: all move in all steps.
        own_model: The rule by which every client trains a model of its own beside the shared one, from round
            to round; its ``received`` is where the shared one began, ``[clients, *shape]``. None: there is
            no such model.
        gradient: ``(gradient_at, bank, start, memory, received) -> gradients``, at every step, before all
            else: ``gradient_at(bank)`` is that of the step's loss at any parameters, and each call costs a
            pass. None: ``gradient_at(bank)``. Loss and accuracy are those of the first call.
        observe: ``(gradients, bank, start, memory, received) -> memory``, at every step, before `correct`,
            which sees what it returns: what a client remembers of a step. None: nothing changes.
        hand_out: ``(kept, names of the round's parameters) -> row``: what of it clients receive, so that
            there may be several tensors for a parameter, or one for all. None: what is named as they are.
    """

    memory: Callable[[Row], Row]
    kept: Callable[[Row], Row]
    correct: Callable[[AdapterBank, AdapterBank, AdapterBank, State, Row], AdapterBank]
    finish: Callable[[AdapterBank, AdapterBank, Tensor, State, Row], tuple[State, State]]
    absorb: Callable[[Row, Row, float], Row]
    amend: Callable[[Row, Row, float], tuple[Row, Row]] | None = None
    mixed: Callable[[Row], Row] | None = None
    head_steps: int = 0
    own_model: ClientRule | None = None
    gradient: Callable[[GradientAt, AdapterBank, AdapterBank, State, Row], AdapterBank] | None = None
    observe: Callable[[AdapterBank, AdapterBank, AdapterBank, State, Row], State] | None = None
    hand_out: Callable[[Row, Collection[str]], Row] | None = None

    def handed_out(self, kept: Row, names: Collection[str]) -> Row:
        """What clients receive in a round that trains these parameters of what the server keeps."""
        if self.hand_out is not None:
            return self.hand_out(kept, names)
        return {name: t for name, t in kept.items() if name in names}

    @property
    def remembers(self) -> bool:
        """Whether clients remember something from round to round."""
        return bool(self.memory({"": torch.zeros(1)}))

    @property
    def at_server(self) -> bool:
        """Whether it has a part at the server: something kept, or done to the combined change."""
        return bool(self.kept({"": torch.zeros(1)})) or self.amend is not None


def zeros(adapter: Row) -> Row:
    """What a rule that begins at zero remembers, or keeps, of each parameter."""
    return {name: torch.zeros_like(t) for name, t in adapter.items()}
