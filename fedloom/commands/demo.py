"""`fedloom demo`: a small real model learns arithmetic across four clients, offline, in minutes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fedloom.data.token_ids import encode_prompts
from fedloom.errors import plain_console
from fedloom.evaluation.answering import Answers, Questions, answer
from fedloom.model.bank import AdapterBank, Row
from fedloom.options.fed import FedConfig
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runs.files import writing
from fedloom.runs.inputs import Inputs
from fedloom.runs.metrics import read_rows
from fedloom.runs.progress import clock
from fedloom.runs.run_folder import opened, run_folder, write_run_config
from fedloom.training.fed import drive, write_client_counts
from fedloom.training.provenance import device_name, versions
from fedloom.training.setup_fed import Parts, build, intervals

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MODEL = "smollm2-135m"
LONGEST_ANSWER = 24

WANTED_SECONDS = 170.0
"""From the command to the table, where the machine is neither too slow for the fewest rounds nor too fast."""
FEWEST_ROUNDS = 10
"""So many rounds show on every seed that was tried that the model learns (docs/index.md)."""
MOST_ROUNDS = 240
"""So many rounds show every problem of the clients once."""
FEWEST_PROBLEMS, MOST_PROBLEMS = 32, 96
STRETCH = 3
"""A part of the training ends at so many times the round that it begins with; then time is looked at anew."""


def choose_problems(answer_seconds: float, seconds: float) -> int:
    """As many as can be answered before and after in a quarter of a time, in steps of `FEWEST_PROBLEMS`.

    Args:
        answer_seconds: What a problem takes.
        seconds: The time.
    """
    fit = int(0.25 * seconds / (2 * answer_seconds)) // FEWEST_PROBLEMS * FEWEST_PROBLEMS
    return min(max(fit, FEWEST_PROBLEMS), MOST_PROBLEMS)


def choose_rounds(done: int, round_seconds: float, seconds: float) -> int:
    """The round up to which there is time to train now; `done` where more would hardly show.

    Args:
        done: Rounds that have been trained.
        round_seconds: What each of them has taken.
        seconds: Time left for training.
    """
    end = min(done + int(max(seconds, 0.0) / round_seconds), MOST_ROUNDS, STRETCH * done)
    return end if end >= done + done // 4 else done


def demo_config(
    *, rounds: int, problems: int, seed: int, out_dir: str, exp_name: str, device: str, dtype: Dtype
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
        client_batch_per_step=2,
        batch_size=2,
        grad_accum_steps=2,
        max_steps=rounds,
        val_steps=rounds,
        val_limit=max(problems // 2, 1),
        patience=0,
        lr=4e-3,
    )


def run_demo(
    *,
    rounds: int | None,
    problems: int | None,
    seed: int,
    out_dir: str,
    exp_name: str,
    device: str,
    dtype: Dtype,
) -> None:
    """Answer unseen problems, fine-tune across four clients, answer them again, and print a table.

    Where nobody says how many rounds and problems, there are as many as what was done first leaves time for.
    """
    console = plain_console()
    wanted = demo_config(
        rounds=rounds or FEWEST_ROUNDS,
        problems=problems or FEWEST_PROBLEMS,
        seed=seed,
        out_dir=out_dir,
        exp_name=exp_name,
        device=device,
        dtype=dtype,
    )
    folder = _fresh_folder(run_folder(wanted))
    with opened(folder, wanted):
        _run(console, wanted, folder, rounds, problems)


def _run(console: Console, wanted: FedConfig, folder: Path, rounds: int | None, problems: int | None) -> None:
    inputs = Inputs()
    config, parts = build(wanted, inputs=inputs)
    console.print(f"Loaded {MODEL} in {config.dtype} on {device_name(parts.model.device)}.")
    console.print(f"Answering {problems or FEWEST_PROBLEMS} problems that no client has …")
    began, loaded = time.perf_counter(), _seconds_so_far()
    before = answer_unseen(parts, parts.model.initial, problems or FEWEST_PROBLEMS)
    if problems is None:
        took = time.perf_counter() - began
        problems = choose_problems(took / FEWEST_PROBLEMS, WANTED_SECONDS - loaded)
        if problems > FEWEST_PROBLEMS:
            console.print(f"That took {took:.0f} s: there is time for {problems} …")
            before = answer_unseen(parts, parts.model.initial, problems, before)
    answering = time.perf_counter() - began
    more = " and more if there is time" if rounds is None else ""
    console.print(f"{before.accuracy:.0%} right. Validating, then training {config.max_steps} rounds{more} …")

    def rounds_now(done: int) -> int:
        if rounds is not None:
            return done
        round_seconds, validation = seconds_of(read_rows(folder))
        rest = answering + validation
        end = choose_rounds(done, round_seconds, WANTED_SECONDS - _seconds_so_far() - rest)
        seconds = (end - done) * round_seconds + (rest if end > done else answering)
        to = f", on to round {end}" if end > done else ""
        console.print(f"A round takes {round_seconds:.1f} s here{to}: the table in about {clock(seconds)}.")
        return end

    config = replace(config, val_limit=max(problems // 2, 1))
    done, adapter = train(config, parts, folder, inputs.found, rounds_now)
    console.print("Answering the same problems again …")
    after = answer_unseen(parts, adapter, problems)
    _report(console, before, after, folder)
    console.print(
        "The same again, on any machine:\n"
        f"  fedloom demo --rounds {done} --problems {problems} --seed {config.seed} --dtype {config.dtype}",
        soft_wrap=True,
    )


def train(
    config: FedConfig,
    parts: Parts,
    folder: Path,
    inputs: Mapping[str, str],
    rounds_now: Callable[[int], int],
) -> tuple[int, Row]:
    """Train the rounds of the config, and then in parts as many more as are wanted.

    Each part ends with a validation and a checkpoint, and the next goes on from there: the adapter is that of
    as many rounds in one piece.

    Args:
        config: As `build` returned it.
        parts: What the run is made of.
        folder: The run's folder.
        inputs: Digests of what the run has read.
        rounds_now: Given the rounds done, the round up to which to go on; the rounds done: no more.

    Returns:
        The rounds done, and the adapter.
    """
    parts = replace(parts, val_limit=config.val_limit)
    on = device_name(parts.model.device)
    write_run_config(folder, config, versions(), on, inputs)
    write_client_counts(folder, parts)
    final = drive(parts, intervals(config), folder)
    while (rounds := rounds_now(config.max_steps)) > config.max_steps:
        config = replace(config, max_steps=rounds, val_steps=rounds)
        write_run_config(folder, config, versions(), on, inputs)
        final = drive(parts, intervals(config), folder, latest_checkpoint(folder))
    return config.max_steps, final.server.adapter


def seconds_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What a round and a validation have taken of late: since the last validation but one.

    Args:
        rows: Of metrics.jsonl, the last one with a validation.
    """
    validated = [i for i, row in enumerate(rows) if "eval_seconds" in row]
    rounds = [row["seconds"] for row in rows[validated[-2] + 1 :]]
    # The first round warms the machine up.
    return mean(rounds[1:] or rounds), rows[validated[-1]]["eval_seconds"]


