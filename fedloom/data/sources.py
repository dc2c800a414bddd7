"""From a data set, on the hub or in local files, to the problems to train on, validate on and test on.

A data set's own splits stay what they are. What is missing is taken from the training data by seed: a tenth
for a missing validation or test split, and 60/20/20 where nothing but training data is there. A published
test or validation split is never trained on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fedloom.data.example import Example, Preference, Splits
from fedloom.data.fields import NotLearnable, is_missing, label_of
from fedloom.data.files import read_local
from fedloom.data.glue import has_no_labels
from fedloom.data.randomness import numpy_rng
from fedloom.data.recognise import listed, recognised, say
from fedloom.data.rows import Located
from fedloom.data.saved_sets import rows_of
from fedloom.data.tasks import Task
from fedloom.errors import UserError, without_secrets

log = logging.getLogger(__name__)

T = TypeVar("T")


class Sourced(NamedTuple):
    """A row as the data set has it, what it makes, and where it stands."""

    row: Mapping[str, Any]
    example: Example
    where: str


def load_splits(task: Task, *, data_dir: str | Path | None, seed: int, token: str | None) -> Splits:
    """Loads a task's data.

    Args:
        task: The data set.
        data_dir: Local data with the fields of the hub's data set: a folder that has ``train.*`` and perhaps
            ``validation.*`` and ``test.*`` (jsonl, json, csv, tsv or parquet, in one file or numbered parts),
            a folder that ``save_to_disk`` wrote, or one file with everything. None: from the hub, or made
            here for an embedded task.
        seed: The seed of the run; decides what is held out, and the problems of an embedded task.
        token: Hub token for gated data sets; None: the one of ``HF_TOKEN`` or of a login, if there is one.

    Raises:
        UserError: If the data cannot be had, or a row is not what the task needs.
    """
    if data_dir is None and task.embedded is not None and not task.limits:
        return task.embedded(seed)
    rows = load_whole(task, data_dir=data_dir, seed=seed, token=token)
    return Splits(**{split: [made.example for made in part] for split, part in rows.items()})


def load_whole(
    task: Task, *, data_dir: str | Path | None, seed: int, token: str | None
) -> dict[str, list[Sourced]]:
    """Loads what `load_splits` does, with the rows: for a field that is no part of a problem."""
    return _complete(load_rows(task, data_dir=data_dir, seed=seed, token=token), seed, announced=task.own)


def load_rows(
    task: Task, *, data_dir: str | Path | None, seed: int, token: str | None
) -> dict[str, list[Sourced]]:
    """Loads the splits that a data set itself has: "train", and "validation" and "test" where there are such.

    Nothing is held out. A published test split without labels does not count as one. Arguments and errors are
    those of `load_splits`.
    """
    if task.given is not None:
        rows = dict(task.given)
    elif data_dir is not None:
        rows = read_local(Path(data_dir), task.split_names, limits=task.local_limits)
        if task.own:
            task = recognised(task, rows["train"], [rows[split] for split in rows if split != "train"])
    elif task.brought:
        fields = " and ".join(f"'{field}'" for field in task.fields)
        raise UserError(
            f"data_dir: {task.name} is data of your own, and none was given; give a folder with train.jsonl "
            f"(or .json, .csv, .tsv, .parquet), or one such file, whose rows have the fields {fields} or are "
            "of another known format (docs/data.md)."
        )
    elif task.embedded is not None:
        every = _embedded_rows(task.name, task.embedded(seed))
        rows = {split: located[: task.local_limits.get(split)] for split, located in every.items()}
    else:
        rows = read_hub(task, token)
    if len(rows["train"]) == task.limits.get("train"):
        taken = f"{len(rows['train']):,} training rows"
        say(f"train_limit: of {task.name} the first {taken} are read, and no others")
    if task.label_names and "test" in rows and has_no_labels([task.mapped(row) for _, row in rows["test"]]):
        log.info("%s: the test split has no labels (all are -1) and is not used", task.name)
        del rows["test"]
    return {split: read_examples(task, located) for split, located in rows.items()}


def _embedded_rows(name: str, splits: Splits) -> dict[str, list[Located]]:
    return {
        split: [
            Located(
                f"{name}, split {split}, row {number}",
                {"question": made.question, "answer": made.answer, "label": made.label},
            )
            for number, made in enumerate(examples, start=1)
        ]
        for split, examples in vars(splits).items()
    }


def read_hub(task: Task, token: str | None) -> dict[str, list[Located]]:
    """Reads the rows of a data set on the hub, by split; where not all are wanted, they are streamed.

    Raises:
        UserError: If it cannot be had.
    """
    import datasets

    try:
        streamed = {"streaming": True} if task.limits else {}
        loaded = datasets.load_dataset(task.hub, task.hub_config, token=token or None, **streamed)
        if streamed:
            return rows_of(loaded, task.hub, task.split_names, limits=task.limits)
    except UserError:
        raise
    # What a network, a hub or a builder of data sets raises is in nobody's list.
    except Exception as error:
        cause = without_secrets(str(error).strip().partition("\n")[0], token)
        known = "a token was given" if token or os.environ.get("HF_TOKEN") else "no token was given"
        raise UserError(
            f"data set '{task.hub}' could not be loaded from the hub: {cause} ({type(error).__name__}; "
            f"{known}). Without a connection, give local files with --data_dir; for a gated data set, accept "
            "its terms on the hub and set HF_TOKEN."
        ) from error
    return rows_of(loaded, task.hub, task.split_names)


def read_examples(task: Task, rows: Sequence[Located]) -> list[Sourced]:
    """Makes the problems of one split, of those rows that belong to the task.

    What nothing can be learned from is counted and left out: rows without an answer, and those that call
    tools, show images or prefer nothing.

    Raises:
        UserError: If a row is not what the task needs, or none belongs to it.
    """
    made = []
    unfit = ""
    for where, row in rows:
        mapped = task.mapped(row)
        _check_fields(task, where, mapped)
        try:
            if task.keep(mapped):
                example = task.to_example(mapped)
                if isinstance(example, Preference):
                    example = example.compared()
                made.append(Sourced(row, example, where))
        except NotLearnable as error:
            unfit = unfit or f"{where.rpartition(', ')[2]}: {error}"
        except (ValueError, ArithmeticError) as error:
            raise UserError(f"{where}: {error} (data set {task.name}).") from error
    if not made:
        origin = rows[0].where.rpartition(", ")[0] if rows else "the data set"
        why = f"can be learned from; {unfit}" if unfit else f"belongs to the task {task.name}"
        raise UserError(f"{origin}: none of the {len(rows)} rows {why}.")
    if task.own and len(made) < len(rows):
        origin = rows[0].where.rpartition(", ")[0]
        log.warning(
            "%s: %d of %d rows have nothing to learn and are left out (%s)",
            origin,
            len(rows) - len(made),
            len(rows),
            f"the first is {unfit}" if unfit else "no message of the assistant",
        )
    return made


def _check_fields(task: Task, where: str, row: Mapping[str, Any]) -> None:
    needs = f"the format {task.data_format}" if task.own and task.data_format != "auto" else task.name
    for field in task.fields:
        names = field.split("|")
        present = [name for name in names if name in row]
        if not present:
            needed = ", ".join(f"'{field.partition('|')[0]}'" for field in task.fields)
            how = f" with --columns {names[0]}=COLUMN" if task.own else ""
            raise UserError(
                f"{where}: no field '{names[0]}', which {needs} needs; the fields found are "
                f"{listed(row)}. Rename them{how}, or write the rows anew with {needed}."
            )
        if is_missing(value := row[present[0]]):
            number = f" ({value})" if isinstance(value, float) else ""
            raise UserError(f"{where}: field '{present[0]}' is empty{number}, and {needs} needs it.")


def field_values(rows: Sequence[Sourced], field: str) -> list[str]:
    """Returns the rows' values of a field, as text.

    Raises:
        UserError: If a row has none, or one that is neither text nor a number; names it.
    """
    values = []
    for made in rows:
        try:
            values.append(label_of(made.row, field))
        except ValueError as error:
            raise UserError(f"{made.where}: {error}; name another field.") from error
        if not values[-1]:
            raise UserError(
                f"{made.where}: field is '{field}', but the row has none; its fields are {listed(made.row)}."
            )
    return values


def _complete(parts: dict[str, list[T]], seed: int, announced: bool = False) -> dict[str, list[T]]:
    """Holds out of the training data whatever split is missing."""
    missing = [split for split in ("validation", "test") if split not in parts]
    examples = parts["train"]
    share = 5 if len(missing) == 2 else 10
    count = max(1, len(examples) // share)
    if len(examples) <= count * len(missing):
        raise UserError(
            f"{len(examples)} training examples are too few to hold out the missing split "
            f"({' and '.join(missing)}); give at least {len(missing) + 1}, or files of these names."
        )
    order = numpy_rng(seed, "split").permutation(len(examples))
    for place, split in enumerate(missing):
        parts[split] = [examples[index] for index in order[place * count : (place + 1) * count]]
    if missing and announced:
        names = " and ".join(f"{count} for {split}" for split in missing)
        say(f"held out of {len(examples)} training examples, drawn by seed {seed}: {names}")
    # What remains for training stays in the data set's own order.
    parts["train"] = [examples[index] for index in sorted(order[count * len(missing) :])]
    return parts
