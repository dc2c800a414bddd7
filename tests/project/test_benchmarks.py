"""The benchmark runs on a tiny model, its contenders agree, and pages show what its files say."""

import importlib
import json
import math
import multiprocessing
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from on_ranks import on_ranks
from places import ROOT
from processes import CONTEXT, start
from run_files import write_problems, write_rows
from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def module(monkeypatch):
    """Imports a file of the benchmark, as the files import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems"), train=100, validation=10, test=10)


def fork_workers(module, monkeypatch, spawned=0):
    """Processes of the benchmark are forked of one that has loaded torch, but for the first few of them."""
    contexts = [multiprocessing.get_context("spawn")] * spawned
    monkeypatch.setattr(
        module("workers"),
        "multiprocessing",
        SimpleNamespace(get_context=lambda method: contexts.pop() if contexts else CONTEXT),
    )


def test_a_round_is_measured_and_shown(model, data, module, tmp_path, capsys, monkeypatch):
    fork_workers(module, monkeypatch, spawned=1)
    page, out = tmp_path / "page.md", tmp_path / "results" / "tiny.json"
    page.write_text("# A page\n<!-- benchmark:tiny -->\nold\n<!-- /benchmark -->\nThe end.\n")
    words = f"--model {model} --data_dir {data} --device cpu --dtype float32 --clients 2 --batches 2"
    words += f" --only {','.join(module('round').CONTENDERS)} --repeats 2 --slow-repeats 1"
    words += f" --out {out} --write-docs {page}"
    assert module("round").main(words.split()) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())

    contenders = {row["name"]: row for row in result["contenders"]}
    assert list(contenders) == ["padded", "dynamic", "central", "central-wide", "fedloom", "fedloom-loop"]
    assert {name: len(row["seconds"]) for name, row in contenders.items()} == {
        "padded": 1,
        "dynamic": 2,
        "central": 2,
        "central-wide": 2,
        "fedloom": 2,
        "fedloom-loop": 2,
    }
    for name in ("padded", "dynamic"):
        assert contenders["fedloom"]["losses"] == pytest.approx(contenders[name]["losses"], rel=1e-5)
        assert contenders["fedloom"]["moved"] == pytest.approx(contenders[name]["moved"], rel=1e-4)
    assert result["agreement"]["float32"]["losses"] < 1e-5
    # The first client's step is central training's first.
    assert contenders["central"]["losses"][0] == pytest.approx(contenders["dynamic"]["losses"][0], rel=1e-5)

    measured, clients, batches, batch_size = result["data"], 2, 2, 2
    assert measured["sequences"] == clients * batches * batch_size
    assert contenders["padded"]["tokens"] == measured["sequences"] * 256
    saved = measured["shared_prefix"] * (measured["sequences"] - clients)
    assert contenders["fedloom"]["tokens"] == measured["useful_tokens"] - saved
    hidden, intermediate, layers = 32, 48, 2
    weights = layers * (2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * intermediate)
    assert measured["linear_parameters"] == weights
    head = hidden * 320 * measured["labels"]
    assert measured["needed_flops"] == 4 * (weights * measured["useful_tokens"] + head)
    for row in contenders.values():
        share = measured["needed_flops"] / row["median_seconds"] / result["gemm_flops"]["float32"]
        assert row["gemm_share"] == pytest.approx(share)
    assert contenders["padded"]["times_padded"] == 1.0

    assert set(result["versions"]) == {"python", "torch", "transformers", "peft", "fedloom"}
    assert {"cpu", "cores", "threads"} <= set(result["machine"])
    assert str(tmp_path) not in out.read_text() and str(model) not in out.read_text()
    table = page.read_text().removeprefix("# A page\n<!-- benchmark:tiny -->\n").partition("<!-- /")[0]
    assert "**fedloom**" in table and table.strip() == printed.strip()


def test_clipped_gradients_are_those_of_opacus(model, module, tmp_path, capsys):
    """Where Opacus is installed; it is in no lock."""
    pytest.importorskip("opacus")
    out = tmp_path / "private.json"
    words = (
        f"--models {model} {save_tiny_bert(tmp_path / 'bert')} --shapes 1x6x12 1x6x12:5 3x2x12 --repeats 1"
    )
    assert module("private_step").main([*words.split(), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    apart = [far for row in result["rows"] for far in row["apart"].values()]
    assert len(apart) == 2 * 2 * 2 and max(apart) < 3e-6
    assert "**fedloom, clipped**" in capsys.readouterr().out


def test_memory_is_measured_also_with_random_weights(data, module, tmp_path, capsys, monkeypatch):
    fork_workers(module, monkeypatch)
    out = tmp_path / "memory.json"
    words = f"--memory --arch llama-tiny --data_dir {data} --device cpu --dtype float32 --batches 1"
    assert module("round").main([*words.split(), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [one["clients"] for one in result["runs"]] == [4, 50]
    assert result["runs"][0]["wave_tokens"] == result["runs"][1]["wave_tokens"]
    assert 0.8 < result["ratio"] < 1.2
    assert "llama-tiny, random weights" in capsys.readouterr().out


def test_a_mistake_is_told(module, capsys):
    assert module("round").main(["--arch", "llama-9b", "--device", "cpu"]) == 2
    assert "error: --arch llama-9b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "apart", "agrees"),
    [
        ("float32", 1e-6, True),
        ("float32", 2e-3, False),
        ("float32", float("nan"), False),
        ("bfloat16", 2e-3, True),
        ("bfloat16", 1.0, False),
    ],
)
def test_times_of_contenders_that_disagree_are_refused(module, dtype, apart, agrees):
    verdict = module("verdict")
    rows = [
        {"name": "padded", "dtype": dtype, "losses": [1.0, 2.0], "moved": [0.1, 0.1]},
        {"name": "fedloom", "dtype": dtype, "losses": [1.0, 2.0 * (1 + apart)], "moved": [0.1, 0.1]},
    ]
    result = {"agreement": verdict.agreement(rows), "contenders": rows}
    if agrees:
        verdict.check(result)
    else:
        with pytest.raises(verdict.Disagreement, match="losses"):
            verdict.check(result)


def test_memory_that_grows_is_refused(module):
    verdict = module("verdict")
    verdict.check_memory({"ratio": 1.1, "training_ratio": None})
    with pytest.raises(verdict.Disagreement, match=r"1\.30"):
        verdict.check_memory({"ratio": 1.1, "training_ratio": 1.3})


def test_a_page_that_is_not_up_to_date_is_found(module, tmp_path, capsys):
    render = module("render")
    result = {
        "kind": "memory",
        "model": "m",
        "dtype": "float32",
        "settings": {"data": "arithmetic"},
        "runs": [{"clients": 4, "tokens": 10, "peak_bytes": 2**30, "training_peak_bytes": None}],
        "ratio": 1.0,
        "training_ratio": None,
        "machine": {"cpu": "c", "cores": 2, "threads": 2, "system": "Linux"},
        "versions": {"python": "3"},
        "date": "2026-01-01",
        "command": "python benchmarks/round.py --memory",
    }
    (tmp_path / "m.json").write_text(json.dumps(result))
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- benchmark:m -->\n<!-- /benchmark -->\nb\n")
    check = ["--results", str(tmp_path), "--check", str(page)]
    assert render.main(check) == 1
    assert render.main(["--results", str(tmp_path), str(page)]) == 0
    assert render.main(check) == 0
    assert "| 4 | 10 | 1.00 GiB |  |" in page.read_text()
    assert page.read_text().startswith("a\n") and page.read_text().endswith("b\n")


def test_adapters_in_one_pass_are_measured_against_one_after_another(model, data, module, tmp_path, capsys):
    out = tmp_path / "evaluate.json"
    words = f"--model {model} --data_dir {data} --adapters 3 --prompts 5 --batch_size 2 --max_new_tokens 8"
    assert module("evaluate").main(f"{words} --repeats 1 --device cpu --out {out}".split()) == 0
    result = json.loads(out.read_text())
    assert result["answers"] == 15 and result["different"] == {"alone": 0, "peft": 0}
    assert result["of_alone"] == result["seconds"]["stacked"][0] / result["seconds"]["alone"][0]
    assert capsys.readouterr().out == module("tables").as_markdown(result) + "\n"
    assert str(model) not in out.read_text()


def run_forked(command, *, check, env, **_):
    """`subprocess.run` of `fedloom`, alone or under torchrun, in processes that need not load torch."""
    words = command[command.index("fedloom") + 1 :]
    folder = Path(words[words.index("--out_dir") + 1])
    if command[1:3] == ["-m", "torch.distributed.run"]:
        on_ranks(folder, [(words, None)], count=int(command[command.index("--nproc-per-node") + 1]))
    else:
        process = start(words, folder / "said.txt")
        process.join()
        assert process.exitcode == 0, (folder / "said.txt").read_text()


@pytest.mark.deploy
def test_ranks_are_measured_against_one_process(data, module, tmp_path, monkeypatch):
    ranks, out = module("ranks"), tmp_path / "ranks.json"
    encoder = save_tiny_bert(tmp_path / "encoder")
    monkeypatch.setattr(ranks, "subprocess", SimpleNamespace(run=run_forked, DEVNULL=subprocess.DEVNULL))
    both = ranks.commands
    monkeypatch.setattr(
        ranks, "commands", lambda options: {"dfl": [*both(options)["dfl"], "--data_dir", str(data)]}
    )
    words = f"--dfl_model {encoder} --peers 2 --batches 1 --rounds 2 --repeats 1 --out {out}"
    assert ranks.main(words.split()) == 0
    result = json.loads(out.read_text())
    for found in result["runs"].values():
        (turn,) = found["turns"]
        assert turn["ranks"]["tokens"] == turn["process"]["tokens"]
        assert turn["ranks"]["val_loss"] == pytest.approx(turn["process"]["val_loss"], rel=1e-5)
        assert found["round_seconds_ratio"] > 0
    assert str(tmp_path) not in out.read_text()
    assert "two ranks, one thread each" in module("tables").as_markdown(result)


@pytest.mark.parametrize("script", ["round.py", "evaluate.py"])
def test_a_benchmark_starts_as_a_script(script, module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert ended.value.code == 0 and f"usage: {script}" in capsys.readouterr().out


def test_what_aggregation_adds_to_a_round_is_told_by_method(model, data, module, capsys):
    words = f"--model_name {model} --data_dir {data} --device cpu --client_num 3 --client_batch_per_step 1"
    words += " --lora_r 2 --repeats 1"
    aggregation = module("aggregation")
    assert aggregation.main(words.split()) == 0
    told, _, table = capsys.readouterr().out.partition("| --- |")
    assert "3 clients, rank 2" in told
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:]]
    assert [name for name, *_ in rows] == list(aggregation.METHODS)
    assert rows[0][2] == "0.0%" and all(float(seconds) >= 0 for _, seconds, _ in rows)
    assert aggregation.main(["--lora_r", "0"]) == 2
    assert "lora_r" in capsys.readouterr().err


def test_the_consensus_error_of_a_comparison_is_divided_between_the_factors(module, tmp_path):
    """Where A is frozen it is all the Bs'; where both train, the two parts bound it, and A has moved."""
    encoder = save_tiny_bert(tmp_path / "encoder")
    texts = [{"sentence": f"{'good' if i % 2 else 'bad'} number {i}", "label": i % 2} for i in range(24)]
    write_rows(tmp_path / "data" / "train.jsonl", texts)
    write_rows(tmp_path / "data" / "validation.jsonl", texts[:4])
    options = f"{{model_checkpoint: {encoder}, dataset_type: sst2, data_dir: {tmp_path / 'data'}, "
    options += "num_clients: 3, name: line, num_rounds: 8, local_steps: 1, batch_size: 4, lr: 0.02, "
    options += "mix_head: false, eval_every: 8, report_to: none, dtype: float32}"
    config, folder, out = tmp_path / "drift.yaml", tmp_path / "runs", tmp_path / "drift.json"
    config.write_text(
        f"command: dfl\noptions: {options}\ngrid: {{training_type: [LoRA, DFL-LoRA]}}\nseeds: [1, 2]\n"
    )
    assert main(["compare", str(config), "--out_dir", str(folder)]) == 0
    assert module("drift").main([str(config), str(folder), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    for run in result["runs"]:
        found, error = run["factors"]["8"], run["consensus_error"][-1]
        if run["settings"]["training_type"] == "DFL-LoRA":
            assert found["moved"] == found["apart"] == found["by_A"] == 0
            assert found["grown"] == pytest.approx(1)
            assert found["by_B_at_start"] == found["by_B"]
            assert found["by_B"] == pytest.approx(error, rel=1e-5)
        else:
            assert found["moved"] > found["apart"] > 0.01 and found["grown"] > 1
            assert abs(found["by_B"] - found["by_A"]) <= error <= found["by_B"] + found["by_A"]

    (pairs,) = module("tables_drift").pairs_of(result)
    starts = [run["factors"]["8"]["start_rms"] for run in pairs.both]
    assert pairs.step == pytest.approx(2 * 0.02 / sum(starts))
    ratios = [
        lora["consensus_error"][-1] / frozen["consensus_error"][-1]
        for lora, frozen in zip(pairs.both, pairs.frozen, strict=True)
    ]
    assert [run["seed"] for run in pairs.both] == [1, 2]
    # Two seeds have one degree of freedom: half their distance times tan(0.475 π), in logarithms.
    half = abs(math.log(ratios[0] / ratios[1])) / 2 * math.tan(0.475 * math.pi)
    mean = math.sqrt(ratios[0] * ratios[1])
    expected = (mean, mean * math.exp(-half), mean * math.exp(half))
    assert module("cells").geometric(ratios) == pytest.approx(expected)
    error = sum(run["consensus_error"][-1] for run in pairs.both) / 2
    assert f" | 2 | {error:.3g} | " in module("tables").as_markdown(result)

    assert module("compared").main([str(config), str(folder), "--out", str(out)]) == 0
    table = module("tables").as_markdown(json.loads(out.read_text())).splitlines()
    printed = (folder / "compare.csv").read_text().splitlines()[1:]
    for row, line in zip(table[2:4], printed, strict=True):
        label, n, mean = line.split(",")[:3]
        assert [cell.strip() for cell in row.split("|")[1:3]] == [f"`{label}`", n]
        assert row.split("|")[3].strip().startswith(f"{100 * float(mean):.1f} ± ")
    assert module("compared").main([str(config), str(tmp_path), "--out", str(out)]) == 2


def write_stopped_run(folder, way, seed, errors, accuracy):
    """What a run leaves that was stopped: no summary."""
    options = {"model_checkpoint": "tiny", "dataset_type": "sst2", "training_type": way, "seed": seed}
    options |= {"num_clients": 3, "name": "ring", "partition": "dirichlet", "alpha": 0.5, "min_size": 8}
    options |= {"lora_r": 4, "lora_alpha": 8, "target_modules": "query,value", "mix_head": False, "lr": 0.01}
    options |= {"batch_size": 4, "local_epochs": 1, "local_steps": None, "num_rounds": 9, "run": {}}
    rows = [{"round": 0, "val_accuracy": 0.5, "val_accuracy_min": 0.5, "val_accuracy_max": 0.5}]
    rows += [{"round": t, "consensus_error": e, "consensus_error_relative": e / 8} for t, e in errors]
    rows[2] |= {"val_accuracy": accuracy, "val_accuracy_min": accuracy, "val_accuracy_max": accuracy}
    write_rows(folder / f"training_type={way}-seed={seed}" / "metrics.jsonl", rows)
    (folder / f"training_type={way}-seed={seed}" / "config.yaml").write_text(json.dumps(options))


def test_runs_that_were_stopped_are_compared_over_the_rounds_that_all_have(module, tmp_path, capsys):
    config, out = tmp_path / "epochs.yaml", tmp_path / "epochs.json"
    config.write_text("command: dfl\ngrid: {training_type: [LoRA, DFL-LoRA]}\nseeds: [1, 2]\n")
    command = [str(config), str(tmp_path), "--out", str(out)]
    assert module("over_rounds").main(command) == 2
    assert "no run has done a round" in capsys.readouterr().err

    write_stopped_run(tmp_path, "LoRA", 1, [(1, 1.0), (3, 1.0)], 0.8)
    assert module("over_rounds").main(command) == 2
    assert "no seed has a run of LoRA and one of DFL-LoRA" in capsys.readouterr().err
    write_stopped_run(tmp_path, "DFL-LoRA", 1, [(1, 1.0), (2, 1.0), (3, 1.0)], 0.7)
    assert module("over_rounds").main(command) == 2
    assert "LoRA-seed=1: no metrics of round 2" in capsys.readouterr().err

    for seed, times in ((1, 2.0), (2, 8.0)):
        write_stopped_run(tmp_path, "DFL-LoRA", seed, [(1, 1.0), (2, 1.0), (3, 1.0)], 0.7)
        rounds = [(1, 1.0), (2, times), (3, 99.0)][: 4 - seed]  # seed 2 was stopped after round 2
        write_stopped_run(tmp_path, "LoRA", seed, rounds, 0.8)
    assert module("over_rounds").main(command) == 0
    result = json.loads(out.read_text())
    assert result["rounds"] == 2 and {len(run["consensus_error"]) for run in result["runs"]} == {2}

    _, _, first, second, _, note, *_ = module("tables").as_markdown(result).splitlines()
    assert first == "| 1 | 2 | 1.00 | 1.00 | 1.00 (1.00–1.00) | 0.125 | 0.125 | 1.00 (1.00–1.00) |  |  |  |"
    # The mean of 2 and 8 is 5, their geometric mean 4, which is how many times 1 they are.
    assert second.startswith("| 2 | 2 | 5.00 | 1.00 | 4.00 (0.00–")
    assert second.endswith(" | 80.0 | 70.0 | +10 (+10 to +10) |")
    assert "were to have 9 rounds and were stopped after 2–3." in note
    mean = module("figures").over_rounds(result).axes[0].get_lines()[2]
    assert mean.get_ydata().tolist() == pytest.approx([1.0, 4.0])

    config.write_text(
        "command: dfl\ngrid: {training_type: [LoRA, DFL-LoRA], mixing_step: [1.0]}\nseeds: [1]\n"
    )
    for found in tmp_path.glob("training_type=*-seed=1"):
        found.rename(tmp_path / found.name.replace("-seed", "-mixing_step=1.0-seed"))
    assert module("over_rounds").main(command) == 2
    assert "must name training_type alone" in capsys.readouterr().err


def test_a_round_of_some_number_of_peers_is_measured(module, tmp_path, capsys):
    encoder = save_tiny_bert(tmp_path / "encoder")
    write_rows(tmp_path / "train.jsonl", ({"sentence": f"good {i}", "label": i % 2} for i in range(60)))
    write_rows(tmp_path / "validation.jsonl", [{"sentence": "bad", "label": 0}])
    words = f"one --model {encoder} --data_dir {tmp_path} --device cpu --peers 6 --examples 8 --out unused"
    assert module("peers").main(words.split()) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["peers"] == 6 and found["tokens"] > 0 and found["row_bytes"] > 0
    # Adam keeps two numbers for each parameter, and counts its steps.
    assert 2 * found["row_bytes"] <= found["moment_bytes"] < 2.1 * found["row_bytes"]


def test_ways_to_send_less_stand_beside_what_each_of_them_costs(module, tmp_path):
    def sample(label, accuracies, sent):
        seeds = {str(seed): one for seed, one in enumerate(accuracies, start=1)}
        return {"label": label, "metric": seeds, "columns": {"bytes": dict.fromkeys(seeds, sent)}}

    samples = [sample("all", [0.8, 0.82, 0.84], 400.0), sample("less=1", [0.79, 0.81, 0.82], 100.0)]
    (tmp_path / "far.json").write_text(json.dumps({"samples": samples}))
    (tmp_path / "near.json").write_text(
        json.dumps({"samples": [*samples[:1], sample("less=2", [0.9], 200.0)]})
    )
    given = [*(str(tmp_path / f"{name}.json") for name in ("far", "near")), "--against", "all"]
    out = ["--out", str(tmp_path / "priority.json")]
    assert module("bytes_saved").main([*given, "--way", "less", "less=*", *out]) == 0
    found = json.loads((tmp_path / "priority.json").read_text())
    half = 4.302653 * 0.57735 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert f"| less | 0.25: -1.3 ({-4 / 3 - half:+.1f} to {-4 / 3 + half:+.1f}) | 0.50: +10.0 |" in module(
        "tables"
    ).as_markdown(found)
    assert module("figures").draw(tmp_path, tmp_path) == [tmp_path / "priority.svg"]
    for pattern, said in (("*l*", "stands for"), ("less=*", "no setting")):
        against = "all" if said == "stands for" else "nothing"
        with pytest.raises(SystemExit, match=said):
            module("bytes_saved").main([*given[:2], "--against", against, "--way", "w", pattern, *out])


def test_differences_of_several_comparisons_stand_beside_each_other(module, tmp_path):
    def write(name, spaced, metric="val_loss"):
        samples = [
            {"label": "random", "metric": {"1": 0.5, "2": 0.6, "3": 0.7}},
            {"label": "spaced", "metric": spaced},
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"metric": metric, "samples": samples}))
        return str(tmp_path / f"{name}.json")

    files = [write("far", {"1": 0.4, "2": 0.5, "3": 0.61}), write("near", {"1": 0.51, "3": 0.68})]
    out = tmp_path / "across.json"
    assert module("across").main([*files, "--pair", "spaced", "random", "--out", str(out)]) == 0
    table = module("tables").as_markdown(json.loads(out.read_text()))
    mean, half = -0.29 / 3, 4.302653 * 0.0057735 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert f"| `far` | **{mean:+.3g}** ({mean - half:+.3g} to {mean + half:+.3g}) |" in table
    assert "| `near` | -0.005 (" in table and "2 or 3 seeds" in table and "the number of looks, 2." in table
    for other, said in (
        (write("other", {"1": 0.9}, "val_accuracy"), "one metric"),
        (write("no", {"9": 0.4}), "no seed"),
    ):
        with pytest.raises(SystemExit, match=said):
            module("across").main([files[0], other, "--pair", "spaced", "random", "--out", str(out)])
