"""Contents as Flower's records and messages."""

from __future__ import annotations

import json

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject

from fedloom.errors import shown
from fedloom.runtimes.flower.content import Content

_FACTS, _TENSORS = "fedloom", "fedloom-tensors"
_STYPE = "safetensors"
_MOST_FACTS = 2**20
_MOST_QUOTED = 300


def to_records(content_: Content) -> RecordDict:
    """Content as records: one for the facts, one array of bytes for all tensors together."""
    records = RecordDict({_FACTS: ConfigRecord({"json": json.dumps(content_.facts)})})
    if content_.tensors:
        # One array and not one per tensor: Flower moves every array in requests of its own.
        array = Array(dtype="uint8", shape=(len(content_.tensors),), stype=_STYPE, data=content_.tensors)
        records[_TENSORS] = ArrayRecord({"all": array})
    return records


def from_records(records: RecordDict) -> Content:
    """The content that `to_records` made records of; empty where there is none.

    Raises:
        ValueError: The records are others.
    """
    if _FACTS not in records:
        return Content()
    try:
        text = str(records.config_records[_FACTS]["json"])
        if len(text) > _MOST_FACTS:
            raise ValueError(f"{len(text)} characters of facts")
        facts = json.loads(text)
        record = records.array_records.get(_TENSORS)
        tensors = b"" if record is None else record["all"].data
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"not a message of fedloom ({quoted(error)})") from None
    if not isinstance(facts, dict):
        raise ValueError("not a message of fedloom (its facts are no object)")
    return Content(facts, tensors)


def quoted(what: object) -> str:
    """What a client sent, as a message or a log repeats it."""
    return shown(what, _MOST_QUOTED)


def bytes_on_the_wire(thing: InflatableObject) -> int:
    """Bytes of a message as Flower serialises it: metadata, records, arrays and their parts."""
    return len(thing.deflate()) + sum(map(bytes_on_the_wire, (thing.children or {}).values()))
