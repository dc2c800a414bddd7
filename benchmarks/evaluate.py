"""Eight adapters that answer in one pass, against one after another, measured.

    python benchmarks/evaluate.py --data_name gsm8k --data_dir FOLDER --out benchmarks/results/evaluate.json

**Contenders.** All answer the same problems, greedily, with the same adapters (LoRA r 16 on PEFT's default
modules, moved by noise, so that their answers differ) and the same `--batch_size`, which is prompts per pass
and adapter:

- `peft`: one after another with HF PEFT's `set_adapter` and transformers' `generate`, prompts sorted by
  length and padded on the left. What a competent user writes.
- `alone`: one after another through fedloom.
- `stacked`: all in one pass through fedloom, as `fedloom eval` does it.

**Taking turns.** In one process: after a warm-up they run one after another, then again; ratios are computed
within each turn, and their median is reported. A time starts with token ids and ends with the token ids of
all answers; nothing is loaded in it.

**Failing.** Exit status 1, and nothing is written, where in float32 more than one answer in fifty differs
between them. (One may: where two tokens are as likely to the last bit, the order of a sum decides.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from itertools import takewhile
from pathlib import Path
from typing import Any

from fedloom.process import prepare_process

prepare_process()

import torch  # noqa: E402
from machine import describe_machine, versions  # noqa: E402
from peft import PeftModel  # noqa: E402
from render import as_markdown  # noqa: E402

from fedloom.data.sources import load_splits  # noqa: E402
from fedloom.data.tasks import TASKS  # noqa: E402
from fedloom.data.templates import prompt_format  # noqa: E402
from fedloom.data.token_ids import encode_prompts  # noqa: E402
from fedloom.errors import UserError  # noqa: E402
from fedloom.evaluation.answering import ends_of_answer  # noqa: E402
from fedloom.evaluation.generate import generate  # noqa: E402
from fedloom.model.adapters.choice import lora  # noqa: E402
from fedloom.model.bank import AdapterBank, Row  # noqa: E402
from fedloom.model.base import load_base  # noqa: E402
from fedloom.model.quiet import quieten  # noqa: E402
from fedloom.model.stacked import StackedModel  # noqa: E402

Written = list[list[list[int]]]
"""For each adapter and problem the tokens of the answer."""

NOISE = 0.002
"""Standard deviation of LoRA's B: answers differ, and are still language."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="hub id, folder, GGUF file or alias")
    add("--data_name", default="arithmetic", help="a task of fedloom that is answered in words")
    add("--data_dir", help="its local files")
    add("--adapters", type=int, default=8)
    add("--prompts", type=int, default=8, help="problems that each adapter answers")
    add("--batch_size", type=int, default=8, help="prompts per pass and adapter")
    add("--max_new_tokens", type=int, default=128)
    add("--device", default="auto")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--repeats", type=int, default=3)
    add("--out", type=Path, help="JSON file of the result")
    return parser.parse_args(arguments)


