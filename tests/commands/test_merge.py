"""`fedloom merge`: the merged folder answers as base and adapter do, without fedloom and PEFT."""

import json

import pytest
import torch
from peft import PeftModel
from tiny import save_tiny_bert
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from fedloom.commands.cli import main
from fedloom.model.base import load_base

TWO = {"num_labels": 2, "ignore_mismatched_sizes": True}
TEXT = torch.tensor([[5, 40, 41, 7, 99, 12, 63]])


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Four peers of an encoder whose head is new."""
    folder = tmp_path_factory.mktemp("peers")
    model = save_tiny_bert(folder / "model", num_labels=3)  # of another task
    for split in ("train", "validation"):
        rows = [{"sentence": f"{('fine', 'dull')[i % 2]} film {i}", "label": i % 2} for i in range(24)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (
        f"dfl --model_checkpoint {model} --dataset_type sst2 --data_dir {folder} --name ring --num_clients 4"
    )
    words += f" --lr 0.05 --num_rounds 1 --local_steps 2 --batch_size 4 --out_dir {folder} --exp_name run"
    words += " --lora_r 2 --dtype float32 --report_to none --wave_tokens 2000"
    assert main(words.split()) == 0
    return model, folder / "run"


def merge(*words):
    return main(["merge", *map(str, words)])


def logits(model):
    with torch.no_grad():
        return model.eval()(TEXT).logits


def apart(base, adapter, auto=AutoModelForCausalLM, **options):
    """The logits of base and adapter, as PEFT runs them in float32."""
    model = auto.from_pretrained(base, dtype=torch.float32, **options)
    return logits(PeftModel.from_pretrained(model, adapter))


@pytest.mark.parametrize(
    ("words", "adapter"),
    [
        ("plain", "plain/checkpoints/round-000002"),
        ("plain --round 1", "plain/checkpoints/round-000001"),
        ("plain/checkpoints/round-000001", "plain/checkpoints/round-000001"),
        ("personal", "personal/checkpoints/round-000002"),
        ("personal --client {client}", "personal/checkpoints/round-000002/client-{client:04d}"),
    ],
)
def test_the_merged_model_answers_as_base_and_adapter(
    saved_runs, chat_llama, tmp_path, capsys, caplog, words, adapter
):
    saved = sorted((saved_runs / "personal/checkpoints/round-000002").glob("client-*"))
    client = int(saved[0].name.removeprefix("client-"))
    name, *flags = words.format(client=client).split()
    target = saved_runs / adapter.format(client=client)
    assert merge(saved_runs / name, *flags, "--output_path", tmp_path / "model", "--dtype", "float32") == 0
    expected = apart(chat_llama, target)
    assert torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected, atol=1e-5, rtol=0
    )
    base = AutoModelForCausalLM.from_pretrained(chat_llama, dtype=torch.float32)
    # What makes a difference stays with the clients there: the server has A, and B is as it began.
    of_the_server = adapter.startswith("personal") and "--client" not in words
    assert torch.allclose(logits(base), expected, atol=1e-2) == of_the_server
    assert ("adapters of their own" in caplog.text) == of_the_server
    said = adapter.format(client=client).replace("/checkpoints", "")
    assert f"Merging into {chat_llama}: {said} …" in capsys.readouterr().out


def test_it_is_an_ordinary_folder_in_the_precision_of_the_base(saved_runs, chat_llama, tmp_path):
    assert merge(saved_runs / "plain", "--output_path", tmp_path / "new" / "model") == 0
    folder = tmp_path / "new" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and not list(folder.glob("adapter*"))
    own, base = (AutoTokenizer.from_pretrained(path) for path in (folder, chat_llama))
    talk = [{"role": "user", "content": "How many?"}]
    assert own.chat_template == base.chat_template
    assert own.apply_chat_template(talk) == base.apply_chat_template(talk)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 7]
    assert "plain/round-000002" in (folder / "README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model"]


def test_a_merged_model_is_a_base_like_any_other(saved_runs, tmp_path):
    assert merge(saved_runs / "plain", "--output_path", tmp_path / "model", "--dtype", "float32") == 0
    assert load_base(str(tmp_path / "model"), device="cpu", dtype="float32").name == str(tmp_path / "model")


def test_the_mean_over_peers_is_the_mean_of_their_models(peers, tmp_path, capsys):
    base, run = peers
    one, mean = tmp_path / "one", tmp_path / "mean"
    assert merge(run, "--peer", 2, "--output_path", one) == 0
    assert merge(run, "--output_path", mean) == 0
    assert "the mean of 4 models, run/round-000001/peer-0001 to run/round-000001/peer-0004" in (
        capsys.readouterr().out
    )
    folders = [run / "checkpoints" / "round-000001" / f"peer-000{peer}" for peer in (1, 2, 3, 4)]
    classes = AutoModelForSequenceClassification.from_pretrained(mean)
    expected = apart(base, folders[1], AutoModelForSequenceClassification, **TWO)
    merged = AutoModelForSequenceClassification.from_pretrained(one)
    assert torch.allclose(logits(merged), expected, atol=1e-5, rtol=0)
    every = []
    for folder in folders:
        plain = AutoModelForSequenceClassification.from_pretrained(base, **TWO)
        every.append(PeftModel.from_pretrained(plain, folder).merge_and_unload().state_dict())
    for name, held in classes.state_dict().items():
        means = torch.stack([weights[name].float() for weights in every]).mean(0)
        assert torch.allclose(held.float(), means, atol=1e-6), name
    assert not torch.equal(every[0]["classifier.weight"], every[1]["classifier.weight"])
    assert list(classes.config.id2label.values()) == ["negative", "positive"]


def test_what_was_quantised_in_training_is_said(saved_runs, tmp_path, capsys):
    config = saved_runs / "plain" / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("quantize: none", "quantize: 4bit"))
    try:
        assert merge(saved_runs / "plain", "--output_path", tmp_path / "model") == 0
    finally:
        config.write_text(before)
    assert "trained on 4bit weights and merged into the unquantised" in capsys.readouterr().out


def test_mistakes_are_told_before_weights_are_read(saved_runs, peers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedloom.commands.merge.merged", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    plain, (_, of_peers) = saved_runs / "plain", peers
    free = ("--output_path", tmp_path / "model")
    for words, parts in [
        ((plain,), ["output_path: is required", "fedloom merge RUN"]),
        (free, ["adapter: is required"]),
        ((plain, "--output_path", tmp_path / "full"), ["full is not empty", "name a new folder"]),
        ((plain, "--output_path", tmp_path / "full" / "file"), ["is no folder"]),
        ((plain, "--round", 7, *free), ["no checkpoint of round 7", "it has those of 1, 2"]),
        ((plain / "checkpoints" / "round-000001", "--round", 1, *free), ["leave --round out"]),
        (
            (plain, "--client", 1, *free),
            ["client: 1 has no adapter of its own", "what clients train is shared"],
        ),
        ((saved_runs / "personal", "--client", 99, *free), ["client: 99 has no adapter", "do"]),
        ((plain, "--peer", "mean", *free), ["there are no peers in plain/round-000002"]),
        ((of_peers, "--peer", 5, *free), ["there is no peer 5", "there are 1, 2, 3, 4"]),
        ((of_peers, "--peer", 1, "--client", 1, *free), ["leave one of the two out"]),
        ((saved_runs / "virtual", *free), ["PROMPT_TUNING", "nothing to merge", "--peft lora"]),
        ((plain, "--push_to_hub", "no name", *free), ["push_to_hub: no name is no name on the hub"]),
        ((plain, "--model_name", tmp_path / "none", *free), ["there is no such file or folder"]),
    ]:
        assert merge(*words) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("fedloom: error: ") and error.count("\n") == 1
        assert all(part in error for part in parts), error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_a_hub_out_of_reach_is_told_first(saved_runs, tmp_path, capsys, monkeypatch, setting, value, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", setting == "HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    words = ("--output_path", tmp_path / "model", "--push_to_hub", "me/mine", "--token", "hf_" + "a" * 30)
    assert merge(saved_runs / "plain", *words) == 2
    error = capsys.readouterr().err
    assert "push_to_hub: me/mine" in error and said in error and "aaaa" not in error
    assert not (tmp_path / "model").exists()
