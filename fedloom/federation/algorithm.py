"""A federated algorithm: independent parts, composed; and what a client sends.

    share      which parameters are shared; the others are personal, and stay with their client
    trains     which of LoRA's factors train in a round                              federation/train_factors/
    rule       what a client does to its gradients, with memory on both sides       client/rules/
    codec      what its change looks like on the wire                               federation/codecs/
    aggregator how many changes become one                                          federation/aggregators/
    server     what the server does with that one
    federation/server_optimizers/

Each is a function, or a few, from explicit state to new state, and knows nothing of the others, of where
clients run, or of how they are reached. `federation.server` composes them to a round with a server,
`federation.peers` to one on a graph. The defaults are FedAvg:

    Algorithm(client_lr=0.1)                                        # plain averaging of models
    Algorithm(client_lr=0.1, server_optimiser=adam(lr=1e-3))        # FedAdam
    Algorithm(client_lr=0.1, rule=scaffold(client_lr=0.1), aggregator=median(), codec=int8())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedloom.client.optimisers import Optimiser, State, sgd
from fedloom.client.rules import ClientRule
from fedloom.client.rules.none import none as no_rule
from fedloom.federation.aggregators import Aggregator, Folding, Refactoring, StatefulAggregator
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.codecs import Codec
from fedloom.federation.codecs.none import none as as_it_is
from fedloom.federation.plugged import made
from fedloom.federation.privacy.user import UserPrivacy
from fedloom.federation.ranks import Ranks
from fedloom.federation.secure_sum import SecureSum
from fedloom.federation.sharing import Sharing
from fedloom.federation.train_factors import TrainFactors
from fedloom.federation.train_factors.both import everything
from fedloom.model.adapters.folding import unchanged
from fedloom.model.bank import AdapterBank, Row
from fedloom.options.methods import PARTS

SENT, RESIDUAL, PERSONAL, RULE, BASE = "sent by the rule: ", "residual: ", "personal: ", "rule: ", "base: "
MOMENTS, OWN_MOMENTS, AGGREGATOR = "moments: ", "personal moments: ", "aggregator: "
"""What stands before the names of a payload's and a memory's tensors, to tell them apart."""


@dataclass(frozen=True)
class Algorithm:
    """The parts of an algorithm; see the module.

    Attributes:
        client_lr: The clients' learning rate, which turns their change into a pseudo-gradient.
        server_optimiser: Of the server; None takes the change as it is.
        rule, codec, aggregator, share, trains: See the module.
        ranks: The clients' LoRA ranks; None: all have the adapter's own.
        beside: What combines what the rule sends beside changes: the aggregator, before a LoRA aggregation
            made one of products of it. None: the aggregator.
        refactoring: Other factors of the same products, after the server's step; None: as they are.
        privacy: How a round hides its clients; None: not at all.
        secure: How clients' changes become whole numbers of which the server needs the sum alone; None: they
            are sent as they are.
        seed: The run's.
        rule_name: What an option calls the rule, for messages.
    """

    client_lr: float
    server_optimiser: Optimiser = field(default=None)  # type: ignore[assignment]
    rule: ClientRule = field(default_factory=no_rule)
    codec: Codec = field(default_factory=as_it_is)
    aggregator: Aggregator | StatefulAggregator = weighted_mean
    share: Sharing = frozenset
    trains: TrainFactors = everything
    ranks: Ranks | None = None
    beside: Aggregator | StatefulAggregator = field(default=None)  # type: ignore[assignment]
    refactoring: Refactoring | None = None
    privacy: UserPrivacy | None = None
    secure: SecureSum | None = None
    seed: int = 0
    rule_name: str = "none"

    def __post_init__(self) -> None:
        if self.server_optimiser is None:
            object.__setattr__(self, "server_optimiser", sgd(self.client_lr))
        if self.beside is None:
            object.__setattr__(self, "beside", self.aggregator)

    @property
    def folds(self) -> bool:
        """Whether a round changes the base."""
        return isinstance(self.aggregator, Folding)

    @property
    def ends_with_new_factors(self) -> bool:
        """Whether what knew a round's factors one number at a time is of no use in the next."""
        if self.refactoring is not None:
            return self.refactoring.rounds is None
        return isinstance(self.aggregator, Folding) and self.aggregator.anew

    @property
    def remark_on_rule(self) -> str:
        """Behind what is said of a client's numbers that are not finite: they are its rule's as well."""
        if self.rule_name == "none":
            return ""
        rule = f"client_rule {self.rule_name}"
        return f" ({rule} was on and may be why; --client_rule none shows whether it is)"

    def first_base(self, adapter: Row) -> Row:
        """How the base has changed before the first round; see `model.adapters.folding`."""
        return unchanged(adapter, self.aggregator.rank) if isinstance(self.aggregator, Folding) else {}

    def first_aggregator_state(self, adapter: Row, senders: int) -> Row:
        """What the aggregator remembers before the first round, of that many clients or peers."""
        if not isinstance(self.aggregator, StatefulAggregator):
            return {}
        return self.aggregator.init(adapter, senders)

    def rank(self, client: int) -> int | None:
        """A client's LoRA rank; None where it has the adapter's own."""
        return None if self.ranks is None else self.ranks.clients[client]

    def sent(self, row: Row, client: int) -> Row:
        """A row as it crosses the wire to or from a client: cut to its rank, where it has one of its own."""
        return row if self.ranks is None else self.ranks.sent(row, client)

    def padded(self, row: Row) -> Row:
        """A row that was `sent`, in the shapes of the server's adapter."""
        return row if self.ranks is None else self.ranks.padded(row)

    def handed_out(self, adapter: Row, client: int) -> Row:
        """Where a client starts."""
        return adapter if self.ranks is None else self.ranks.handed_out(adapter, client)


