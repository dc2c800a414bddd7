"""Atomic checkpoints, exact resume, and the folder of a run.

A checkpoint is a folder that any PEFT program can load, with all that exact resume needs beside it:

    <out_dir>/<exp_name>/checkpoints/round-000100/
        adapter_config.json, adapter_model.safetensors     as PEFT writes them
        state/tensors.safetensors, state/state.json        only in the newest checkpoint

It appears by a rename, so that a run killed at any moment leaves whole checkpoints only.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedloom.config import UserError
from fedloom.observe.atomic import sync, sync_tree, write_atomically
from fedloom.options import options
from fedloom.parsing import RUN_CONFIG, RUN_RECORD, read_options

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"round-(\d+)")
_TEMPORARY = ".tmp-"


def save_checkpoint(
    folder: Path,
    round_: int,
    *,
    write_adapter: Callable[[Path], None],
    tensors: Mapping[str, "torch.Tensor"],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a round and return its folder.

    Once it is in place, older checkpoints lose their `state/` and keep their adapter. A checkpoint of the
    same round that is complete stays as it is: equal rounds of one run are equal.

    Args:
        folder: The run's folder.
        round_: Rounds done so far.
        write_adapter: Writes an ordinary adapter folder into the (existing) folder that it is given.
        tensors: All that must come back bit by bit: any shapes, dtypes and devices.
        state: The rest, as JSON keeps it: lists and not tuples, keys that are strings.
    """
    from safetensors.torch import save_file

    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    _remove_temporary(checkpoints)
    final = checkpoints / f"round-{round_:06d}"
    if not (final / "state").is_dir():
        temporary = checkpoints / f"{_TEMPORARY}{final.name}"
        (temporary / "state").mkdir(parents=True)
        write_adapter(temporary)
        save_file(_unshared(tensors), temporary / "state" / "tensors.safetensors")
        (temporary / "state" / "state.json").write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
        sync_tree(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync(checkpoints)
    for older in _complete(checkpoints):
        if _round_of(older) < round_:
            # The rename makes the state vanish at once; a half removed one would look complete.
            aside = checkpoints / f"{_TEMPORARY}state-{older.name}"
            os.rename(older / "state", aside)
            shutil.rmtree(aside)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder that can be resumed from, or None."""
    return max(_complete(folder / "checkpoints"), key=_round_of, default=None)


def load_state(path: Path) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """Return the tensors (on the CPU) and the state of a checkpoint, as `save_checkpoint` took them.

    Raises:
        UserError: The checkpoint is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((path / "state" / "state.json").read_text(encoding="utf-8"))
        return load_file(path / "state" / "tensors.safetensors"), state
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path}: the checkpoint is damaged ({error}); remove it, or take another exp_name"
        ) from None


def _complete(checkpoints: Path) -> list[Path]:
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return [path for path in found if _NAME.fullmatch(path.name) and (path / "state").is_dir()]


def _round_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("round-"))


def _remove_temporary(checkpoints: Path) -> None:
    for stray in checkpoints.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stray)


def _unshared(tensors: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
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


def open_run(folder: Path, config: Any) -> Path | None:
    """Make ``folder`` ready for the run of ``config``; returns the checkpoint to go on from, if any.

    Args:
        folder: The run's folder.
        config: A dataclass of options with `resume`.

    Raises:
        UserError: As `prepare_run_folder` and `check_same_run` do.
    """
    checkpoint = prepare_run_folder(folder, config.resume)
    if config.resume:
        check_same_run(folder, config)
    return checkpoint


def prepare_run_folder(folder: Path, resume: bool) -> Path | None:
    """Make sure that a run may write to `folder`, and return the checkpoint to resume from, if any.

    With `resume` and no checkpoint yet, the run starts from the beginning.

    Raises:
        UserError: The folder holds another run, or there is nothing to resume, or it cannot be made.
    """
    if resume:
        if not (folder / RUN_CONFIG).is_file():
            raise UserError(f"{folder}: no run to resume here (no {RUN_CONFIG}); check exp_name and out_dir")
        return latest_checkpoint(folder)
    if any((folder / name).exists() for name in (RUN_CONFIG, "metrics.jsonl", "checkpoints")):
        raise UserError(
            f"{folder}: holds another run; add --resume to continue it, or take another --exp_name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --out_dir") from None
    return None


def write_run_config(folder: Path, config: Any, versions: Mapping[str, str], device: str) -> None:
    """Write config.yaml: every option but secrets, then the versions and the device of this run.

    The file can be given to `--config` again.

    Args:
        folder: The run's folder.
        config: A dataclass of options.
        versions: Version by package name.
        device: The device that the run uses, for example `cpu` or `cuda:0`.
    """
    # How the options were given is no part of the run; secrets never reach the disk.
    values = {
        option.name: getattr(config, option.name)
        for option in options(type(config))
        if not option.secret and option.name not in ("config", "resume")
    }
    record = {RUN_RECORD: {"device": device, "versions": dict(versions)}}
    write_atomically(folder / RUN_CONFIG, yaml.safe_dump(values | record, sort_keys=False))


def check_same_run(folder: Path, config: Any) -> None:
    """Make sure that `config` continues the run in `folder`.

    Options that a round's mathematics does not depend on may differ; they are declared `free` in
    `fedloom.config`.

    Raises:
        UserError: Other options differ; names each with both values.
    """
    saved = read_options(folder / RUN_CONFIG, type(config))
    changed = [
        f"{option.name} was {was}, now {now}"
        for option in options(type(config))
        for was, now in [(saved.get(option.name, option.default), getattr(config, option.name))]
        if was != now and not option.free
    ]
    if changed:
        raise UserError(
            f"{folder}: cannot resume with other options: {'; '.join(changed)}. "
            "Leave them out, or take another --exp_name"
        )
