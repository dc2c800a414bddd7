"""What torchrun tells each process that it starts, read from the environment, and who of them speaks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedloom.config import UserError


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
        rank, size: Which of how many.
        local_rank, local_size: The same among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for the run."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place; without torchrun it is alone.

    Raises:
        UserError: The environment names a place that there cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in environment for name in names):
        return Place()
    given = {name: environment[name] for name in names}
    given["LOCAL_WORLD_SIZE"] = environment.get("LOCAL_WORLD_SIZE", given["WORLD_SIZE"])
    if all(value.isdecimal() for value in given.values()):
        rank, size, local_rank, local_size = map(int, given.values())
        if rank < size and local_rank < local_size <= size:
            return Place(rank, size, local_rank, local_size)
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    raise UserError(f"environment: {said} is no place in a run; start fedloom with torchrun, or unset these")


class RankLost(UserError):
    """Another process of the run can no longer be reached.

    Attributes:
        tells: Whether this process is the one that says so.
    """

    def __init__(self, message: str, tells: bool):
        super().__init__(message)
        self.tells = tells


def tells(error: UserError) -> bool:
    """Whether this process prints a mistake, which all processes have noticed: one of each machine does."""
    if isinstance(error, RankLost):
        return error.tells
    return os.environ.get("LOCAL_RANK", "0") == "0"
