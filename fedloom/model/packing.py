"""Packs: the tokens of all sequences of all clients of a wave, laid out for one pass.

*Packed*: one row, sequences end to end, no pad tokens. In a causal model the first tokens that all
sequences share (instruction, chat header, virtual tokens) stand once per client, before its
sequences: a token's hidden state depends on what stands before it alone, so the copies would be equal.
*Padded*: one row per sequence, for architectures whose attention cannot be packed.
*Apart*: padded, one batch per call, for those in which sequences of a pass depend on each other.

    packed   [ prefix₀ | seq | seq | seq | prefix₁ | seq | seq ]        segments: client 0, client 1
    padded   [[ seq ······ ], [ seq ···· ], [ seq ······ ], ...]         rows:     client 0, client 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch, Layout, labels_of
from fedloom.model.pack import Apart, Pack, Pairs


class _Builder:
    """Lays tokens down one after another and notes where everything stands."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.ids: list[int] = []
        self.position_ids: list[int] = []
        self.types: list[int] = []
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.prefix_starts: list[int] = []
        self.virtual: list[int] = []
        self.virtual_source: list[int] = []
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.weights: list[float] = []
        self.label_clients: list[int] = []
        self.label_pairs: list[int] = []
        self.label_signs: list[int] = []
        self.pair_clients: list[int] = []
        self.pair_weights: list[float] = []
        self.pair_references: list[float] = []
        self.runs: list[tuple[tuple[int, ...], int, int]] = []
        self.prefix: list[int] = []

    def lay(self, tokens: Sequence[int], first_position: int) -> None:
        self.ids += tokens
        self.position_ids += range(first_position, first_position + len(tokens))
        self.types += [0] * len(tokens)

    def lay_virtual(self, client: int) -> None:
        layout = self.layout
        start = len(self.ids)
        self.virtual += range(start, start + layout.virtual)
        self.virtual_source += range(client * layout.virtual, (client + 1) * layout.virtual)
        self.lay([layout.pad_id] * layout.virtual, 0)

    def lay_shared(self, client: int, first: Batch) -> int:
        """The client's shared tokens, once. Returns where they start."""
        start = len(self.ids)
        self.lay_virtual(client)
        self.prefix = first.sequences[0].ids[: self.layout.prefix]
        self.lay(self.prefix, self.layout.virtual)
        # -1: the prefix is no batch's own; all passes over one step of a client share its mask.
        self.runs.append(((*first.key[:-1], -1), len(self.ids) - start, 0))
        return start

    def lay_sequence(self, client: int, sequence: Tokens, weight: float) -> None:
        layout, start = self.layout, len(self.ids)
        if not layout.shared:
            self.lay_virtual(client)
        skipped = layout.prefix if layout.shared else 0
        first_label = len(sequence.ids) if layout.classify else sequence.answer_start
        if skipped and (sequence.ids[:skipped] != self.prefix or first_label <= skipped):
            raise ValueError(
                f"client {client}: a sequence does not begin with the {skipped} tokens that all are said to "
                "share, or its answer begins among them; see `shared_prefix`"
            )
        self.lay(sequence.ids[skipped:], layout.virtual + skipped)
        if sequence.segment_start is not None:
            second = len(sequence.ids) - sequence.segment_start
            self.types[len(self.types) - second :] = [1] * second
        self.starts.append(start)
        self.lengths.append(len(self.ids) - start)
        if layout.classify:
            self.sources.append(len(self.ids) - 1 if layout.causal else start)
            self.targets.append(sequence.label)
        else:
            before = len(self.ids) - len(
                sequence.ids
            )  # where its first token stands, or would without a prefix
            for first, end in sequence.spans:
                self.sources += range(before + first - 1, before + end - 1)
                self.targets += sequence.ids[first:end]
        labels = labels_of(sequence, layout)
        self.weights += [weight] * labels
        self.label_clients += [client] * labels

    def note_pair(self, client: int, sequence: Tokens, weight: float) -> None:
        """The last two sequences are a preference's."""
        for side, sign in zip(sequence.sides, (1, -1), strict=True):
            labels = labels_of(side, self.layout)
            self.label_pairs += [len(self.pair_clients)] * labels
            self.label_signs += [sign] * labels
        self.pair_clients.append(client)
        self.pair_weights.append(weight)
        # One that nobody has looked up must not pass for 0: the loss is then nan, and the run says so.
        self.pair_references.append(math.nan if sequence.reference is None else sequence.reference)

    def lay_batch(self, client: int, batch: Batch, prefix_start: int) -> None:
        tokens, labels = len(self.ids), len(self.targets)
        for sequence in batch.sequences:
            for side in sequence.sides:
                self.lay_sequence(client, side, batch.weight)
                self.prefix_starts.append(prefix_start)
            if sequence.rejected is not None:
                self.note_pair(client, sequence, batch.weight)
        self.runs.append((batch.key, len(self.ids) - tokens, len(self.targets) - labels))


