"""Whether a client trains on the server's base: both look, so that the logs of both say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedloom.errors import UserError
from fedloom.runtimes.flower.messages import quoted

SERVERS = "base"
"""What the server's fingerprints are called in the question who a client is."""


def check_base(server: Mapping[str, Any], client: int, found: Mapping[str, Any]) -> None:
    """Make sure that two bases are the same; a part of which one side says nothing is not compared.

    Args:
        server: The fingerprints of the server's base, among other things.
        client: Whose the others are.
        found: Those of the client's, among other things.

    Raises:
        UserError: They are not; names the part that differs.
    """
    for part, called in (("weights", "other base weights"), ("tokenizer", "another tokenizer")):
        here, there = found.get(part), server.get(part)
        if here and there and here != there:
            raise UserError(
                f"client {client + 1} has {called} than the server ({quoted(here)}, not {quoted(there)}); "
                "give both the same files of the model, of one revision and quantisation"
            )
