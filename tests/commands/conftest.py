"""Runs of tiny models that several tests take something out of."""

import json

import pytest
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM

from fedloom.commands.cli import main


@pytest.fixture(scope="session")
def chat_llama(tmp_path_factory):
    """A chat model as some are published: in bfloat16, with a temperature and no sampling."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    AutoModelForCausalLM.from_pretrained(folder).bfloat16().save_pretrained(folder)
    settings = {"temperature": 0.6, "do_sample": False, "eos_token_id": [2, 7]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def _fed(model, out, *flags):
    data = out / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"{i}!"}) + "\n" for i in range(20)))
    words = f"fed --model_name {model} --data_name qa --data_dir {data} --out_dir {out} --train_mode fed"
    words += " --client_num 2 --client_num_per_step 2 --client_batch_per_step 1 --max_steps 2 --val_steps 1"
    words += " --client_lr 0.5 --lr 0.1 --dtype float32 --report_to none --wave_tokens 2000 --batch_size 2"
    assert main([*words.split(), *flags]) == 0


@pytest.fixture(scope="session")
def saved_runs(chat_llama, tmp_path_factory):
    """Three runs on one model: plain, with parameters of the clients' own, of virtual tokens."""
    out = tmp_path_factory.mktemp("runs")
    _fed(chat_llama, out, "--exp_name", "plain", "--lora_r", "4", "--lora_alpha", "24")
    _fed(chat_llama, out, "--exp_name", "personal", "--lora_r", "4", "--share", "a")
    _fed(chat_llama, out, "--exp_name", "virtual", "--peft", "prompt-tuning")
    return out