def build_pack(clients: Sequence[Sequence[Batch]], layout: Layout) -> Pack | Apart:
    """Lay out the batches of a wave's clients for one pass.

    Args:
        clients: Each client's batches; a client may have none.
        layout: How the model takes its tokens.

    Returns:
        One pass; `Apart` where any of the batches has to run by itself (see `Layout.together`).

    Raises:
        ValueError: when nothing is to be laid out.
    """
    if not any(clients):
        raise ValueError("a pass needs at least one batch; every client's list is empty")
    if any(layout.apart(batch) for batches in clients for batch in batches):
        alone = replace(layout, packed=False, together=None)
        packs = [(k, _lay_out([[batch]], alone)) for k, batches in enumerate(clients) for batch in batches]
        tokens = [0] * len(clients)
        for client, pack in packs:
            tokens[client] += sum(pack.client_tokens)
        return Apart(tuple(packs), tuple(tokens))
    return _lay_out(clients, layout)


def _lay_out(clients: Sequence[Sequence[Batch]], layout: Layout) -> Pack:
    builder = _Builder(layout)
    token_units, row_units, label_units = [], [], []
    for client, batches in enumerate(clients):
        tokens, rows, labels = len(builder.ids), len(builder.starts), len(builder.targets)
        prefix_start = builder.lay_shared(client, batches[0]) if layout.shared and batches else tokens
        for batch in batches:
            builder.lay_batch(client, batch, prefix_start)
        token_units.append(len(builder.ids) - tokens)
        row_units.append(len(builder.starts) - rows)
        label_units.append(len(builder.targets) - labels)
    return _as_tensors(builder, token_units, row_units, label_units)


def _pairs(builder: _Builder) -> Pairs | None:
    if not builder.pair_clients:
        return None
    if len(builder.label_pairs) != len(builder.targets):
        raise ValueError("preferences and other sequences cannot share a pass: their losses differ")
    return Pairs(
        labels=torch.tensor(builder.label_pairs),
        signs=torch.tensor(builder.label_signs),
        clients=torch.tensor(builder.pair_clients),
        weights=torch.tensor(builder.pair_weights, dtype=torch.float64),
        references=torch.tensor(builder.pair_references, dtype=torch.float64),
    )


def _as_tensors(
    builder: _Builder, token_units: list[int], row_units: list[int], label_units: list[int]
) -> Pack:
    layout, total = builder.layout, len(builder.ids)
    ids, position_ids = torch.tensor(builder.ids), torch.tensor(builder.position_ids)
    types = torch.tensor(builder.types) if any(builder.types) else None
    where = torch.arange(total)
    mask = real = None
    if layout.packed:
        ids, position_ids = ids[None], position_ids[None]
    else:
        longest = max(builder.lengths)
        row = torch.repeat_interleave(torch.arange(len(builder.lengths)), torch.tensor(builder.lengths))
        where = row * longest + position_ids
        padded = torch.full((len(builder.lengths) * longest,), layout.pad_id)
        ids = padded.index_copy(0, where, ids).view(-1, longest)
        mask = torch.zeros(ids.numel(), dtype=torch.bool).index_fill(0, where, True).view(-1, longest)
        position_ids = torch.arange(longest).expand(ids.shape[0], longest)
        real = where
    if types is not None:
        types = torch.zeros_like(ids).view(-1).index_copy(0, where, types).view_as(ids)
    virtual = (where[builder.virtual], torch.tensor(builder.virtual_source)) if builder.virtual else None
    keys, tokens, labels = zip(*builder.runs, strict=True)
    return Pack(
        ids=ids,
        position_ids=position_ids,
        types=types,
        mask=mask,
        starts=tuple(builder.starts),
        lengths=tuple(builder.lengths),
        prefix_starts=tuple(builder.prefix_starts),
        shared=layout.shared,
        units=tuple(token_units if layout.packed else row_units),
        client_tokens=tuple(token_units),
        virtual=virtual,
        sources=where[builder.sources],
        targets=torch.tensor(builder.targets),
        weights=torch.tensor(builder.weights, dtype=torch.float64),
        label_clients=torch.tensor(builder.label_clients),
        label_units=tuple(label_units),
        run_keys=keys,
        run_tokens=tokens,
        run_labels=labels,
        real=real,
        pairs=_pairs(builder),
    )