def _seconds_so_far() -> float:
    """Since the command was typed: libraries have been loaded since."""
    return time.time() - psutil.Process().create_time()


def _fresh_folder(folder: Path) -> Path:
    """A folder that holds no run yet: the demo may be repeated, earlier ones stay."""
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        # Made here and now, so that of two demos that start together each has its own.
        with writing(candidate, then="start again"), suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
    raise AssertionError("there is always a next number")


def answer_unseen(parts: Parts, row: Row, problems: int = 100, known: Answers | None = None) -> Answers:
    """What an adapter answers to the first test problems, whose answers are short.

    `FEWEST_PROBLEMS` go through the model at a time, in the order of the split: which stand side by side, and
    so how bfloat16 rounds, does not depend on how many there are.

    Args:
        parts: What the run is made of.
        row: The adapter.
        problems: How many.
        known: The answers to the first of them, a multiple of `FEWEST_PROBLEMS`, if they have been given.
    """
    form, asked = parts.data.reader.form, parts.splits.test[:problems]
    assert form is not None, "the demo's model writes"
    found = known or Answers([], [], [])
    for first in range(len(found.texts), len(asked), FEWEST_PROBLEMS):
        some = asked[first : first + FEWEST_PROBLEMS]
        prompts = encode_prompts([form.render(one.question) for one in some], parts.tokenizer)
        questions = Questions(prompts, [one.final for one in some], LONGEST_ANSWER, form.end)
        bank = AdapterBank.repeat(row, 1)
        (more,) = answer(parts.model, bank, parts.tokenizer, [questions], batch_size=FEWEST_PROBLEMS)
        found = Answers(found.texts + more.texts, found.numbers + more.numbers, found.right + more.right)
    return found


def _report(console: Console, before: Answers, after: Answers, folder: Path) -> None:
    rows, adapter = read_rows(folder), latest_checkpoint(folder)
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows)
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    table = Table("", "before", "after", title="Unseen word problems")
    table.add_row("answers right", f"{before.accuracy:.0%}", f"{after.accuracy:.0%}")
    table.add_row("validation loss", f"{rows[0]['val_loss']:.3f}", f"{rows[-1]['val_loss']:.3f}")
    table.add_row("bytes sent, up and down", "0", decimal(sent))
    table.add_row("training time", "", f"{seconds:.0f} s")
    console.print(table)
    assert adapter is not None, "there has been a round"
    run = adapter.parents[1]
    advice = (
        f"The adapter lies in {adapter}; ask it, take it out, look at the run:",
        f"  fedloom chat {run}",
        f"  fedloom merge {run} --output_path my-model",
        f"  fedloom report {run} -o report.html    # needs pip install -e '.[report]'",
        f'  AutoPeftModelForCausalLM.from_pretrained("{adapter}")    # in Python, from peft',
    )
    console.print("\n".join(advice), soft_wrap=True)
