"""Adapters on the disk: which folders a user means, what their run was, and what lies in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedloom.config import UserError
from fedloom.data.tasks import TASKS
from fedloom.observe.checkpoint import checkpoints_of
from fedloom.options import did_you_mean
from fedloom.parsing import RUN_CONFIG
from fedloom.runs.checksums import verify

if TYPE_CHECKING:
    from peft import PeftConfig

    from fedloom.model.bank import Row

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
KINDS = ("LORA", "P_TUNING", "PROMPT_TUNING")
"""Kinds of adapters that run stacked, as PEFT names them."""

# Variants of LoRA that add more to a layer than the product BA.
_PLAIN_LORA = {"use_dora": False, "bias": "none", "lora_bias": False, "trainable_token_indices": None}
# They say where an adapter came from, or how it starts and trains; its function does not depend on them.
_NOT_OF_THE_FUNCTION = (
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "init_lora_weights",
)


@dataclass(frozen=True)
class SavedAdapter:
    """A PEFT adapter folder.

    Attributes:
        name: For people: run, round and peer where it is of a run, else the path as given.
        folder: Holds adapter_config.json and adapter_model.safetensors.
        run: The run's folder; None where it is of no run.
    """

    name: str
    folder: Path
    run: Path | None


def find_adapters(paths: Sequence[str], *, all_checkpoints: bool = False) -> list[SavedAdapter]:
    """The adapters that paths mean: an adapter's folder, a checkpoint of peers, or a run's folder.

    Args:
        paths: As the user gave them.
        all_checkpoints: Of a run's folder every checkpoint, not the newest alone.

    Raises:
        UserError: There is no adapter.
    """
    found = []
    for given in paths:
        path = Path(given).expanduser()
        if not path.is_dir():
            beside = (entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else ()
            raise UserError(f"adapter: there is no folder {given}{did_you_mean(path.name, beside)}")
        if all_checkpoints and not (path / "checkpoints").is_dir():
            raise UserError(f"all_checkpoints: {given} is not a run's folder (it has no folder checkpoints)")
        run = _run_of(path.resolve())
        found += [SavedAdapter(_name(given, path, f, run), f, run) for f in _folders(path, all_checkpoints)]
    names = [adapter.name for adapter in found]
    if len(set(names)) < len(names):  # runs of one name in several places
        found = [SavedAdapter(str(each.folder), each.folder, each.run) for each in found]
    return found


def _folders(path: Path, all_checkpoints: bool) -> list[Path]:
    if (path / CONFIG_FILE).is_file():
        return [path]
    if (path / "checkpoints").is_dir():
        rounds = checkpoints_of(path)
        if not rounds:
            raise UserError(f"adapter: the run in {path} has left no checkpoint yet")
        return [f for folder in (rounds if all_checkpoints else rounds[-1:]) for f in _folders(folder, False)]
    peers = sorted(config.parent for config in path.glob(f"peer-*/{CONFIG_FILE}"))
    if not peers:
        raise UserError(
            f"adapter: {path} holds no {CONFIG_FILE}, no peers and no checkpoints; give a PEFT adapter "
            "folder, a checkpoint or a run's folder"
        )
    return peers


def _run_of(path: Path) -> Path | None:
    """The run's folder that a path is, or lies in: ``RUN/checkpoints/round-000100/peer-0001``."""
    for folder in (path, *path.parents[:3]):
        if (folder / RUN_CONFIG).is_file() and (folder / "checkpoints").is_dir():
            return folder
    return None


def _name(given: str, path: Path, folder: Path, run: Path | None) -> str:
    if run is not None:
        return "/".join((run.name, *folder.resolve().relative_to(run / "checkpoints").parts))
    return given if path == folder else f"{given.rstrip('/')}/{folder.name}"


def options_of_run(run: Path) -> dict[str, Any]:
    """What a run's config.yaml says of its model and data, under the names of `fedloom eval`.

    Raises:
        UserError: The file cannot be read, or names an unknown task.
    """
    try:
        content = yaml.safe_load((run / RUN_CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{run / RUN_CONFIG}: cannot be read ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UserError(f"{run / RUN_CONFIG}: must hold lines of the form `option: value`")
    task = content.get("data_name") or content.get("dataset_type")
    if task is not None and task not in TASKS:
        raise UserError(f"{run / RUN_CONFIG}: data_name {task} is no task{did_you_mean(task, TASKS)}")
    return {
        "model_name": content.get("model_name") or content.get("model_checkpoint"),
        "data_name": task,
        **{name: content.get(name) for name in ("data_dir", "seed", "max_length")},
    }


def read_config(folder: Path) -> PeftConfig:
    """An adapter's configuration, ready to be put into a model.

    Raises:
        UserError: It is damaged, or of a kind that does not run stacked.
    """
    from peft import PeftConfig

    path = folder / CONFIG_FILE
    verify(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["peft_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: is not the configuration of a PEFT adapter ({error})") from None
    if kind not in KINDS:
        raise UserError(f"{path}: peft_type is {kind}; fedloom runs {', '.join(KINDS)}")
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    if kind == "LORA":
        for name, plain in _PLAIN_LORA.items():
            value = getattr(config, name, plain)
            if value != plain:
                raise UserError(f"{path}: {name} is {value}; fedloom runs plain LoRA, with {name} {plain}")
    # How virtual tokens are made in training is not saved, only the tokens.
    if kind == "PROMPT_TUNING":
        config.prompt_tuning_init = "RANDOM"
    if kind == "P_TUNING":
        config.encoder_reparameterization_type = "MLP"
    return config


def same_function(config: PeftConfig) -> str:
    """A text that is equal for adapters that can run in one pass: those that differ in numbers alone."""
    facts = {name: value for name, value in config.to_dict().items() if name not in _NOT_OF_THE_FUNCTION}
    return json.dumps(facts, sort_keys=True, default=lambda value: sorted(map(str, value)))


def read_row(folder: Path) -> Row:
    """An adapter's tensors, at least float32.

    Raises:
        UserError: They cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / TENSORS_FILE
    verify(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); save the adapter again with PEFT") from None
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}


def check_row(row: Row, expected: Row, folder: Path) -> None:
    """Make sure that an adapter belongs to a model.

    Args:
        row: The adapter.
        expected: An adapter that does.
        folder: Where the adapter lies, for the message.

    Raises:
        UserError: Names or shapes differ; names the first.
    """
    for name in sorted(row.keys() | expected.keys()):
        was, wanted = (tuple(t[name].shape) if name in t else None for t in (row, expected))
        if was != wanted:
            raise UserError(
                f"{folder}: the adapter does not fit the model: {name} is {was or 'missing'} in the adapter, "
                f"and {wanted or 'nowhere'} in the model; give the --model_name that it was trained on"
            )
