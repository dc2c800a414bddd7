"""Rows for a run to read, and what it leaves."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedloom.data.arithmetic import generate


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_problems(folder: Path, train: int = 24, validation: int = 4, test: int = 4) -> Path:
    """Some of the embedded problems: to tokenise all thousands takes longer than to train on them."""
    problems = [dataclasses.asdict(problem) for problem in generate(train + validation + test, seed=1)]
    write_rows(folder / "validation.jsonl", problems[:validation])
    write_rows(folder / "test.jsonl", problems[validation : validation + test])
    write_rows(folder / "train.jsonl", problems[validation + test :])
    return folder


def write_sums(folder: Path, train: int = 16, validation: int = 4, test: int = 2) -> Path:
    """Sums of a few words: for a run that is to take no time."""
    sums = [{"question": f"{i} and {i}?", "answer": f"{i * 7 % 11}"} for i in range(train)]
    for part, count in (("train", train), ("validation", validation), ("test", test)):
        write_rows(folder / f"{part}.jsonl", sums[:count])
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics, one row a round."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoint(folder: Path, round_: int | None = None) -> Path:
    """A round's, or the last."""
    if round_ is None:
        return max((folder / "checkpoints").glob("round-*"))
    return folder / "checkpoints" / f"round-{round_:06d}"


@contextmanager
def states_kept() -> Iterator[None]:
    """The first checkpoint of a run keeps its state until the end, so that the run can go on from there."""
    with mock.patch("fedloom.training.loop.drop_older_states", lambda folder, proven: None):
        yield


def lose_checkpoints(folder: Path, after: int) -> None:
    """Leave a run as it lies when its process is killed before it has saved what follows a round.

    The state after that round must be there, or the run would begin again: see `states_kept`.
    """
    assert (checkpoint(folder, after) / "state").exists()
    for saved in (folder / "checkpoints").glob("round-*"):
        if int(saved.name.removeprefix("round-")) > after:
            shutil.rmtree(saved)
    (folder / "summary.json").unlink()


def adapter(folder: Path, round_: int | None = None, peer: int | None = None) -> dict[str, Tensor]:
    """What a checkpoint holds for PEFT: of the server, or of one peer of many in a process."""
    own = "" if peer is None else f"peer-{peer:04d}"
    return load_file(checkpoint(folder, round_) / own / "adapter_model.safetensors")


def state(folder: Path, round_: int | None = None) -> dict[str, Tensor]:
    """What a checkpoint holds to go on from."""
    return load_file(checkpoint(folder, round_) / "state" / "tensors.safetensors")


def assert_close(mine: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    """The same names, and every entry the same to an absolute tolerance."""
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(
            mine[name], other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
