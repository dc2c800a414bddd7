"""`fedloom demo`: a small real model learns arithmetic across four clients, offline, in minutes."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fedloom.data.encode import encode_prompts
from fedloom.errors import plain_console
from fedloom.evaluation.answering import Answers, Questions, answer
from fedloom.model.bank import AdapterBank, Row
from fedloom.options.fed import FedConfig
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runs.files import writing
from fedloom.runs.inputs import Inputs
from fedloom.runs.rows import read_rows
from fedloom.runs.run_folder import opened, write_run_config
from fedloom.training.fed import drive, write_held
from fedloom.training.setup_fed import Parts, build, device_name, run_folder, versions

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MODEL = "smollm2-135m"
TEST_PROBLEMS = 100
LONGEST_ANSWER = 24


def demo_config(
    *, rounds: int, seed: int, out_dir: str, exp_name: str, device: str, dtype: Dtype
) -> FedConfig:
    """The demo's run; any of it can be typed as flags of `fedloom fed`."""
    return FedConfig(
        exp_name=exp_name,
        out_dir=out_dir,
        seed=seed,
        device=device,
        dtype=dtype,
        model_name=MODEL,
        data_name="arithmetic",
        train_mode="fed",
        fed_alg="FedAdam",
        client_num=4,
        client_num_per_step=4,
        client_batch_per_step=4,
        batch_size=2,
        grad_accum_steps=4,
        max_steps=rounds,
        val_steps=rounds,
        lr=2e-3,
    )


def run_demo(*, rounds: int, seed: int, out_dir: str, exp_name: str, device: str, dtype: Dtype) -> None:
    """Answer unseen problems, fine-tune across four clients, answer them again, and print a table."""
    console = plain_console()
    wanted = demo_config(
        rounds=rounds, seed=seed, out_dir=out_dir, exp_name=exp_name, device=device, dtype=dtype
    )
    folder = _fresh_folder(run_folder(wanted))
    with opened(folder, wanted):
        _run(console, wanted, folder, rounds)


def _run(console: Console, wanted: FedConfig, folder: Path, rounds: int) -> None:
    console.print(f"fedloom demo: {MODEL}, 4 clients with their own word problems, FedAdam + LoRA")
    inputs = Inputs()
    config, parts = build(wanted, inputs=inputs)
    write_run_config(folder, config, versions(), device_name(parts.model.device), inputs.found)
    write_held(folder, parts)
    console.print(f"Answering {TEST_PROBLEMS} problems that no client has …")
    before = answer_unseen(parts, parts.model.initial)
    console.print(f"{before.accuracy:.0%} right. Training {rounds} rounds …")
    final = drive(config, parts, folder)
    console.print("Answering the same problems again …")
    after = answer_unseen(parts, final.server.adapter)
    adapter = latest_checkpoint(folder)
    assert adapter is not None
    _report(console, before, after, read_rows(folder), adapter)


def _fresh_folder(folder: Path) -> Path:
    """A folder that holds no run yet: the demo may be repeated, earlier ones stay."""
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        # Made here and now, so that of two demos that start together each has its own.
        with writing(candidate, then="start again"), suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
    raise AssertionError("there is always a next number")


def answer_unseen(parts: Parts, row: Row) -> Answers:
    """What an adapter answers to the first 100 test problems, whose answers are short."""
    problems = parts.splits.test[:TEST_PROBLEMS]
    form = parts.data.form
    prompts = encode_prompts([form.render(problem.question) for problem in problems], parts.tokenizer)
    questions = Questions(prompts, [problem.final for problem in problems], LONGEST_ANSWER, form.end)
    (answers,) = answer(parts.model, AdapterBank.repeat(row, 1), parts.tokenizer, [questions])
    return answers


def _report(console: Console, before: Answers, after: Answers, rows: list[dict], adapter: Path) -> None:
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows)
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    table = Table("", "before", "after", title="Unseen word problems")
    table.add_row("answers right", f"{before.accuracy:.0%}", f"{after.accuracy:.0%}")
    table.add_row("validation loss", f"{rows[0]['val_loss']:.3f}", f"{rows[-1]['val_loss']:.3f}")
    table.add_row("bytes sent, up and down", "0", decimal(sent))
    table.add_row("training time", "", f"{seconds:.0f} s")
    console.print(table)
    console.print(f"The adapter lies in {adapter}\nLoad it with PEFT:", soft_wrap=True)
    console.print(f'  PeftModel.from_pretrained(base_model, "{adapter}")', soft_wrap=True)
