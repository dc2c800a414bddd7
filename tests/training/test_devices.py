"""Whole runs on a GPU, read and saved: what they leave is what a run on the CPU leaves."""

import json
from contextlib import nullcontext

import pytest
import torch
from pretend_gpu import a_gpu
from run_files import adapter, assert_close, rows, state, write_rows
from tiny import save_tiny_llama

from fedloom.commands.cli import main

COMMON = "--lora_r 2 --lora_dropout 0 --dtype float32 --report_to none --wave_tokens 600 --data_name qa"
FED = (
    "fed --train_mode fed --method SCAFFOLD --client_num 4 --client_num_per_step 3 --client_batch_per_step 1"
)
DFL = "dfl --name ring --num_clients 4 --local_steps 1 --training_type LoRA --lr 0.01 --drop_link 0.2"
RUNS = {
    "fed": f"{FED} --compress int4 --grad_accum_steps 1 --max_steps 1",
    "dfl": f"{DFL} --aggregator median --num_rounds 1 --batch_size 2",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "model", num_hidden_layers=1)
    for part, count in (("train", 16), ("validation", 3), ("test", 2)):
        lines = [{"question": f"{part[0]} and {i}?", "answer": f"{i * 7 % 11}"} for i in range(count)]
        write_rows(folder / f"{part}.jsonl", lines)
    return f"--model_name {folder}/model --data_dir {folder}"


@pytest.mark.parametrize("command", RUNS)
def test_a_run_its_resumption_and_its_evaluation(command, inputs, tmp_path):
    for device in ("cpu", "cuda"):
        line = f"{RUNS[command]} {inputs} {COMMON} --out_dir {tmp_path} --exp_name {device}"
        rounds = "--max_steps" if command == "fed" else "--num_rounds"
        judge = f"eval --adapter {tmp_path / device} {inputs} --data_name qa --limit 1 --max_new_tokens 3"
        resume = f"{command} --resume --out_dir {tmp_path} --exp_name {device} {rounds} 2"
        with a_gpu() if device == "cuda" else nullcontext():
            for words in (line, resume, judge):
                assert main([*words.split(), "--device", device]) == 0
    of_cpu, of_gpu = tmp_path / "cpu", tmp_path / "cuda"
    with a_gpu():
        assert torch.cuda.get_device_name() in (of_gpu / "config.yaml").read_text()
    assert {"val_loss", "train_loss"} <= rows(of_gpu)[-1].keys() and len(rows(of_gpu)) == 3
    for mine, other in zip(rows(of_gpu), rows(of_cpu), strict=True):
        for name in mine.keys() & {"val_loss", "train_loss", "bytes_up"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name
    peer = None if command == "fed" else 1
    assert_close(adapter(of_gpu, peer=peer), adapter(of_cpu, peer=peer), tolerance=1e-4)
    assert_close(state(of_gpu), state(of_cpu), tolerance=1e-3)
    judged = [json.loads((folder / "eval" / "eval.json").read_text()) for folder in (of_gpu, of_cpu)]
    assert judged[0].keys() == judged[1].keys()
