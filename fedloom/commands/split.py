"""`fedloom split`: a data set divided into clients' folders, as `fedloom fed` and `fedloom dfl` read them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.commands.view import RECORD, counts_table, label_counts
from fedloom.data.own import open_task
from fedloom.data.partition import partition as divide
from fedloom.data.rows import reason
from fedloom.data.sources import Sourced, field_values, load_whole
from fedloom.errors import UserError, plain_console, shown
from fedloom.options.own_data import column_names
from fedloom.options.partition import Kind, check_field

if TYPE_CHECKING:
    from datasets import Dataset


def run_split(
    *,
    data_name: str,
    data_dir: str | None,
    data_format: str = "auto",
    columns: str | None = None,
    train_limit: int | None = None,
    num_clients: int,
    partition: Kind,
    alpha: float,
    min_size: int,
    labels_per_client: int,
    field: str | None,
    data_seed: int,
    output_path: str,
    token: str | None,
) -> None:
    """Writes each client's part of the training data to a folder of its own.

    ``output_path`` then holds ``client_1`` to ``client_N``, ``validation`` and ``test`` (folders that
    ``datasets.load_from_disk`` opens, with the data set's own fields), and ``split.json``. A split that the
    data set lacks is held out of the training data, as training on it would, so that clients' folders have
    none of the examples that `fedloom eval` judges by.

    Args:
        data_name: A name in `TASKS`, of a data set on the hub, or a path.
        data_dir: Local data, as for `load_splits`; None: from the hub or embedded.
        data_format: Of the user's own data, as for `fedloom.data.own.open_task`.
        columns: Which column is which, as ``question=instr,answer=out``.
        train_limit: How many training rows are read and divided, from the first on; None: all.
        num_clients: How many clients there are.
        partition: As for `fedloom.data.partition.partition`, like the next three.
        alpha: Of "dirichlet" and "quantity".
        min_size: The fewest examples that a client may have.
        labels_per_client: Of "shards".
        field: Of "by_field": the rows' field by which they stay together.
        data_seed: Decides what is held out, as in training, and who has what.
        output_path: A folder that does not exist yet or is empty.
        token: Hub token for gated data sets.

    Raises:
        UserError: If the folder is not empty, the data cannot be had, or there is no such partition.
    """
    options = {name: value for name, value in locals().items() if name != "token"}
    output = Path(output_path)
    _check_output(output)
    check_field(partition, field)
    task = open_task(
        data_name,
        data_dir=data_dir,
        data_format=data_format,
        columns=column_names(columns),
        limits={"train": train_limit} if train_limit is not None else {},
        token=token,
    )
    parts = load_whole(task, data_dir=data_dir, seed=data_seed, token=token)
    train = parts.pop("train")
    shares = divide(
        partition,
        [made.example.label for made in train],
        num_clients,
        seed=data_seed,
        alpha=alpha,
        min_size=min_size,
        labels_per_client=labels_per_client,
        values=field_values(train, field) if field is not None else None,
    )
    labels = {
        f"client_{number}": [train[place].example.label for place in share]
        for number, share in enumerate(shares, start=1)
    }
    held_out = {split: [made.example.label for made in part] for split, part in parts.items()}
    counts = label_counts(labels | held_out, task)
    whole = _dataset(train)
    others = {split: _dataset(part) for split, part in parts.items()}
    try:
        for name, share in zip(labels, shares, strict=True):
            _save(whole.select(share), output / name)
        for split, dataset in others.items():
            _save(dataset, output / split)
        _write_record(output / RECORD, options, counts)
    except OSError as error:
        raise UserError(
            f"output_path '{output}' cannot be written ({reason(error)}); choose another place, or remove "
            "what is there and try again."
        ) from error
    console = plain_console()
    console.print(counts_table({name: counts[name] for name in labels}, f"{shown(data_name)}, {partition}"))
    for split in ("validation", "test"):
        console.print(f"{split}: {len(held_out[split])} examples")
    hints = (
        f"--dataset_path_template '{output}/client_{{i}}'",
        f"--val_dataset_path_template '{output}/validation'",
    )
    console.print(f"Written to {output}; train on it with `fedloom fed` or `fedloom dfl`", soft_wrap=True)
    for hint in hints:
        console.print(f"  {hint}", soft_wrap=True)


def _check_output(output: Path) -> None:
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        what = "is not empty" if output.is_dir() else "is a file" if output.exists() else "is a broken link"
        raise UserError(
            f"output_path '{output}' {what}; give a folder that does not exist yet, or remove what is there."
        )


def _dataset(rows: Sequence[Sourced]) -> Dataset:
    """The rows with all fields that any of them has."""
    import datasets

    names = dict.fromkeys(name for made in rows for name in made.row)
    columns = {name: _column([made.row.get(name) for made in rows]) for name in names}
    try:
        return datasets.Dataset.from_dict(columns)
    except Exception as error:
        raise _no_table(columns, rows) from error


def _column(values: list[Any]) -> list[Any]:
    """A field's values; numbers as text where one has over 64 bits, as some ids do, or others are text."""
    large = any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values)
    if not large and str not in {*map(type, values)}:
        return values
    return [_as_text(value) if isinstance(value, int | float) else value for value in values]


def _as_text(value: int | float) -> str | None:
    return None if value != value else str(value)


def _no_table(columns: Mapping[str, list[Any]], rows: Sequence[Sourced]) -> UserError:
    """Says which field, and where, is of another kind than in the rows before."""
    import pyarrow  # type: ignore[import-untyped]

    for name, values in columns.items():
        first, last = 0, len(values)  # the fewest rows that do not make a column
        while first < last:
            middle = (first + last) // 2
            try:
                pyarrow.array(values[: middle + 1])
                first = middle + 1
            except Exception:
                last = middle
        if first < len(values):
            return UserError(
                f"{rows[first].where}: field '{shown(name)}' is {shown(values[first])!r}, of another kind "
                "than in the rows before; a table needs values of one kind in all rows."
            )
    return UserError(
        "the data's fields do not make a table, which needs values of one kind in all rows of a field."
    )


def _save(dataset: Dataset, folder: Path) -> None:
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one for every client would bury the table
    try:
        dataset.save_to_disk(str(folder))
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _write_record(path: Path, options: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> None:
    record = {
        "seed": options["data_seed"],
        "options": options,
        "sizes": {name: sum(of_label.values()) for name, of_label in counts.items()},
        "labels": counts,
    }
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
