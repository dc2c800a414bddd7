"""Adapters on the disk: which folders a user means, and what their run was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.errors import UserError
from fedloom.options.declare import options
from fedloom.options.evaluation import EvalConfig
from fedloom.options.fed import FedConfig
from fedloom.options.parsing import RUN_CONFIG
from fedloom.options.synonyms import path_meant
from fedloom.options.yaml_file import read_yaml
from fedloom.runs.checkpoint import checkpoints_of
from fedloom.runs.reading import read_mapping, verify

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG_FILE = "adapter_config.json"
PROMPT_FILE = "prompt.json"
"""What an adapter's folder says of its prompts, in the options that they come from."""
KINDS = ("LORA", "P_TUNING", "PROMPT_TUNING")
"""Kinds of adapters that run stacked, as PEFT names them."""

_OF_RUNS = (
    "data_dir",
    "data_format",
    "columns",
    "train_limit",
    "max_length",
    "prompt_format",
    "prompt_date",
    "system_prompt",
    "dpo_beta",
    "dtype",
    "quantize",
    "train_mode",
    "dataset_path_template",
)
_NAMES = (("model_name", "model_checkpoint"), ("data_name", "dataset_type"), ("client_num", "num_clients"))
"""What runs of both regimes have, under the name of one and of the other."""


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
            raise UserError(f"adapter: there is no folder {given}{path_meant(path)}")
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
        # Of a run with personal parameters, also the clients' own.
        return [path, *sorted(config.parent for config in path.glob(f"client-*/{CONFIG_FILE}"))]
    if (path / "checkpoints").is_dir():
        rounds = checkpoints_of(path)
        if not rounds:
            raise UserError(f"adapter: the run in {path} has left no checkpoint yet")
        return [f for folder in (rounds if all_checkpoints else rounds[-1:]) for f in _folders(folder, False)]
    found = [config.parent for config in path.glob(f"peer-*/{CONFIG_FILE}")]
    peers = sorted(found, key=lambda folder: (len(folder.name), folder.name))  # 10,000 comes behind 9,999
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
    content, lines = read_yaml(run / RUN_CONFIG, "it is not as fedloom wrote it")
    if not isinstance(content, dict):
        raise UserError(f"{run / RUN_CONFIG}: must hold lines of the form `option: value`")
    rules = {option.name: option for option in (*options(FedConfig), *options(EvalConfig))}
    found: dict[str, Any] = {}
    for name, other in _NAMES:
        found[name] = content.get(name) or content.get(other)
    found |= {name: content.get(name) for name in _OF_RUNS}
    found["data_seed"] = content.get("data_seed", content.get("seed"))  # of before there was one, it was both
    for name, value in found.items():
        if value is not None and not rules[name].allows(value):
            line = f", line {lines[name]}" if name in lines else ""
            raise UserError(f"{run / RUN_CONFIG}{line}: {rules[name].explain(value)}")
    return found


def options_of_folder(folder: Path) -> dict[str, Any]:
    """What an adapter's folder itself says of its prompts: as `options_of_run`, for an adapter of no run.

    Raises:
        UserError: The file cannot be read, or a value breaks its rule.
    """
    path = folder / PROMPT_FILE
    found: dict[str, Any] = dict.fromkeys((*(name for name, _ in _NAMES), *_OF_RUNS, "data_seed"))
    rules = {option.name: option for option in options(EvalConfig)}
    content = read_mapping(path) if path.is_file() else {}
    for name in ("data_name", "system_prompt", "prompt_format", "prompt_date"):
        found[name] = content.get(name)
        if found[name] is not None and not rules[name].allows(found[name]):
            raise UserError(f"{path}: {rules[name].explain(found[name])}")
    return found


def read_config(folder: Path) -> PeftConfig:
    """An adapter's configuration, ready to be put into a model.

    Raises:
        UserError: It is damaged, or has something that does not run stacked.
    """
    from peft import PeftConfig

    from fedloom.model.adapters.supported import check_config

    path = folder / CONFIG_FILE
    verify(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["peft_type"]
        if kind not in KINDS:
            raise UserError(f"{path}: peft_type is {kind}; fedloom runs {', '.join(KINDS)}")
        config = PeftConfig.from_pretrained(str(folder))
    except UserError:
        raise
    except Exception as error:  # any value may be of any type
        raise UserError(
            f"{path}: is not the configuration of a PEFT adapter ({type(error).__name__}: {str(error)[:200]})"
        ) from None
    config.inference_mode = False
    check_config(config, str(path))
    # How virtual tokens are made in training is not saved, only the tokens.
    if kind == "PROMPT_TUNING":
        config.prompt_tuning_init = "RANDOM"
    if kind == "P_TUNING":
        config.encoder_reparameterization_type = "MLP"
    return config


def same_function(config: PeftConfig) -> str:
    """A text that is equal for adapters that can run in one pass: those that differ in numbers alone."""
    from fedloom.model.adapters.supported import NOT_OF_THE_FUNCTION

    facts = {
        name: value
        for name, value in config.to_dict().items()
        if name not in NOT_OF_THE_FUNCTION and name != "init_lora_weights"
    }
    return json.dumps(facts, sort_keys=True, default=lambda value: sorted(map(str, value)))
