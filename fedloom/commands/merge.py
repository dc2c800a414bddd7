"""`fedloom merge`: a run's adapter added to its base, as an ordinary model folder."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedloom.data.tasks import TASKS
from fedloom.errors import UserError, plain_console
from fedloom.evaluation.adapter_tensors import read_fitting, read_row
from fedloom.evaluation.chosen import adapters_of, base_of, to_merge
from fedloom.evaluation.saved_adapters import CONFIG_FILE, SavedAdapter, options_of_run, read_config
from fedloom.model.adapters.prompts import as_saved
from fedloom.model.adapters.supported import check_adapter
from fedloom.model.base import BaseModel, configuration, load_base, located
from fedloom.model.class_order import class_order
from fedloom.model.files import check_model_name
from fedloom.model.hub import check_hub, push
from fedloom.model.merging import merged
from fedloom.model.quiet import quieten
from fedloom.model.source import locate
from fedloom.options.export import MergeConfig
from fedloom.runs.files import TEMPORARY, remove, sync_tree, writing

log = logging.getLogger(__name__)

Adapters = Sequence[tuple[SavedAdapter, PeftConfig]]

_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""What a classifier's last layer is called."""

_AGAIN = "merge again"


def run_merge(config: MergeConfig) -> Path:
    """`fedloom merge`: write the merged model's folder, and return it.

    Raises:
        UserError: A mistake of the user; nearly all are found before weights are read.
    """
    quieten()
    assert config.adapter is not None and config.output_path is not None, "the options were judged"
    output = Path(config.output_path)
    check_new_folder(output)
    found = to_merge(adapters_of(config.adapter, config.round), config.client, config.peer)
    adapters = [(each, read_config(each.folder)) for each in found]
    _check_can_be_merged(adapters)
    name = base_of(adapters, config.model_name)
    check_model_name(name, config.token)
    if config.push_to_hub is not None:
        check_hub(config.push_to_hub, config.token)
    console = plain_console()
    console.print(_summary(adapters, name), soft_wrap=True)
    whole = merged(_load(config, name, adapters).model, [adapter.folder for adapter, _ in adapters])
    _name_classes(config, whole.config, adapters, name)
    source = located(name)
    _restore_generation(config, source.location, whole)
    _write(
        output,
        whole,
        _tokenizer(config, adapters[0][0].folder, source.location),
        _card(adapters, locate(name).name),
    )
    console.print(f"Model: {output}", soft_wrap=True)
    if config.push_to_hub is not None:
        console.print(f"On the hub: {push(output, config.push_to_hub, config.token)}", soft_wrap=True)
    return output


