"""A run's folder whose files somebody or something has damaged, and what reads it."""

import json
import random
import shutil
from pathlib import Path

from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main


def _flipped(content):
    flipped, drawn = bytearray(content), random.Random(len(content))
    for _ in range(3 if flipped else 0):
        flipped[drawn.randrange(len(flipped))] ^= 1 << drawn.randrange(8)
    return bytes(flipped)


def _of_another_kind(content):
    """Every value of the JSON objects in a file by one of another kind."""

    def other(value):
        return {} if isinstance(value, int | float) else 7 if isinstance(value, str | list | dict) else "x"

    try:
        objects = [json.loads(content)] if b"\n " in content else map(json.loads, content.splitlines())
        made = [json.dumps({name: other(value) for name, value in one.items()}) for one in objects]
    except (ValueError, AttributeError):
        return content[::-1]
    return "\n".join([*made, ""]).encode()


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "an object": lambda content: b"{}\n",
    "a list": lambda content: b"[]\n",
    "null": lambda content: b"null\n",
    "a number": lambda content: b"1e999\n",
    "bits": _flipped,
    "binary": lambda content: bytes(range(256)) * 4,
    "twice": lambda content: content * 2,
    "deep": lambda content: b"[" * 100_000 + b"\n",
    "values of another kind": _of_another_kind,
    "huge numbers": lambda content: content.replace(b": 1", b": " + b"9" * 400),
}
"""What becomes of a file's content, by name."""


def problems(count):
    return [{"question": f"Ann has {i} pears. How many?", "final_ans": i} for i in range(count)]


def films(count):
    return [{"sentence": f"{('fine', 'dull')[i % 2]} film {i}", "label": i % 2} for i in range(count)]


def make_runs(place):
    """A run with a server and one of peers, both judged, small enough to be resumed in no time."""
    save_tiny_llama(place / "llama", num_hidden_layers=1)
    save_tiny_bert(place / "bert", num_hidden_layers=1)
    for name, rows in (("pears", problems), ("films", films)):
        (place / name).mkdir()
        for split, count in (("train", 12), ("validation", 3), ("test", 2)):
            text = "".join(json.dumps(row) + "\n" for row in rows(count))
            (place / name / f"{split}.jsonl").write_text(text)
    common = f"--dtype float32 --wave_tokens 600 --report_to none --out_dir {place}/runs --lora_r 2"
    fed = f"--model_name {place}/llama --data_name ChilleD/MultiArith --data_dir {place}/pears --client_num 2"
    fed += " --client_num_per_step 2 --client_batch_per_step 1 --max_steps 2 --val_steps 1 --patience 0"
    fed += " --server_data_fraction 0.2"
    dfl = f"--model_checkpoint {place}/bert --data_dir {place}/films --num_clients 3 --name ring"
    dfl += " --num_rounds 2 --local_steps 1 --batch_size 2 --save_every 1"
    assert main(f"fed --exp_name fed {common} {fed}".split()) == 0
    assert main(f"dfl --exp_name dfl {common} {dfl}".split()) == 0
    judge = "--max_new_tokens 2 --limit 2 --dtype float32"
    for name in ("fed", "dfl"):
        assert main(f"eval --adapter {place}/runs/{name} {judge}".split()) == 0


def files_of(run: Path):
    """Names of the files of a run; of checkpoints, those of the newest."""
    newest = max((run / "checkpoints").iterdir())
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() and (newest in path.parents or "checkpoints" not in path.parts)
    )


def copied(run: Path, folder: Path):
    """A copy of a run, as it was made, in place of an earlier one."""
    copy = folder / run.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    return copy