def compose(texts: Mapping[str, str], settings: Mapping[str, Any], client_lr: float) -> Algorithm:
    """The algorithm that options choose.

    Args:
        texts: What each part's option says; see `methods.chosen`.
        settings: The run's options by name, for parts that take some of them. Without a server there is no
            ``client_lr`` among them, and parts that need it say so.
        client_lr: The clients' learning rate, by which a server optimiser undoes what made Δ of a gradient.

    Raises:
        UserError: A part cannot be made of its text.
    """
    part = {part.option: part for part in PARTS}

    def chosen(option: str, **more: Any) -> Any:
        return made(part[option], texts[option], {**settings, **more})

    beside = chosen("aggregator")
    aggregator: Any = chosen("lora_aggregation", aggregator=beside)
    refactoring = None
    if isinstance(aggregator, Refactoring):
        aggregator, refactoring = aggregator.aggregator, aggregator
    return Algorithm(
        client_lr=client_lr,
        server_optimiser=chosen("server_optimizer", client_lr=client_lr),
        rule=chosen("client_rule"),
        codec=chosen("compress"),
        aggregator=aggregator,
        share=chosen("share"),
        trains=chosen("train_factors"),
        beside=beside,
        refactoring=refactoring,
        seed=settings["seed"],
        rule_name=texts["client_rule"],
    )


def with_prefix(prefix: str, row: Row) -> Row:
    """A row with something before each of its names."""
    return {prefix + name: t for name, t in row.items()}


def part_of(row: Row, prefix: str) -> Row:
    """The tensors whose names begin so, without it."""
    return {name.removeprefix(prefix): t for name, t in row.items() if name.startswith(prefix)}


def first_memory(algorithm: Algorithm, adapter: Row, optimiser: Optimiser | None = None) -> Row:
    """What a client keeps before its first round; also the names and shapes of all that it ever keeps.

    Args:
        algorithm: Which.
        adapter: Where everybody begins.
        optimiser: The clients'; None: it has no state. Its state lasts from round to round, but where a round
            ends with new factors: the moments are of the old ones then, and begin anew.
    """
    shared, own_model = algorithm.share(adapter.keys()), algorithm.rule.own_model is not None
    sent = {name: t for name, t in adapter.items() if name in shared}
    memory = with_prefix(RULE, algorithm.rule.memory(sent))
    memory |= with_prefix(PERSONAL, {n: t for n, t in adapter.items() if own_model or n not in shared})
    if optimiser is not None and not algorithm.ends_with_new_factors:
        state = as_remembered(optimiser.init(AdapterBank.repeat(adapter, 1)))
        moments = {key: t[0] for key, t in state.items()}
        memory |= with_prefix(MOMENTS, moments) | (with_prefix(OWN_MOMENTS, moments) if own_model else {})
    if algorithm.codec.remembers:
        memory |= with_prefix(RESIDUAL, {name: torch.zeros_like(t) for name, t in sent.items()})
    return memory


def as_remembered(state: State) -> State:
    """An optimiser's state as clients remember it: step counts in the moments' dtype, since rows have one."""
    floating = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    return {key: t.to(floating) for key, t in state.items()}


def moments_of(remembered: Sequence[Row], prefix: str, bank: AdapterBank) -> State | None:
    """The optimiser's state that clients remember, of the parameters in a bank; None where there is none.

    Args:
        remembered: What each client remembers.
        prefix: What stands before the names of the state.
        bank: The clients' parameters that move.
    """
    rows = [part_of(row, prefix) for row in remembered]
    state = {k: t for k, t in AdapterBank.stack(rows).tensors.items() if k.partition(".")[2] in bank.tensors}
    return {k: t.long() if k.startswith("steps.") else t for k, t in state.items()} or None


def first_peer_memory(algorithm: Algorithm, shared: Row, peers: int) -> Row:
    """What a peer on a graph keeps before the first round: for its rule, of its own and what is mixed, and
    for its aggregator.

    Args:
        algorithm: Which.
        shared: Of the adapter where everybody begins, what peers send.
        peers: How many there are.
    """
    mixed = algorithm.rule.mixed
    memory = with_prefix(RULE, algorithm.rule.memory(shared))
    memory |= with_prefix(AGGREGATOR, algorithm.first_aggregator_state(shared, peers))
    return memory if mixed is None else memory | with_prefix(SENT, mixed(shared))