def check_new_folder(path: Path) -> None:
    """Make sure that a folder can be made: what lies there already is never replaced or added to.

    Raises:
        UserError: Something lies there.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"output_path: {path} is no folder; name a new one")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"output_path: {path} is not empty; empty it, or name a new folder")


def _check_can_be_merged(adapters: Adapters) -> None:
    for adapter, peft in adapters:
        kind = getattr(peft.peft_type, "value", peft.peft_type)
        if kind != "LORA":
            raise UserError(
                f"adapter: {adapter.folder} is {kind}: virtual tokens stand before a text and "
                "change no weight, so there is nothing to merge; load it with PEFT, or train with "
                "--peft lora"
            )


def _summary(adapters: Adapters, name: str) -> str:
    """What is done, for people."""
    first = adapters[0][0].name
    what = (
        first
        if len(adapters) == 1
        else f"the mean of {len(adapters)} models, {first} to {adapters[-1][0].name}"
    )
    quantised = {
        options_of_run(adapter.run)["quantize"] for adapter, _ in adapters if adapter.run is not None
    } - {None, "none"}
    if quantised:
        how = " and ".join(sorted(quantised))
        what += f", trained on {how} weights and merged into the unquantised, which answer a little otherwise"
    return f"Merging into {name}: {what} …"


def _load(config: MergeConfig, name: str, adapters: Adapters) -> BaseModel:
    """The base, on the CPU, with the head that a classifier's adapter brings."""
    files = configuration(name, token=config.token, trust_remote_code=config.trust_remote_code)
    dtype = config.dtype if config.dtype != "auto" else _stored(files)

    def before_weights(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
        for adapter, peft in adapters:
            expected = as_saved(check_adapter(structure, peft, str(adapter.folder / CONFIG_FILE)))
            read_fitting(adapter.folder, expected, structure)

    return load_base(
        name,
        device="cpu",
        dtype=dtype,
        token=config.token,
        trust_remote_code=config.trust_remote_code,
        num_labels=_classes(*adapters[0], files),
        before_weights=before_weights,
    )


def _stored(files: PretrainedConfig) -> str:
    """The precision of a model's own files, by its configuration."""
    stored = getattr(files, "dtype", None)
    return str(stored).removeprefix("torch.") if stored in (torch.bfloat16, torch.float16) else "float32"


def _classes(adapter: SavedAdapter, peft: PeftConfig, files: PretrainedConfig) -> int | None:
    """How many classes an adapter's head has, or the base's own; None for one that writes text."""
    if peft.task_type != "SEQ_CLS":
        return None
    rows = [t.shape[0] for name, t in read_row(adapter.folder).items() if name.endswith(_HEADS)]
    return int(rows[0]) if rows else int(files.num_labels)


def _name_classes(config: MergeConfig, made: PretrainedConfig, adapters: Adapters, name: str) -> None:
    """Let a classifier say its classes by the names of the task that it was trained on."""
    run = adapters[0][0].run
    task = TASKS.get(options_of_run(run)["data_name"]) if run is not None else None
    if task is None or adapters[0][1].task_type != "SEQ_CLS" or made.num_labels != task.num_labels:
        return
    files = configuration(name, token=config.token, trust_remote_code=config.trust_remote_code)
    order = class_order(files, task.label_names, name)
    made.id2label = dict(enumerate(order))
    made.label2id = {label: number for number, label in enumerate(order)}


def _restore_generation(config: MergeConfig, location: str, model: PreTrainedModel) -> None:
    """Generation settings as they were published: changed ones are refused where they contradict each other.

    Loading has set a pad token; several chat models have a temperature and no sampling.
    """
    if model.can_generate():
        with suppress(OSError):  # there are none
            model.generation_config = GenerationConfig.from_pretrained(location, token=config.token or None)


def _tokenizer(config: MergeConfig, adapter: Path, location: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the adapter and prompts as training did; without one the base's own."""
    location = str(adapter) if (adapter / "tokenizer_config.json").is_file() else location
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        location, token=config.token or None, trust_remote_code=config.trust_remote_code
    )
    return made


def _write(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """Write a model's folder, which is there whole or not at all."""
    temporary = folder.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    with writing(folder, then=_AGAIN):
        try:
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            sync_tree(temporary)
            os.rename(temporary, folder)
        except BaseException:
            with suppress(OSError):
                remove(temporary)
            raise


def _card(adapters: Adapters, base: str) -> str:
    """The page that says where a model comes from, as the hub shows it."""
    about = ["library_name: transformers"]
    about += [f"base_model: {base}"] if not Path(base).exists() else []
    which = "its adapter" if len(adapters) == 1 else f"the mean of {len(adapters)} peers' models"
    classify = adapters[0][1].task_type == "SEQ_CLS"
    auto = "AutoModelForSequenceClassification" if classify else "AutoModelForCausalLM"
    of_run = adapters[0][0].name
    return f"""---
{chr(10).join(about)}
tags: [fedloom, federated-learning, lora]
---

{base} with a LoRA adapter that many clients trained without sharing their data, merged into its weights
by `fedloom merge`: {which}, {of_run}.

```python
from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")
```
"""
