"""`fedloom chat`: a conversation in the terminal, with adapters that can be exchanged."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.tasks import TASKS
from fedloom.data.templates import dialogue, instruction_of, prompt_format
from fedloom.errors import UserError, one_line, shown
from fedloom.evaluation.adapter_tensors import read_fitting
from fedloom.evaluation.answering import ends_of_answer
from fedloom.evaluation.chosen import adapters_of, base_of
from fedloom.evaluation.saved_adapters import (
    CONFIG_FILE,
    SavedAdapter,
    find_adapters,
    options_of_folder,
    options_of_run,
    read_config,
)
from fedloom.evaluation.talk import Adapters, Streamed, Talk, Turns
from fedloom.model.adapters.prompts import as_saved
from fedloom.model.adapters.supported import check_adapter
from fedloom.model.base import BaseModel, load_base
from fedloom.model.files import check_model_name
from fedloom.model.hardware import check_quantize, resolve_device
from fedloom.model.quiet import quieten
from fedloom.model.structure import positions_of
from fedloom.options.export import ChatConfig
from fedloom.options.run import PROMPT_DATE, FormatName
from fedloom.options.synonyms import did_you_mean
from fedloom.runtimes.signals import Terminated

BASE = "base"
_HELP = "/adapter NAME answers with another adapter, /adapter lists them, /quit ends"


def run_chat(config: ChatConfig) -> None:
    """`fedloom chat`: answer lines of the standard input until it ends, or /quit.

    Raises:
        UserError: A mistake of the user; nearly all are found before weights are read.
    """
    quieten()
    assert config.adapter is not None, "the options were judged"
    check_quantize(config.quantize, resolve_device(config.device))
    chosen = adapters_of(config.adapter, config.round)
    every = {each.name: each for each in _of_the_run(config.adapter, chosen)}
    first = chosen[0]
    peft = read_config(first.folder)
    if peft.task_type == "SEQ_CLS":
        raise UserError(f"adapter: {first.folder} classifies and writes no text; judge it with fedloom eval")
    name = base_of([(first, peft)], config.model_name)
    check_model_name(name, config.token)
    base = _load(config, name, first, peft)
    talk = _talk(config, base, first)
    adapters = Adapters(base.model)
    adapters.use(first)
    print(f"{first.name} on {name}. {_HELP}, Ctrl-C ends an answer.", flush=True)
    if not talk.remembers:
        print("Without a chat template every question is put to the model alone.", flush=True)
    _converse(talk, adapters, {BASE: None, **every}, first.name)


def _of_the_run(given: str, chosen: Sequence[SavedAdapter]) -> Sequence[SavedAdapter]:
    """All that one may switch to: of a run's folder the adapters of every checkpoint."""
    if (Path(given).expanduser() / "checkpoints").is_dir():
        return find_adapters([given], all_checkpoints=True)
    return chosen


def _load(config: ChatConfig, name: str, first: SavedAdapter, peft: PeftConfig) -> BaseModel:
    def before_weights(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
        expected = as_saved(check_adapter(structure, peft, str(first.folder / CONFIG_FILE)))
        read_fitting(first.folder, expected, structure)

    return load_base(
        name,
        device=config.device,
        dtype=config.dtype,
        quantize=config.quantize,
        token=config.token,
        trust_remote_code=config.trust_remote_code,
        before_weights=before_weights,
    )


def _talk(config: ChatConfig, base: BaseModel, adapter: SavedAdapter) -> Talk:
    """As the run put its questions, in its format: with its instruction, unless another is given."""
    run = options_of_run(adapter.run) if adapter.run is not None else options_of_folder(adapter.folder)
    task = TASKS.get(str(run.get("data_name")))
    run_instruction = instruction_of(task.instruction if task else "", run.get("system_prompt") or "auto")
    instruction = instruction_of(run_instruction, config.system_prompt)
    name: FormatName = run.get("prompt_format") or "auto"
    day = str(run.get("prompt_date") or PROMPT_DATE)
    form = prompt_format(base.tokenizer, instruction, name, day)
    remembers = name == "auto" and base.tokenizer.chat_template is not None
    if remembers:
        render = dialogue(base.tokenizer, instruction, day)
    else:

        def render(turns: Turns) -> str:
            return form.render(turns[-1][1])

    return Talk(
        base.tokenizer,
        render,
        remembers,
        ends_of_answer(base.model, base.tokenizer, form.end),
        config.temperature,
        config.max_new_tokens,
        positions_of(base.model),
    )


def _converse(talk: Talk, adapters: Adapters, every: dict[str, SavedAdapter | None], name: str) -> None:
    turns: list[tuple[str, str]] = []
    for line in _lines():
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                name = _command(line, adapters, every, name)
                turns = []  # what another adapter has said is no beginning for this one
            elif line:
                _answer(talk, adapters, turns, line)
                turns = turns if talk.remembers else []
        except UserError as error:
            print(one_line(f"fedloom: {error}"), file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    """Lines of the standard input, until it ends; from a terminal also until Ctrl-C."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (it lets a line be edited, and brings earlier ones back)
    while True:
        try:
            line = input("> ")
        except Terminated:
            raise
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line.strip()


def _command(line: str, adapters: Adapters, every: dict[str, SavedAdapter | None], name: str) -> str:
    """Do what a line with a slash says; returns the name of the adapter that answers from now on.

    Raises:
        UserError: There is no such command, or no such adapter.
    """
    word, _, wanted = line.partition(" ")
    wanted = wanted.strip()
    if word != "/adapter":
        raise UserError(f"{shown(word)}: is no command; {_HELP}")
    if not wanted:
        print("\n".join(f"{'*' if each == name else ' '} {each}" for each in every), flush=True)
        return name
    found = [each for each in every if each == wanted] or [
        each for each in every if f"/{each}".endswith(f"/{wanted}")
    ]
    if len(found) != 1:
        which = f"may be {' or '.join(found)}" if found else f"is none of these{did_you_mean(wanted, every)}"
        raise UserError(f"/adapter {shown(wanted)}: {which}; /adapter lists them")
    adapter = every[found[0]]
    if adapter is not None:
        read_config(adapter.folder)  # whether it is as it was written
    adapters.use(adapter)
    print(f"{found[0]} answers now.", flush=True)
    return found[0]


def _answer(talk: Talk, adapters: Adapters, turns: list[tuple[str, str]], question: str) -> None:
    """Print an answer as it is written, and remember it; Ctrl-C ends it early."""
    streamed = Streamed(talk.tokenizer, lambda text: print(text, end="", flush=True))
    turns.append(("user", question))
    try:
        talk.answer(adapters, turns, streamed)
    except UserError:
        turns.pop()
        raise
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated) or not sys.stdin.isatty():
            raise
    print(flush=True)
    turns.append(("assistant", streamed.text.strip()))
