"""Clients of unequal LoRA rank: what each is handed, what it sends, and how that is put together.

    HetLoRA     Cho et al., 2024, arXiv:2401.06432     factors are cut to a client's rank, padded with zeros
    FlexLoRA    Bai et al., 2024, arXiv:2402.11505     products are cut by SVD, and averaged
    LoRA-FAIR   Bian et al., 2025, arXiv:2411.14961    likewise, of factors whose product is near the mean

The server's adapter has the largest rank, R. Client k of rank r_k works with its first r_k rows of A and
columns of B, at its own scale s_k = alpha / r_k; within the engine, and wherever rows are combined, it is
padded to R with zeros (see `model.adapters.ranks`). Where factors are combined, the server's own go out as
they are cut. Where products are combined, a client is handed the product that it can hold,
s_k B_k A_k = s_R B[:, :r_k] A[:r_k], so that B is scaled on its way out, and its product counts by s_k / s_R
on its way in; after FlexLoRA's SVD the rows stand in the order of their weight. With all ranks equal nothing
is cut, padded or scaled. Of HetLoRA this is the cutting and padding; its weights, by the norm of a client's
product, are `lora_aggregations.hetlora`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedloom.model.adapters.ranks import padded, truncated
from fedloom.model.bank import Row

_B = ".lora_B.weight"


@dataclass(frozen=True)
class Ranks:
    """The clients' ranks.

    Attributes:
        clients: Of each client.
        largest: R.
        factors: s_k / s_R of each client.
        products: Whether products are combined, not factors.
    """

    clients: Sequence[int]
    largest: int
    factors: Sequence[float]
    products: bool

    def sent(self, row: Row, client: int) -> Row:
        """A row as it crosses the wire to or from a client: cut to its rank."""
        return truncated(row, self.clients[client])

    def handed_out(self, adapter: Row, client: int) -> Row:
        """Where a client starts: the server's adapter at its rank and scale, padded to R.

        Args:
            adapter: The server's, or as it was `sent`.
            client: Which client.
        """
        row = padded(truncated(adapter, self.clients[client]), self.largest)
        if not self.products:
            return row
        return {n: t / self.factors[client] if n.endswith(_B) else t for n, t in row.items()}

    def change(self, before: Row, delta: Row, client: int) -> Row:
        """What a client's change is to the server's adapter: where the client is now, less the adapter.

        Args:
            before: The server's adapter.
            delta: The client's change, as it was `sent`.
            client: Which client.
        """
        start, moved = self.handed_out(before, client), padded(delta, self.largest)
        return {name: (start[name] + moved[name]) - t for name, t in before.items()}

    def padded(self, row: Row) -> Row:
        """A row that was `sent`, with zeros up to R."""
        return padded(row, self.largest)

    def weight(self, client: int) -> float:
        """By what a client's product counts beside its weight."""
        return self.factors[client] if self.products else 1.0
