"""How a model takes its tokens, and what a batch of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from fedloom.data.encode import Tokens


@dataclass(frozen=True)
class Batch:
    """Some sequences of one client whose losses are averaged together.

    Attributes:
        sequences: What to learn from; all are preferences, or none is.
        weight: Of each label (of each preference) in the client's loss. ``1 / labels`` makes the loss the
            batch's mean.
        key: What the batch's dropout depends on beside the seed: (round, client, step, batch).
    """

    sequences: list[Tokens]
    weight: float
    key: tuple[int, ...] = ()


class NotPerClient(ValueError):
    """A module was called on something that cannot be shared out among the clients of the pass."""


class Head(Enum):
    """How a model's head is run, behind a trunk that has run already; the first that is right is taken.

    Attributes:
        LABELS: Each position that predicts a label is given to it as a sequence of one token.
        SEQUENCES: It is given whole padded sequences with their mask, because it pools over them.
        MODEL: The model runs as it is, trunk and head together.
    """

    LABELS = "labels"
    SEQUENCES = "sequences"
    MODEL = "model"


@dataclass(frozen=True)
class Layout:
    """How a model takes its tokens; see `build_pack`.

    Attributes:
        packed: Sequences end to end (else padded rows).
        causal: A token sees only what stands before it.
        classify: One label per sequence, at its first (causal: last) position; else one per token of answers.
        virtual: Virtual tokens before each sequence.
        prefix: Leading tokens that all sequences of the data share and that are computed once per
            client; used when packed and causal.
        pad_id: Any valid token id.
        head: How the head is run.
        together: Tokens of the longest sequence that may share a pass with other batches. A batch with a
            longer one runs by itself, padded, as PEFT would run it. None: any length; 0: every batch by
            itself.
    """

    packed: bool
    causal: bool
    classify: bool = False
    virtual: int = 0
    prefix: int = 0
    pad_id: int = 0
    head: Head = Head.LABELS
    together: int | None = None

    def apart(self, batch: Batch) -> bool:
        """Whether a batch has to run by itself."""
        longest = max(len(side.ids) for sequence in batch.sequences for side in sequence.sides) + self.virtual
        return self.together is not None and longest > self.together

    def whole(self, packed: bool) -> bool:
        """Whether a pass, packed or not, runs trunk and head together."""
        return self.head is Head.MODEL or (self.head is Head.SEQUENCES and not packed)

    @property
    def shared(self) -> int:
        """Tokens, virtual ones included, that stand once per client."""
        return self.virtual + self.prefix if self.packed and self.causal else 0


def labels_of(sequence: Tokens, layout: Layout) -> int:
    """How many labels a sequence contributes: its answers' tokens, or one class."""
    return 1 if layout.classify else sum(end - first for first, end in sequence.spans)


def counted(sequence: Tokens, layout: Layout) -> int:
    """How much a sequence counts in a mean: its labels; a preference is one, however long its answers are."""
    return labels_of(sequence, layout) if sequence.rejected is None else 1


def shared_prefix(sequences: Sequence[Tokens]) -> int:
    """Length of the longest beginning that all sequences share, short of any token that predicts a label."""
    sequences = [side for tokens in sequences for side in tokens.sides]
    limit = min(tokens.answer_start - 1 for tokens in sequences)
    first = sequences[0].ids
    for i in range(limit):
        if any(tokens.ids[i] != first[i] for tokens in sequences):
            return i
    return max(limit, 0)
