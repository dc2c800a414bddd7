"""Atomic checkpoints and exact resume.

A checkpoint is a folder that any PEFT program can load, with all that exact resume needs beside it:

    <out_dir>/<exp_name>/checkpoints/round-000100/
        adapter_config.json, adapter_model.safetensors     as PEFT writes them
        state/tensors.safetensors, state/state.json        only in the newest checkpoint, and in the one
                                                           before until the newest has proven itself
        checksums.json                                     SHA-256 of all of these

It appears by a rename, so that a run killed at any moment leaves whole checkpoints only. A state has proven
itself once validation, or a round that began from it, came to finite numbers; until then the one before
stays, so that there always is one from which a run can go on.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.runs.files import TEMPORARY, remove, save_tensors, sync, sync_tree, writing
from fedloom.runs.reading import Damaged, read_json, read_tensors, verify, write_checksums

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_NAME = re.compile(r"round-(\d{6,15})")


def save_checkpoint(
    folder: Path,
    round_: int,
    *,
    write_adapter: Callable[[Path], None],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a round and return its folder.

    The oldest state stays beside the new one until `drop_older_states`; those between them go. A checkpoint
    of the same round that is complete stays as it is: equal rounds of one run are equal.

    Args:
        folder: The run's folder.
        round_: Rounds done so far.
        write_adapter: Writes an ordinary adapter folder into the (existing) folder that it is given.
        tensors: All that must come back bit by bit: any shapes, dtypes and devices.
        state: The rest, as JSON keeps it: lists and not tuples, keys that are strings.

    Raises:
        CannotWrite: The disk is full, or may not be written; earlier checkpoints stand.
    """
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"round-{round_:06d}"
    with writing(checkpoints):
        checkpoints.mkdir(parents=True, exist_ok=True)
        for stray in checkpoints.glob(f"{TEMPORARY}*"):
            remove(stray)
    if not (final / "state").is_dir():
        temporary = checkpoints / f"{TEMPORARY}{final.name}"
        try:
            with writing(temporary):
                (temporary / "state").mkdir(parents=True)
                write_adapter(temporary)
                save_tensors(temporary / "state" / "tensors.safetensors", _unshared(tensors))
                text = json.dumps(dict(state), indent=1)
                (temporary / "state" / "state.json").write_text(text, encoding="utf-8")
                write_checksums(temporary)
                sync_tree(temporary)
                remove(final)
                os.rename(temporary, final)
                sync(checkpoints)
        except BaseException:
            # On a full disk the space is needed; and what is unfinished is of no use to anybody.
            remove(temporary)
            raise
    for older in _complete(folder)[1:]:
        if round_of(older) < round_:
            _drop_state(older)
    return final


def drop_older_states(folder: Path, proven: int) -> None:
    """Let checkpoints keep their adapter alone that are older than the last one up to round ``proven``."""
    good = [path for path in _complete(folder) if round_of(path) <= proven]
    for path in good[:-1]:
        _drop_state(path)


def drop_unproven_states(folder: Path, proven: int) -> None:
    """Let a run go on from round ``proven`` or before: what came later has led to nothing finite."""
    for path in _complete(folder):
        if round_of(path) > proven:
            _drop_state(path)


def oldest_state(folder: Path) -> int:
    """The round of the oldest checkpoint that has a state; 0 where none has."""
    return min(map(round_of, _complete(folder)), default=0)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder that can be resumed from, or None."""
    return next(reversed(_complete(folder)), None)


def checkpoints_of(folder: Path) -> list[Path]:
    """All checkpoints of a run's folder, the oldest first; those that have no state any more too."""
    found = (folder / "checkpoints").iterdir() if (folder / "checkpoints").is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name) and path.is_dir()), key=round_of)


def intact_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files are as they were written; None where there is no checkpoint.

    One that is damaged, where there is an older one to go on from, loses its state.

    Raises:
        UserError: There are checkpoints, and all are damaged.
    """
    complete = _complete(folder)
    for place, path in reversed(list(enumerate(complete))):
        try:
            load_state(path)
            return path
        except Damaged as error:
            if place == 0:
                raise
            log.warning("%s; going on from %s, the one before", error, complete[place - 1])
            _drop_state(path)
    return None


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the state of a checkpoint, as `save_checkpoint` took them.

    Raises:
        Damaged: They are not as they were written.
    """
    files = [path / "state" / name for name in ("tensors.safetensors", "state.json")]
    try:
        for file in files:
            verify(file)
        tensors, state = read_tensors(files[0]), read_json(files[1])
        if not isinstance(state, dict) or state.get("round") != round_of(path):
            raise Damaged(files[1], f"it is not of round {round_of(path)}")
    except Damaged as error:
        raise damaged_checkpoint(path, error.path.relative_to(path), error.why) from None
    return tensors, state


def damaged_checkpoint(path: Path, where: object, why: object) -> Damaged:
    """The user error of a checkpoint that cannot be resumed from; `where` and `why` say what is wrong."""
    return Damaged(
        path,
        f"the checkpoint is damaged: {where}: {why}",
        "put a copy of it back, or remove this folder: --resume then goes on from an older state, or begins "
        "again where there is none; or take another --exp_name",
    )


def check_state(
    path: Path, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Make sure that a checkpoint holds the tensors that its run has.

    Args:
        path: The checkpoint.
        tensors: What it holds.
        expected: Tensors of the names, shapes and dtypes that it must hold.

    Raises:
        Damaged: Others; names the first.
    """
    for name in sorted(tensors.keys() | expected.keys()):
        was, wanted = (_kind(group.get(name)) for group in (tensors, expected))
        if was != wanted:
            raise damaged_checkpoint(path, name, f"it is {was}, and this run has {wanted}")


def are_counts(value: object, length: int) -> bool:
    """Whether something that JSON held is a list of so many whole numbers, none negative."""
    return (
        isinstance(value, list)
        and len(value) == length
        and all(type(count) is int and 0 <= count < 2**53 for count in value)
    )


def _kind(t: torch.Tensor | None) -> str:
    return "missing" if t is None else f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"


def _complete(folder: Path) -> list[Path]:
    """The checkpoints of a run that have a state, the oldest first."""
    return [path for path in checkpoints_of(folder) if (path / "state").is_dir()]


def round_of(checkpoint: Path) -> int:
    """Rounds done at a checkpoint."""
    return int(checkpoint.name.removeprefix("round-"))


def _drop_state(checkpoint: Path) -> None:
    # The rename makes the state vanish at once; a half removed one would look complete.
    aside = checkpoint.parent / f"{TEMPORARY}state-{checkpoint.name}"
    with writing(checkpoint):
        remove(aside)
        os.rename(checkpoint / "state", aside)
        remove(aside)


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy what is a view: safetensors takes only tensors that own their memory, and no more than it."""
    owned: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        owned[name] = plain
    return owned
