"""Where metrics go beside metrics.jsonl: the words of `report_to`, and whether they can be had."""

from importlib.util import find_spec

from fedloom.errors import UserError, shown
from fedloom.options.synonyms import did_you_mean

NONE = "none"
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Name, and the package that it is imported from."""


def tracker_names(report_to: str) -> list[str]:
    """The names in `report_to`, each once: ``"tensorboard, wandb" -> ["tensorboard", "wandb"]``."""
    names = [name.strip() for name in report_to.split(",")]
    return [name for name in dict.fromkeys(names) if name and name != NONE]


def check_trackers(report_to: str) -> None:
    """Judge `report_to`, without importing anything.

    Raises:
        UserError: A name is unknown, stands beside `none`, or its package is not installed.
    """
    names, words = tracker_names(report_to), [word.strip() for word in report_to.split(",")]
    if NONE in words and names:
        raise UserError(f"report_to: {shown(report_to)} is none and more; give none alone, or leave it out")
    if not names and NONE not in words:
        raise UserError(f"report_to: {shown(report_to)!r} names nothing; give {', '.join(TRACKERS)}, or none")
    for name in names:
        if name not in TRACKERS:
            known = (*TRACKERS, NONE)
            raise UserError(
                f"report_to: {shown(name)} is not one of {', '.join(known)}, or several with commas between"
                f"{did_you_mean(name, known)}"
            )
        found = find_spec(TRACKERS[name])
        if found is None or found.origin is None:  # a folder of that name, as wandb itself leaves one
            raise UserError(
                f"report_to: {name} is not installed; pip install 'fedloom[{name}]', or leave it out"
            )