class Stage:
    """The problems, the adapters, and the base in both forms."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        base = load_base(options.model, device=options.device, dtype=options.dtype)
        task = TASKS[options.data_name]
        splits = load_splits(task, data_dir=options.data_dir, seed=0, token=None)
        form = prompt_format(base.tokenizer, task.instruction)
        questions = [form.render(problem.question) for problem in splits.test[: options.prompts]]
        self.prompts = encode_prompts(questions, base.tokenizer)
        self.ends = ends_of_answer(base.model, base.tokenizer, form.end)
        config = lora(base.model, r=16, alpha=32, dropout=0.0, target_modules=None)
        self.model = StackedModel(base.model, config, seed=0)
        self.rows = [self._adapter(seed) for seed in range(options.adapters)]
        self.peft = self._with_peft(Path(options.scratch))

    def _adapter(self, seed: int) -> Row:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: t + NOISE * torch.randn(t.shape, generator=generator).to(t) if ".lora_B." in name else t
            for name, t in self.model.initial.items()
        }

    def _with_peft(self, folder: Path) -> PeftModel:
        """A second copy of the base, with all adapters in it under their numbers."""
        plain = load_base(self.options.model, device=self.options.device, dtype=self.options.dtype).model
        for number, row in enumerate(self.rows):
            self.model.save(row, folder / str(number))
        model = PeftModel.from_pretrained(plain, str(folder / "0"), adapter_name="0")
        for number in range(1, len(self.rows)):
            model.load_adapter(str(folder / str(number)), adapter_name=str(number))
        return model.eval()

    def stacked(self) -> Written:
        """All adapters in one pass."""
        return self._generate(self.rows)

    def alone(self) -> Written:
        """The adapters one after another."""
        return [self._generate([row])[0] for row in self.rows]

    def _generate(self, rows: Sequence[Row]) -> Written:
        return generate(
            self.model,
            AdapterBank.stack(rows),
            [self.prompts] * len(rows),
            ends=self.ends,
            max_new_tokens=self.options.max_new_tokens,
            batch_size=self.options.batch_size,
        )

    @torch.no_grad()
    def one_after_another_with_peft(self) -> Written:
        """The same with PEFT and transformers' own loop."""
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))
        size, written = self.options.batch_size, []
        for number in range(len(self.rows)):
            self.peft.set_adapter(str(number))
            own: list[list[int]] = [[] for _ in order]
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                for i, answer in zip(batch, self._plain([self.prompts[i] for i in batch]), strict=True):
                    own[i] = answer
            written.append(own)
        return written

    def _plain(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        pad, longest = self.model.layout.pad_id, max(map(len, prompts))
        ids = [[pad] * (longest - len(own)) + list(own) for own in prompts]
        mask = [[0] * (longest - len(own)) + [1] * len(own) for own in prompts]
        made = self.peft.generate(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self.ends),
            pad_token_id=pad,
        )
        answers = made[:, longest:].tolist()
        return [list(takewhile(lambda token: token not in self.ends, own)) for own in answers]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All contenders in turns."""
    stage = Stage(options)
    contenders: dict[str, Callable[[], Written]] = {
        "peft": stage.one_after_another_with_peft,
        "alone": stage.alone,
        "stacked": stage.stacked,
    }
    turns: list[dict[str, float]] = []
    for turn in range(options.repeats + 1):
        taken, written = {}, {}
        for name, answer in contenders.items():
            began = time.perf_counter()
            written[name] = answer()
            taken[name] = time.perf_counter() - began
            print(f"{turn or 'warm-up'}  {name:8} {taken[name]:8.2f} s", file=sys.stderr, flush=True)
        turns.append(taken)
    every = {name: [tuple(own) for row in rows for own in row] for name, rows in written.items()}
    turns = turns[1:]
    return {
        "kind": "evaluate",
        "seconds": {name: [turn[name] for turn in turns] for name in contenders},
        "of_alone": statistics.median(turn["stacked"] / turn["alone"] for turn in turns),
        "of_peft": statistics.median(turn["stacked"] / turn["peft"] for turn in turns),
        "answers": len(every["stacked"]),
        "tokens_written": sum(map(len, every["stacked"])),
        "longest_answer": max(map(len, every["stacked"])),
        "different": {
            name: sum(a != b for a, b in zip(every[name], every["stacked"], strict=True))
            for name in ("alone", "peft")
        },
        "prompt_tokens": sum(map(len, stage.prompts)),
        "machine": describe_machine(stage.model.device),
        "versions": versions(),
    }


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without this machine's folders."""
    defaults = vars(parse([]))
    model = Path(options.model).name if Path(options.model).exists() else options.model
    shown = {**vars(options), "model": model, "data_dir": options.data_dir and "FOLDER"}
    words = [
        f"--{name} {shown[name]}" for name in defaults if name != "out" and shown[name] != defaults[name]
    ]
    settings = {name: shown[name] for name in defaults if name not in ("out", "data_dir")}
    return {
        "settings": settings,
        "command": " ".join(["python benchmarks/evaluate.py", *words]),
        "date": date.today().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    import tempfile

    options = parse(sys.argv[1:] if arguments is None else arguments)
    quieten()
    try:
        with tempfile.TemporaryDirectory() as options.scratch:
            measured = measure(options)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    result = {**origin(options), **measured}
    if options.dtype == "float32" and max(measured["different"].values()) > measured["answers"] / 50:
        print(f"FAILED: answers differ: {measured['different']}", file=sys.stderr)
        return 1
    print(as_markdown(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
