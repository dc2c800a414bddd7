"""What ranks trained, brought together: sums of updates, and the rows that peers of other ranks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import UserError
from fedloom.federation.aggregate import Collected
from fedloom.federation.choco import Payloads
from fedloom.federation.matrix import Edge, RoundMixing
from fedloom.federation.update import Update
from fedloom.model.bank import AdapterBank, Row, bytes_of
from fedloom.runtimes.group import Group


def collect_over_ranks(group: Group, local: Collected) -> Collected:
    """What all ranks have collected; who counted, in the order of the clients.

    Changes and memories of single clients come to every rank: any of them may train a client in the next
        round.

    Raises:
        UserError: Ranks have trained different parameters.
    """
    if group.size == 1:
        return local
    # An aggregator that needs every change has no total; a rank whose clients are all left out has neither.
    trained = sorted({*local.total, *(name for row in local.deltas.values() for name in row)})
    if len({tuple(names) for names in group.gather(trained) if names}) > 1:
        raise UserError(
            "the ranks have selected different layers, because their processors round differently; "
            "run all ranks on machines of one kind, with the same versions"
        )
    kept = [Update(**u) for rank in group.gather([asdict(u) for u in local.kept]) for u in rank]
    left_out = [client for rank in group.gather(local.left_out) for client in rank]
    return Collected(
        group.sum(local.total),
        _rows_of_all(group, local.deltas),
        _sum_of_all(group, local.sent),
        _rows_of_all(group, local.memories),
        sorted(kept, key=lambda update: update.client),
        sorted(left_out),
        sum(group.gather(local.bytes_up)),
        sum(group.gather(local.unclipped)),
    )


def _sum_of_all(group: Group, local: Row) -> Row:
    """The sums over ranks, of which some may have nothing to add."""
    shapes: dict[str, list[int]] = {}
    for rank in group.gather({name: list(t.shape) for name, t in local.items()}):
        shapes |= rank
    if not shapes:
        return {}
    dtype = next((t.dtype for t in local.values()), torch.float32)
    device = group.device or torch.device("cpu")
    zeros = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    return group.sum({**zeros, **local})


def _rows_of_all(group: Group, local: Mapping[int, Row]) -> dict[int, Row]:
    """The rows of the clients of all ranks."""
    # Every row is on one rank and zero on the others.
    flat = {f"{client}/{name}": t for client, row in local.items() for name, t in row.items()}
    rows: dict[int, Row] = {}
    for key, t in _sum_of_all(group, flat).items():
        client, _, name = key.partition("/")
        rows.setdefault(int(client), {})[name] = t
    return dict(sorted(rows.items()))


def sum_of_gradients(group: Group, local: Row, loss: float) -> tuple[Row, float]:
    """The sums over ranks of what each has of a gradient and of its loss."""
    return group.sum(local), sum(group.gather(loss))


def rows_heard(group: Group, blocks: Sequence[range], local: AdapterBank, mixing: RoundMixing) -> AdapterBank:
    """The rows of those that this rank's peers hear in a round, in ascending order.

    From each rank come the rows that a peer of this one hears, each once, in one message.

    Args:
        group: The run's processes.
        blocks: The peers of each rank.
        local: Rows of this rank's peers; only what is mixed.
        mixing: The round's matrix.
    """
    if group.size == 1:
        return local
    peers = blocks[group.rank]
    flat = torch.cat([t.flatten(1) for t in local.tensors.values()], 1)
    outgoing, incoming = {}, {}
    for rank, block in enumerate(blocks):
        wanted = _of(peers, mixing.heard_by(block))
        if rank != group.rank and len(wanted):
            outgoing[rank] = flat.index_select(0, torch.from_numpy(wanted - peers.start).to(flat.device))
        needed = _of(block, mixing.heard_by(peers))
        if rank != group.rank and len(needed):
            incoming[rank] = flat.new_empty(len(needed), flat.shape[1])
    group.exchange(outgoing, incoming)
    # Blocks follow each other as ranks do, so their rows in this order are ascending.
    heard = torch.cat(
        [flat if rank == group.rank else incoming[rank] for rank in sorted([*incoming, group.rank])]
    )
    pieces = heard.split([t[0].numel() for t in local.tensors.values()], 1)
    return AdapterBank(
        {
            name: piece.reshape(-1, *t.shape[1:])
            for (name, t), piece in zip(local.tensors.items(), pieces, strict=True)
        }
    )


def payloads_heard(
    group: Group, blocks: Sequence[range], local: Payloads, mixing: RoundMixing, like: Row
) -> Payloads:
    """All payloads of a round that leave or reach this rank's peers.

    From each rank come those that its peers send to peers of this one, in one message.

    Args:
        group: The run's processes.
        blocks: The peers of each rank.
        local: What leaves this rank's peers.
        mixing: The round's matrix.
        like: A payload of the names, shapes and dtypes that every one has.
    """
    if group.size == 1:
        return local
    peers = blocks[group.rank]
    between: dict[int, list[Edge]] = {}
    for peer, heard in mixing.neighbourhoods(peers).items():
        for other in heard:
            if other not in peers:
                rank = next(rank for rank, block in enumerate(blocks) if other in block)
                between.setdefault(rank, []).append((peer, other))
    size, device = bytes_of(like), group.device or torch.device("cpu")
    outgoing, incoming = {}, {}
    for rank, edges in between.items():
        outgoing[rank] = torch.cat([_as_bytes(local[edge], device) for edge in sorted(edges)])
        incoming[rank] = torch.empty(size * len(edges), dtype=torch.uint8, device=device)
    group.exchange(outgoing, incoming)
    arrived = dict(local)
    for rank, edges in between.items():
        # In the order in which the other rank sends them.
        reverse = sorted((other, peer) for peer, other in edges)
        for edge, piece in zip(reverse, incoming[rank].split(size), strict=True):
            arrived[edge] = _from_bytes(piece, like)
    return arrived


def _as_bytes(payload: Row, device: torch.device) -> Tensor:
    # Of a payload from a GPU some may lie on the CPU: a seed, for one.
    there = (payload[name].to(device) for name in sorted(payload))
    return torch.cat([t.contiguous().flatten().view(torch.uint8) for t in there])


def _from_bytes(flat: Tensor, like: Row) -> Row:
    pieces = flat.split([like[name].numel() * like[name].element_size() for name in sorted(like)])
    # A piece may begin where its dtype's numbers cannot: a copy begins anywhere.
    return {
        name: piece.clone().view(like[name].dtype).view(like[name].shape)
        for name, piece in zip(sorted(like), pieces, strict=True)
    }


def _of(block: range, peers: np.ndarray) -> np.ndarray:
    """Those of some peers that a block holds."""
    return peers[(peers >= block.start) & (peers < block.stop)]
