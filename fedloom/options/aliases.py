"""One vocabulary: every command takes the documented names of both original systems.

FedGPL (`fedloom fed`) and DFL-LoRA (`fedloom dfl`) name the same things differently. A command has one of two
names, and takes the other for it, as a flag, in YAML and from Python. Defaults stay each command's own.
"""

from collections.abc import Collection, Mapping
from typing import Any

from fedloom.errors import UserError

SAME = (
    ("client_num", "num_clients"),
    ("max_steps", "num_rounds"),
    ("model_name", "model_checkpoint"),
    ("data_name", "dataset_type"),
    ("val_steps", "eval_every"),
    ("client_batch_per_step", "local_steps"),
    ("client_epoch", "local_epochs"),
    ("client_lr", "lr"),
    ("system_prompt", "instruction"),
    ("method", "preset"),
)
"""Names of one thing; where a command has both, they are two (`lr` of `fedloom fed` is the server's)."""

RENAMED = (("data_seed", "seed"),)
"""An option, and a name that stands for it in a command that trains nothing, and so has no such option."""


def aliases(names: Collection[str]) -> dict[str, str]:
    """Other names that a command takes, and its own for each.

    Args:
        names: Of its options.
    """
    found = {other: own for own, other in RENAMED if own in names and other not in names}
    for pair in SAME:
        for own, other in (pair, pair[::-1]):
            if own in names and other not in names:
                found[other] = own
    return found


def by_own_names(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Given options under a command's own names; unknown ones stay as they are.

    Args:
        given: Options by any of their names.
        names: Of the command's options.

    Raises:
        UserError: One is given under both of its names.
    """
    own = aliases(names)
    for other, name in own.items():
        if other in given and name in given:
            raise UserError(f"{other}: is another name of {name}, which is given too; leave one of them out")
    return {own.get(name, name): value for name, value in given.items()}
