"""How many examples each client says to have, where only they know: by that number it spends its epsilon."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from fedloom.errors import UserError
from fedloom.options.privacy import delta_of
from fedloom.runs.files import write_atomically
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.messages import quoted
from fedloom.training.private import ExampleBudget

SIZES_FILE = "client_examples.json"
"""In a run's folder: the number of examples of each client, by its number from 1."""

FACT = "examples"
"""What a client tells of it when it says who it is."""

_MOST = 2**40


@dataclass(frozen=True)
class ClientSizes:
    """The sizes of a run's clients; one that is known stays, though its client is gone or the run resumed.

    Attributes:
        folder: The run's.
        budget: The run's, whose sizes these are.
    """

    folder: Path
    budget: ExampleBudget

    @classmethod
    def of_the_run(cls, folder: Path, budget: ExampleBudget) -> ClientSizes:
        """What is known of a run's clients.

        Args:
            folder: The run's.
            budget: The run's; its sizes are not known.

        Raises:
            Damaged: The file is not as it was written.
        """
        sizes = [0] * len(budget.sizes)
        for number, size in read_mapping(folder / SIZES_FILE).items():
            if not (number.isdigit() and 0 < int(number) <= len(sizes) and _is_count(size)):
                raise Damaged(folder / SIZES_FILE, f"client {number[:40]!r} has {str(size)[:40]!r} examples")
            sizes[int(number) - 1] = size
        return cls(folder, replace(budget, sizes=sizes, leaves_out=True))

    def enter(self, client: int, content: Content) -> None:
        """Keep what a client says to have, before it is asked for anything.

        Args:
            client: Which it is.
            content: What it answered.

        Raises:
            UserError: It is no number, another one than before, or too large or too small for the budget.
        """
        size, known = content.facts.get(FACT), self.budget.sizes[client]
        if not _is_count(size):
            raise UserError(
                f"client {client + 1} gave {quoted(repr(size))} as the number of its examples, by which its "
                "epsilon is computed; is its fedloom of another version?"
            )
        if known not in (0, size):
            raise UserError(
                f"client {client + 1} has {size} examples and had {known} before, by which its epsilon is "
                "computed; give it the same data again, or start another run under another exp_name"
            )
        delta_of(self.budget.delta, size, f"examples of client {client + 1}")
        sizes = self.budget.sizes
        assert isinstance(sizes, list)
        sizes[client] = size
        if not known:
            by_number = {str(k + 1): n for k, n in enumerate(sizes) if n}
            write_atomically(self.folder / SIZES_FILE, json.dumps(by_number, indent=1) + "\n")


def _is_count(size: object) -> TypeGuard[int]:
    return type(size) is int and 0 < size < _MOST
