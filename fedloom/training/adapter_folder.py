"""What lies beside an adapter's tensors, so that whoever loads them prompts as training did.

The model's tokenizer with a chat template that makes training's prompts; a README.md: how to load both, and
the messages of a prompt; and what the prompts come from, for `fedloom eval`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from fedloom.data.carried import carried_tokenizer, messages_of
from fedloom.data.tasks import TASKS
from fedloom.data.templates import PromptFormat
from fedloom.evaluation.saved_adapters import PROMPT_FILE
from fedloom.options.run import Prompts

CARD = "README.md"
_QUESTION = "QUESTION"


@dataclass(frozen=True)
class AdapterFolder:
    """What is written beside an adapter.

    Attributes:
        tokenizer: Prompts as training did.
        card: The content of README.md.
        prompted: The options that prompts come from.
    """

    tokenizer: PreTrainedTokenizerBase
    card: str
    prompted: dict[str, str]

    def write(self, folder: Path, like: Path | None = None) -> None:
        """Write it into an adapter's folder.

        Args:
            folder: The adapter's.
            like: Another adapter's folder that has it already, whose files are linked to: peers of one
                checkpoint, and a server's clients, share them on the disk.
        """
        (folder / CARD).write_text(self.card, encoding="utf-8")
        (folder / PROMPT_FILE).write_text(json.dumps(self.prompted, indent=1), encoding="utf-8")
        before = {path.name for path in folder.iterdir()}
        if like is None:
            self.tokenizer.save_pretrained(folder)
            return
        for path in like.iterdir():
            if path.is_file() and path.name not in before and not path.name.startswith("adapter_"):
                try:
                    os.link(path, folder / path.name)
                except OSError:  # a file system without links
                    shutil.copy(path, folder / path.name)


def of_prompts(
    config: Prompts,
    task: str,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    instruction: str,
) -> AdapterFolder:
    """What lies beside an adapter of a model that answers in words.

    Args:
        config: How questions are put to it.
        task: The data set's name.
        base: The model's name, as adapter_config.json has it.
        tokenizer: The model's.
        form: How questions are put to it.
        instruction: What it is told in front of each.
    """
    carried = carried_tokenizer(tokenizer, form, config.prompt_format, config.prompt_date)
    messages = messages_of(carried, form, instruction, _QUESTION)
    prompted = {
        "system_prompt": instruction or "none",
        "prompt_format": config.prompt_format,
        "prompt_date": config.prompt_date,
    }
    if task in TASKS:  # files of a user's own lie elsewhere for whoever is given the adapter
        prompted["data_name"] = task
    reading = (
        f"messages = {json.dumps(messages, ensure_ascii=False)}\n"
        "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)\n"
        if messages is not None
        else f"prompt = {json.dumps(form.render(_QUESTION), ensure_ascii=False)}\n"
    )
    code = (
        f'{reading}inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")\n'
        f"answer = model.generate(**inputs, max_new_tokens=256, eos_token_id={form.end})"
    )
    return AdapterFolder(carried, _card(base, "AutoModelForCausalLM", "", code, task), prompted)


def of_classes(
    task: str, base: str, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]
) -> AdapterFolder:
    """What lies beside an adapter of a classifier; `classes` are in the order of its outputs."""
    code = (
        'inputs = tokenizer("TEXT", return_tensors="pt")  # or tokenizer("FIRST TEXT", "SECOND TEXT", ...)\n'
        f"label = {json.dumps(list(classes))}[int(model(**inputs).logits.argmax())]"
    )
    auto = "AutoModelForSequenceClassification"
    card = _card(base, auto, f", num_labels={len(classes)}", code, task)
    return AdapterFolder(tokenizer, card, {"data_name": task} if task in TASKS else {})


def _card(base: str, auto: str, more: str, code: str, task: str) -> str:
    about: dict[str, Any] = {"library_name": "peft", "tags": ["fedloom", "federated-learning"]}
    if not Path(base).exists():
        about["base_model"] = base
    data = Path(task).name if Path(task).exists() else task
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    return f"""---
{front}---

An adapter of {base} that many clients trained without sharing their data, on {data}, with fedloom.
The tokenizer in this folder prompts as training did.

```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained({json.dumps(base)}{more})
model = PeftModel.from_pretrained(model, "THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")
{code}
```
"""
