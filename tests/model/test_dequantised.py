"""GGUF files: their weights lie in the cache as a folder that adapters name, and PEFT alone loads both."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from tiny import tiny_tokenizer
from tiny_gguf import save_tiny_gguf

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.model.base import base_name, load_base
from fedloom.model.dequantised import write_to_cache
from fedloom.model.source import locate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedloom"


@pytest.fixture
def model(tmp_path, cache):
    return save_tiny_gguf(tmp_path / "tiny.Q8_0.gguf")


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_the_weights_are_written_once_and_are_those_of_the_file(model, cache):
    first = load_base(str(model), device="cpu", dtype="float32")
    (folder,) = folders(cache)
    assert folder.name.startswith("tiny.Q8_0-") and first.name == str(folder) == base_name(str(model))
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = load_base(str(model), device="cpu", dtype="float32")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    named = load_base(str(folder), device="cpu", dtype="float32")
    for other in (again, named):
        state = other.model.state_dict()
        assert all(torch.equal(held, state[name]) for name, held in first.model.state_dict().items())
        text = "Tom has 12 apples.<|im_end|>"
        assert other.tokenizer(text).input_ids == first.tokenizer(text).input_ids
        assert other.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert first.tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids


def test_another_file_of_the_same_name_has_a_folder_of_its_own(model, cache):
    one = load_base(str(model), device="cpu", dtype="float32")
    save_tiny_gguf(model, seed=1)
    two = load_base(str(model), device="cpu", dtype="float32")
    assert len(folders(cache)) == 2 and one.name != two.name
    assert not torch.equal(one.model.lm_head.weight, two.model.lm_head.weight)


def test_a_damaged_folder_is_written_again(model, cache):
    state = load_base(str(model), device="cpu", dtype="float32").model.state_dict()
    before = {name: held.clone() for name, held in state.items()}
    (weights,) = cache.glob("*/model.safetensors")
    weights.unlink()  # whoever has it open still reads it
    weights.write_bytes(b"half")
    after = load_base(str(model), device="cpu", dtype="float32").model.state_dict()
    assert all(torch.equal(held, after[name]) for name, held in before.items())


def test_two_that_begin_together_both_get_it(model, cache):
    source = locate(str(model))
    files = {"pretrained_model_name_or_path": source.location, "gguf_file": source.gguf_file}
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: write_to_cache(source, files, tiny_tokenizer()), range(2)))
    assert both[0] == both[1] and [str(folder) for folder in folders(cache)] == [both[0].name]


def test_a_cache_that_cannot_be_written_is_told_with_its_way_out(model, cache):
    cache.parent.mkdir()
    cache.write_text("a file lies where the folder must be")
    with pytest.raises(UserError, match=r"tiny\.Q8_0-\w+ cannot be written .*HF_HOME"):
        load_base(str(model), device="cpu", dtype="float32")


ONLY_PEFT = """
import sys
from peft import AutoPeftModelForCausalLM
import torch
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([[5, 40, 41, 7]])).logits, sys.argv[2])
assert "fedloom" not in sys.modules
"""


def test_an_adapter_loads_on_its_base_with_nothing_but_peft_in_a_fresh_process(
    model, tmp_path, cache, caplog
):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"{i}!"}) + "\n" for i in range(12)))
    words = f"fed --model_name {model} --data_name qa --data_dir {data} --out_dir {tmp_path} --train_mode fed"
    words += " --client_num 2 --client_num_per_step 2 --client_batch_per_step 1 --max_steps 1 --val_steps 1"
    words += " --client_lr 0.5 --lr 0.1 --dtype float32 --report_to none --wave_tokens 2000 --batch_size 2"
    assert main(words.split()) == 0
    adapter = tmp_path / "test" / "checkpoints" / "round-000001"
    (folder,) = folders(cache)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    assert main(["eval", "--adapter", str(tmp_path / "test"), "--limit", "1", "--max_new_tokens", "2"]) == 0
    assert "was trained on" not in caplog.text, "it is the base that the adapter names"
    model.unlink()  # it is not needed any more
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "other")}
    logits = tmp_path / "logits.pt"
    done = subprocess.run(
        [sys.executable, "-c", ONLY_PEFT, str(adapter), str(logits)],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    base = load_base(str(folder), device="cpu", dtype="float32").model
    with torch.no_grad():
        plain = base(torch.tensor([[5, 40, 41, 7]])).logits
        expected = PeftModel.from_pretrained(base, adapter).eval()(torch.tensor([[5, 40, 41, 7]])).logits
    # PEFT adds rows for what the tokenizer of the folder has beyond the model's vocabulary.
    found = torch.load(logits)[..., : expected.shape[-1]]
    assert torch.equal(found, expected) and not torch.allclose(plain, expected, atol=1e-3)
