"""`fedloom demo`: a small real model learns arithmetic across four clients, offline, in minutes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fedloom.data.encode import encode_prompts
from fedloom.errors import plain_console
from fedloom.evaluation.answering import BATCH_SIZE, Answers, Questions, answer
from fedloom.evaluation.evaluate import validate
from fedloom.model.bank import AdapterBank, Row
from fedloom.options.fed import FedConfig
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runs.files import writing
from fedloom.runs.inputs import Inputs
from fedloom.runs.progress import clock
from fedloom.runs.rows import read_rows
from fedloom.runs.run_folder import opened, write_run_config
from fedloom.training.fed import drive, first_standing, write_held
from fedloom.training.fed_rounds import play_round
from fedloom.training.setup_fed import Parts, build, device_name, intervals, run_folder, versions

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
TRIED_PROBLEMS = BATCH_SIZE


@dataclass(frozen=True)
class Speed:
    """What the demo's parts take here, in seconds."""

    round: float
    answer: float
    validation: float

    def of(self, size: Size) -> float:
        """Seconds from the first answer to the table."""
        return size.rounds * self.round + 2 * size.problems * (self.answer + self.validation)


@dataclass(frozen=True)
class Size:
    """How much the demo does.

    Attributes:
        rounds: Federated rounds.
        problems: Problems of the test split that are answered before and after, and of the validation split.
    """

    rounds: int
    problems: int


def choose_size(speed: Speed, left: float, rounds: int | None = None, problems: int | None = None) -> Size:
    """What fits into a time: at most a quarter of it for problems, 16 at a time, the rest for rounds.

    Args:
        speed: Of this machine.
        left: Seconds.
        rounds: As the user wants it.
        problems: As the user wants it.
    """
    if problems is None:
        fit = int(0.25 * left / (2 * (speed.answer + speed.validation))) // BATCH_SIZE * BATCH_SIZE
        problems = min(max(fit, FEWEST_PROBLEMS), MOST_PROBLEMS)
    if rounds is None:
        fit = int((left - speed.of(Size(0, problems))) / speed.round)
        rounds = min(max(fit, FEWEST_ROUNDS), MOST_ROUNDS)
    return Size(rounds, problems)


def demo_config(
    *, size: Size, seed: int, out_dir: str, exp_name: str, device: str, dtype: Dtype
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
        max_steps=size.rounds,
        val_steps=size.rounds,
        val_limit=size.problems,
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

    How many rounds and problems is measured where nobody says it.
    """
    console = plain_console()
    some = Size(rounds or FEWEST_ROUNDS, problems or FEWEST_PROBLEMS)
    wanted = demo_config(size=some, seed=seed, out_dir=out_dir, exp_name=exp_name, device=device, dtype=dtype)
    folder = _fresh_folder(run_folder(wanted))
    with opened(folder, wanted):
        _run(console, wanted, folder, rounds, problems)


def _run(console: Console, wanted: FedConfig, folder: Path, rounds: int | None, problems: int | None) -> None:
    inputs = Inputs()
    config, parts = build(wanted, inputs=inputs)
    on = device_name(parts.model.device)
    console.print(f"Loaded {MODEL} in {config.dtype} on {on}.")
    if rounds is None or problems is None:
        config = _sized(console, config, parts, rounds, problems)
    write_run_config(folder, config, versions(), on, inputs.found)
    write_held(folder, parts)
    assert config.val_limit is not None
    console.print(f"Answering {config.val_limit} problems that no client has …")
    before = answer_unseen(parts, parts.model.initial, config.val_limit)
    console.print(f"{before.accuracy:.0%} right. Validating, then training {config.max_steps} rounds …")
    final = drive(replace(parts, val_limit=config.val_limit), intervals(config), folder)
    console.print("Answering the same problems again …")
    after = answer_unseen(parts, final.server.adapter, config.val_limit)
    adapter = latest_checkpoint(folder)
    assert adapter is not None
    _report(console, before, after, read_rows(folder), adapter)


def _sized(
    console: Console, config: FedConfig, parts: Parts, rounds: int | None, problems: int | None
) -> FedConfig:
    """The config with as many rounds and problems as this machine has time for."""
    console.print("Trying how fast this machine is …")
    speed = measure(parts)
    size = choose_size(speed, WANTED_SECONDS - _seconds_so_far(), rounds, problems)
    console.print(
        f"A round takes {speed.round:.1f} s here, a problem {speed.answer:.2f} s: {size.rounds} rounds and "
        f"{size.problems} problems, done in about {clock(speed.of(size))}. The same again, on any machine:\n"
        f"  fedloom demo --rounds {size.rounds} --problems {size.problems} --seed {config.seed} "
        f"--dtype {config.dtype}",
        soft_wrap=True,
    )
    return replace(config, max_steps=size.rounds, val_steps=size.rounds, val_limit=size.problems)


def measure(parts: Parts) -> Speed:
    """What the demo's parts take here: each is done a little, and timed when it is warm.

    Nothing of it stays: a round is a function of where the run stands.
    """
    start = first_standing(parts)
    one_client = replace(parts, per_round=1)
    asked = [example.question for example in parts.splits.validation[:TRIED_PROBLEMS]]
    labelled = parts.data.validation[:TRIED_PROBLEMS]
    row, wave = start.server.adapter, parts.rules.wave_tokens

    def answers(problems: int) -> Answers:
        return _answers(parts, row, asked[:problems], [""] * problems)

    play_round(one_client, start)
    seconds = _seconds_of(lambda: play_round(one_client, start))
    answers(1)
    return Speed(
        round=parts.per_round * seconds,
        answer=_seconds_of(lambda: answers(len(asked))) / len(asked),
        validation=_seconds_of(lambda: validate(parts.model, row, labelled, wave)) / len(labelled),
    )


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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


def answer_unseen(parts: Parts, row: Row, problems: int = 100) -> Answers:
    """What an adapter answers to the first test problems, whose answers are short."""
    asked = parts.splits.test[:problems]
    return _answers(parts, row, [one.question for one in asked], [one.final for one in asked])


def _answers(parts: Parts, row: Row, asked: Sequence[str], expected: Sequence[str]) -> Answers:
    form = parts.data.form
    prompts = encode_prompts([form.render(question) for question in asked], parts.tokenizer)
    questions = Questions(prompts, expected, LONGEST_ANSWER, form.end)
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
