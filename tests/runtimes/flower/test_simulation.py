"""`flwr run` of the app that `fedloom flower` writes, in Flower's simulation; it needs flwr[simulation]."""

import os
import subprocess
from importlib.util import find_spec

import psutil
import pytest
from places import ROOT
from run_files import rows, write_problems

if find_spec("flwr") is None or find_spec("ray") is None:
    pytest.skip("flwr[simulation] is not installed", allow_module_level=True)

import torch
from flower_loopback import BIN, free_port, kill_tree
from safetensors.torch import load_file
from tiny import save_tiny_llama

from fedloom.commands.cli import main

pytestmark = pytest.mark.deploy

# All that a client keeps and sends: variates, a B of its own, what top-k has left out, a rank of its own.
OPTIONS = """
    --data_name arithmetic --method SCAFFOLD --share a --aggregator norm_bound --compress topk:0.6
    --lora_r 32,64 --client_num 3
    --client_num_per_step 2 --client_batch_per_step 4 --grad_accum_steps 2 --client_lr 0.05 --max_steps 3
    --val_steps 3 --patience 0 --dtype float32 --wave_tokens 2000 --report_to none
"""


@pytest.fixture
def flwr(tmp_path):
    """Runs `flwr`; the SuperLink that it leaves running is ended."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }

    def run(*words):
        done = subprocess.run(
            [str(BIN / "flwr"), *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        return done.stdout + done.stderr

    yield run
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("FLWR_HOME") == environment["FLWR_HOME"]:
            kill_tree(process)


def test_the_simulation_does_what_one_process_does(flwr, tmp_path):
    words = [
        "--model_name",
        str(save_tiny_llama(tmp_path / "llama")),
        "--data_dir",
        str(write_problems(tmp_path / "problems", train=60)),
        *OPTIONS.split(),
        "--max_length",
        "250",
    ]
    assert main(["fed", *words, "--out_dir", str(tmp_path / "alone")]) == 0
    flower = [
        "--out_dir",
        str(tmp_path / "flower"),
        "--output_path",
        str(tmp_path / "app"),
        "--max_steps",
        "9",
    ]
    assert main(["flower", *words, *flower]) == 0
    said = flwr(
        *("run", "app", "--federation-config", "num-supernodes=3", "--run-config", "max_steps=3", "--stream")
    )
    assert "Adapter: " in said, said
    ours, theirs = tmp_path / "flower" / "test", tmp_path / "alone" / "test"
    mine, other = (
        load_file(run / "checkpoints" / "round-000003" / "adapter_model.safetensors")
        for run in (ours, theirs)
    )
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-6)
    mine, other = (rows(run) for run in (ours, theirs))
    for here, there in zip(mine[1:], other[1:], strict=True):
        assert (here["clients"], here["bytes_up"]) == (there["clients"], there["bytes_up"])
        assert here["train_loss"] == pytest.approx(there["train_loss"], rel=1e-5)
        assert here["bytes_up"] == pytest.approx(here["message_bytes_up"], rel=0.05)
    # Each client's own adapter lies where its node keeps it.
    for client in {client for row in mine[1:] for client in row["clients"]}:
        name = f"client-{client + 1:04d}"
        own = tmp_path / "flwr" / "fedloom" / "test" / name / "adapter"
        saved = theirs / "checkpoints" / "round-000003" / name
        mine, other = (load_file(folder / "adapter_model.safetensors") for folder in (own, saved))
        for key in mine:
            if "lora_B" in key:
                torch.testing.assert_close(mine[key], other[key], rtol=0, atol=1e-6)
