"""Changes as they are."""

from __future__ import annotations

from fedloom.federation.codecs import Codec
from fedloom.model.bank import Row


def none() -> Codec:
    """The row itself."""

    def decode(payload: Row, like: Row) -> Row:
        return {name: payload[name] for name in like}

    return Codec(lambda row, seed: row, decode, lossy=False)
