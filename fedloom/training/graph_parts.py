"""What a run without a server is made of, and where it stands between two rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import Optimiser
from fedloom.client.work import Schedule
from fedloom.data.encode import Tokens
from fedloom.evaluation.answering import Questions
from fedloom.evaluation.reference import kept_in, with_references
from fedloom.federation.algorithm import SENT, Algorithm, first_peer_memory
from fedloom.federation.attacks import Attackers
from fedloom.federation.choco import Estimates
from fedloom.federation.layer_votes import LayerVotes
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.peers import PeerState
from fedloom.model.adapters.products import DOWN, UP
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.dealing import blocks
from fedloom.runtimes.group import ALONE, Group
from fedloom.training.adapter_folder import AdapterFolder
from fedloom.training.private import Budget

Mixing = Callable[[int], RoundMixing]
"""``round -> its mixing matrix, and who takes part``."""


@dataclass(frozen=True)
class PeerParts:
    """What a run without a server is made of.

    Attributes:
        model: The frozen base with stacked adapters.
        tokenizer: The model's.
        train: All training sequences.
        peers: For each peer the indices of its own.
        validation: For each peer what it is judged by; one list for all may stand there many times.
        questions: For each peer the problems that it answers itself; none where nobody is asked.
        schedules: How much each peer does in a round.
        algorithm: What of its parts is neighbours': the aggregator, and how rows are encoded.
        rules: How peers train.
        optimiser: The same as in the rules; its state lasts across rounds.
        frozen: Adapter parameters that nobody trains: A, with DFL-LoRA.
        personal: Names of parameters that are not sent: the head, where it stays with its peer, and what the
            algorithm does not share.
        modules: PEFT's names of the modules with LoRA.
        mixing: The graph, round by round.
        votes: How peers choose the layers of a round; None: they train and send all.
        evaluates: Which adapters of a round are evaluated: those after mixing, or those before it.
        seed: The run's.
        group: The processes that the peers are dealt over.
        first: Number of the first peer in these lists, from 0: of a real peer, which knows no other, its own.
        everybody: How many peers there are, those that are not in these lists included.
        reading: A short name of how texts become token ids and classes, the same for all who train together.
        beside: What is written beside every saved adapter.
        attackers: Who attacks in a simulation, and how.
        triggered: Validation examples as an attacker wants them answered.
        budget: What differential privacy may cost.
        sample: The peers that are evaluated and saved one by one, ascending; None: all.
    """

    model: StackedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Tokens]
    peers: Sequence[np.ndarray]
    validation: Sequence[Sequence[Tokens]]
    questions: Sequence[Questions]
    schedules: Sequence[Schedule]
    algorithm: Algorithm
    rules: LocalRules
    optimiser: Optimiser
    frozen: Row
    personal: frozenset[str]
    modules: Sequence[str]
    mixing: Mixing
    evaluates: Literal["after", "before"]
    seed: int
    votes: LayerVotes | None = None
    group: Group = ALONE
    first: int = 0
    everybody: int = 0
    reading: str = ""
    beside: AdapterFolder | None = None
    attackers: Attackers | None = None
    triggered: Sequence[Tokens] = ()
    budget: Budget | None = None
    sample: Sequence[int] | None = None

    @property
    def shown(self) -> Sequence[int]:
        """The peers that the run reports individually, ascending."""
        return range(len(self.peers)) if self.sample is None else self.sample

    @property
    def shown_local(self) -> list[int]:
        """Those of this process."""
        return [peer for peer in self.shown if peer in self.local]

    @property
    def honest(self) -> list[int]:
        """The peers that do not attack."""
        attack = self.attackers.clients if self.attackers else frozenset()
        return [peer for peer in range(len(self.peers)) if peer not in attack]

    @cached_property
    def first_memory(self) -> Row:
        """What a peer keeps for its rule and its aggregator before the first round."""
        return first_peer_memory(self.algorithm, self._shared, self.everybody)

    @property
    def sent(self) -> Row:
        """What a peer sends of the first adapter, which all begin with, and of its first memory."""
        return self._shared | {name: t for name, t in self.first_memory.items() if name.startswith(SENT)}

    @property
    def _shared(self) -> Row:
        names = self.model.initial.keys() - self.frozen.keys() - self.personal
        return {name: t for name, t in self.model.initial.items() if name in names}

    @cached_property
    def blocks(self) -> list[range]:
        """The peers of each process, by the tokens of a round."""
        return blocks([self._tokens(peer) for peer in range(len(self.peers))], self.group.size)

    @property
    def local(self) -> range:
        """The peers of this process."""
        return self.blocks[self.group.rank]

    def _tokens(self, peer: int) -> int:
        schedule, indices = self.schedules[peer], self.peers[peer]
        of_a_pass = sum(len(side.ids) for i in indices for side in self.train[i].sides)
        return of_a_pass * schedule.batches * schedule.batch_size // max(len(indices), 1)


@dataclass(frozen=True)
class PeerProgress:
    """Where a run stands between two rounds; the peers' state and the counts go into a checkpoint.

    A process has the rows of its own peers; the counts are those of all.

    Attributes:
        peers: The peers' state.
        drawn: Batches that each peer has drawn so far.
        before_mixing: The bank of the last round before it was mixed, where those are evaluated.
        fruitless: Rounds in a row in which nothing finite came of a real peer's training.
    """

    peers: PeerState
    drawn: list[int]
    before_mixing: AdapterBank | None = None
    fruitless: int = 0


def compared(parts: PeerParts, folder: Path) -> PeerParts:
    """The same with the base's word on all preferences, which the run's folder keeps; else nothing."""
    lists = [parts.train, *parts.validation]
    train, *validation = with_references(
        parts.model, lists, parts.rules.wave_tokens, parts.group, kept_in(folder)
    )
    return replace(parts, train=train, validation=validation)


def start(parts: PeerParts) -> PeerProgress:
    """Everybody's first adapter: the same A, B and head."""
    row = {name: t for name, t in parts.model.initial.items() if name not in parts.frozen}
    bank = AdapterBank.repeat(row, len(parts.local))
    memory = {name: t.expand(len(parts.local), *t.shape).clone() for name, t in parts.first_memory.items()}
    trains = AdapterBank({n: t for n, t in bank.tensors.items() if not n.endswith((UP, DOWN))})
    peers = PeerState(0, bank, parts.optimiser.init(trains), Estimates(parts.sent), memory)
    return PeerProgress(peers, [0] * len(parts.peers))
