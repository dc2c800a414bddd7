"""`fedloom compare`: a grid over seeds, which goes on where it stopped."""

import json
import os
import re
import signal
import time

import pytest
import torch
from processes import CONTEXT, wait_for_rows
from run_files import write_sums
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM

from fedloom.commands import compare, jobs
from fedloom.commands.cli import main
from fedloom.commands.compare import show
from fedloom.options.compare import Plan, read_plan
from fedloom.report.comparison import Sample, compared
from fedloom.runs.record import read_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_sums(tmp_path_factory.mktemp("inputs"))
    save_tiny_llama(folder / "model")
    return folder


def plan(inputs, **more):
    options = {
        "model_name": str(inputs / "model"),
        "data_name": "qa",
        "data_dir": str(inputs),
        "train_mode": "fed",
        "client_num": 2,
        "client_num_per_step": 2,
        "max_steps": 2,
        "val_steps": 1,
        "lora_r": 2,
        "dtype": "float32",
        "report_to": "none",
        "wave_tokens": 600,
    }
    grid = {"method": ["FedAvg", "RoLoRA"]}
    return {"command": "fed", "options": options, "grid": grid, "seeds": [1, 2]} | more


def test_a_grid_is_run_once_and_compared_and_goes_on_with_what_is_missing(inputs, tmp_path, capsys):
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(json.dumps(plan(inputs, seeds=[1])))
    assert main(["compare", str(file), "--out_dir", str(out)]) == 0
    # One run is left half done, as by a kill: its end is not there yet.
    (out / "RoLoRA-seed=1" / "summary.json").unlink()
    file.write_text(json.dumps(plan(inputs, metric="val_loss")))
    capsys.readouterr()
    assert main(["compare", str(file), "--out_dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("was made before") == 1 and "run 4/4: RoLoRA, seed 2" in said
    assert "FedAvg" in said and "±" in said and "paired t-test" in said
    rows = (out / "compare.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["FedAvg", "2"], ["RoLoRA", "2"]]
    assert "\\pm" in (out / "compare.tex").read_text()
    losses = [
        json.loads((out / f"FedAvg-seed={seed}" / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
        for seed in (1, 2)
    ]
    assert float(rows[1].split(",")[2]) == pytest.approx(sum(losses) / 2)

    file.write_text(json.dumps(plan(inputs, metric="val_loss", budget={"rounds": 1})))
    assert main(["compare", str(file), "--out_dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("was made before") == 4 and "at its last validation within 1 rounds" in said
    early = [
        json.loads((out / f"FedAvg-seed={seed}" / "metrics.jsonl").read_text().splitlines()[1])["val_loss"]
        for seed in (1, 2)
    ]
    rows = (out / "compare.csv").read_text().splitlines()
    assert float(rows[1].split(",")[2]) == pytest.approx(sum(early) / 2)


def test_a_setting_of_a_list_counts_instead_of_what_all_have(inputs, tmp_path, monkeypatch):
    """Both load the base once, and come to what `fedloom fed` comes to."""
    file = tmp_path / "plan.yaml"
    rows = [{"method": "FedAvg"}, {"method": "SCAFFOLD", "client-optimizer": "sgd", "num_clients": 4}]
    given = plan(inputs, grid=rows, seeds=[5])
    given["options"]["client_optimizer"] = "adamw"
    file.write_text(json.dumps(given))
    first, second = read_plan(file).runs
    assert first.options == given["options"] | {"method": "FedAvg"}
    changed = {"method": "SCAFFOLD", "client_optimizer": "sgd", "client_num": 4}
    assert second.options == given["options"] | changed
    assert second.label == "SCAFFOLD client-optimizer=sgd num_clients=4"
    real, loads = AutoModelForCausalLM.from_pretrained, []
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or real(*a, **k)
    )
    assert main(["compare", str(file), "--out_dir", str(tmp_path / "out")]) == 0
    assert len(loads) == 1
    made = read_run(tmp_path / "out" / second.name)
    assert {name: made.options[name] for name in changed} == changed
    words = [f"--{name}={value}" for name, value in second.options.items()]
    assert main(["fed", *words, "--seed=5", f"--out_dir={tmp_path}", "--exp_name=alone"]) == 0
    alone = read_run(tmp_path / "alone")
    tensors = [next(run.checkpoint.rglob("adapter_model.safetensors")) for run in (made, alone)]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()


def test_a_run_that_fails_ends_no_other(inputs, tmp_path, capsys):
    """The settings stand in a list, where not every combination is wanted."""
    file = tmp_path / "plan.yaml"
    given = plan(inputs, grid=[{"client_num": 2, "lora_alpha": 4}, {"client_num": 500}], seeds=[1])
    file.write_text(json.dumps(given))
    assert main(["compare", str(file), "--out_dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "failed: " in said and "500" in said and "run 1/2: client_num=2 lora_alpha=4" in said
    assert (tmp_path / "out" / "compare.csv").read_text().splitlines()[2].endswith(",1")


TARGETS = "DFL-LoRA target_modules=.*layer\\.[14]\\.attention\\.self\\.(query|value)"
TABLE = f"""
val_accuracy; difference from the first setting ± half of its 95 % interval
setting
  n       mean ± sd        difference                sent      time
D-PSGD
  3       0.7000 ± 0.0010                            123.5 MB  12 s
{TARGETS}
  2 of 3  0.7300 ± 0.0000  +0.0295 ± 0.0064  higher  123.5 MB  12 s
"""


@pytest.mark.parametrize("columns, beside", [(80, False), (160, True)])
def test_a_line_of_80_characters_has_room_for_the_table(columns, beside, capsys, monkeypatch):
    """However long the settings are: they stand above their numbers, where there is no room beside them."""
    monkeypatch.setenv("COLUMNS", str(columns))
    others = {"bytes": {1: 123456789.0}, "seconds": {1: 12.3}}
    samples = [
        Sample("D-PSGD", {1: 0.7, 2: 0.701, 3: 0.699}, others, {}),
        Sample(TARGETS, {1: 0.73, 2: 0.73}, others, {3: "diverged"}),
    ]
    show(compared(samples), Plan("dfl", "val_accuracy", []))
    table = capsys.readouterr().out.rpartition("Differences are taken")[0]
    if beside:
        table = re.sub(rf"\n(setting|D-PSGD|{re.escape(TARGETS)}) +", r"\n\1\n  ", table)
    assert table == TABLE


DIES = """
import os
from fedloom.options.parts import plug_in

@plug_in("aggregator")
def dies():
    return lambda changes: os._exit(9)
"""


def test_several_processes_make_what_one_makes_and_one_that_dies_ends_no_other(
    inputs, tmp_path, capsys, monkeypatch
):
    (tmp_path / "mine.py").write_text(DIES)
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda method: CONTEXT)  # has loaded torch
    grid = [
        {"client_lr": 0.1},
        {"aggregator": "dies", "plugin": str(tmp_path / "mine.py")},
        {"client_num": 500},
        {"client_lr": 0.2},
    ]
    given = plan(inputs, grid=grid, seeds=[1])
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(given))
    assert main(["compare", str(file), "--out_dir", str(tmp_path / "out"), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert (
        "run 1/4: client_lr=0.1, seed 1 is made" in said and "run 4/4: client_lr=0.2, seed 1 is made" in said
    )
    assert "run 2/4 failed: its process ended with status 9; see the end of " in said
    assert "run 3/4 failed: " in said and "500" in said
    file.write_text(json.dumps(given | {"grid": [grid[0], grid[3]]}))
    assert main(["compare", str(file), "--out_dir", str(tmp_path / "one")]) == 0
    for name in ("client_lr=0.1-seed=1", "client_lr=0.2-seed=1"):
        rows = [
            [json.loads(line)["val_loss"] for line in (tmp_path / out / name / "metrics.jsonl").open()]
            for out in ("out", "one")
        ]
        assert rows[0] == rows[1]


def test_more_jobs_than_runs_take_no_share_of_the_machine(inputs, tmp_path, monkeypatch):
    file, asked = tmp_path / "plan.yaml", []
    file.write_text(json.dumps(plan(inputs, seeds=[1])))
    monkeypatch.setattr(compare, "share_out", lambda *given: asked.append(given) or [])
    assert list(compare._made(read_plan(file), file, tmp_path, jobs=8)) == []
    assert asked == [(compare.maker, (file, tmp_path, 2), range(2), 2, tmp_path)]


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(inputs, tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(plan(inputs)))
    (tmp_path / "job-2.log").mkdir()
    assert main(["compare", str(file), "--out_dir", str(tmp_path), "--jobs", "2"]) == 2
    told = capsys.readouterr()
    assert "job-2.log" in told.err and told.err.count("\n") == 1 and not told.out


def test_a_process_that_is_gone_before_its_run_begins_is_told_of_as_any_that_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda method: CONTEXT)
    job = jobs.Job(print, (), tmp_path / "job-1.log", 1)
    job.process.kill()
    job.process.join()
    job.begin(0)  # a broken pipe would be taken for an output that nobody reads
    with pytest.raises((EOFError, ConnectionResetError)):
        job.outcome()


def test_ctrl_c_leaves_a_checkpoint_of_every_run(inputs, tmp_path, monkeypatch):
    """It reaches all processes of a terminal at once; then the first one ends the others."""
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda method: CONTEXT)
    file, folder = tmp_path / "plan.yaml", tmp_path / "FedAvg-seed=1"
    given = plan(inputs)
    file.write_text(json.dumps(given | {"options": given["options"] | {"max_steps": 5000}}))
    job = jobs.Job(compare.maker, (file, tmp_path), tmp_path / "job-1.log", 1)
    job.begin(0)
    wait_for_rows(folder, 2, job.process.is_alive)
    os.kill(job.process.pid, signal.SIGINT)
    time.sleep(0.02)  # the checkpoint has begun
    job.process.terminate()
    job.process.join()
    assert "interrupted after round" in (tmp_path / "job-1.log").read_text()
    assert any((folder / "checkpoints").iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_next_run_finds_a_gpu_as_free_as_the_first_did(inputs, tmp_path):
    """What PyTorch keeps of memory that nobody uses would make its waves smaller."""
    file, most = tmp_path / "plan.yaml", 1 << 28
    torch.empty(most, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() >= most
    file.write_text(json.dumps(plan(inputs, seeds=[1])))
    assert main(["compare", str(file), "--out_dir", str(tmp_path / "out")]) == 0
    assert torch.cuda.memory_reserved() < most


@pytest.mark.parametrize(
    "more, said",
    [
        ({"command": "eval"}, "command: eval is not one of fed, dfl"),
        ({"command": ["fed"]}, "command: ['fed'] is not one of fed, dfl"),
        ({"grids": {}}, "unknown key grids; did you mean grid"),
        ({"grid": {"method": "FedAvg"}}, "grid: method must have a list of values"),
        ({"grid": {"lora_r": [2]}}, "lora_r stands among the options too"),
        ({"grid": {"num_clients": [2]}}, "client_num stands among the options too"),
        ({"grid": [{"client_num": 2, "num-clients": 3}]}, "grid: num_clients: is another name of client_num"),
        (
            {"grid": {"client_lr": [0.1], "client-lr": [0.2]}},
            "line 1: grid: client-lr is another spelling of client_lr, which is given too; leave one",
        ),
        ({"grid": [{"lora-r": 2, "lora_r": 4}]}, "grid: lora_r is another spelling of lora-r"),
        (
            {"options": {"max_steps": 1, "max-steps": 2}},
            "options: max-steps is another spelling of max_steps",
        ),
        ({"options": {"max_steps": 1, "num-rounds": 2}}, "options: num_rounds: is another name of max_steps"),
        ({"grid": ["FedAvg"]}, "grid: write lines of the form `option: value`"),
        ({"grid": [{"seed": 1}]}, "seed is for compare to give"),
        ({"grid": {"method": ["FedAvg", "FedAvgg"]}}, "FedAvgg: method: FedAvgg is not one of"),
        ({"grid": {"methd": ["FedAvg"]}}, "unknown flag --methd; did you mean --method"),
        ({"seeds": [1, 1]}, "seeds: one stands there twice"),
        (
            {"budget": {"bytes": 3}},
            "must name rounds, megabytes, megabytes_up, seconds, as in {megabytes: 40}",
        ),
        ({"budget": {"rounds": 0}}, "budget: rounds: 0 must be a number above 0"),
        ({"budget": 40}, "budget: 40 must name rounds"),
        ({"budget": False}, "budget: False must name rounds"),
        ({"budget": {"rounds": 10**20}}, "must be a number above 0, to 1e15"),
        ({"seeds": 3}, "seeds: must be a list of whole numbers"),
        ({"options": {"seed": 3}}, "seed is for compare to give"),
    ],
)
def test_a_mistake_in_the_file_is_told_before_anything_runs(inputs, tmp_path, more, said, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(plan(inputs, **more)))
    assert main(["compare", str(file), "--out_dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "out").exists()
