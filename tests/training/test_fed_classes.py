"""Classification with a server: an encoder's head is trained, by the classes' names, and PEFT loads it."""

import json

import pytest
import torch
from peft import PeftModel
from run_files import rows, write_rows
from tiny import save_tiny_bert, save_tiny_llama
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedloom.commands.cli import main

WORDS = """
    fed --data_name sst2 --client_num 3 --client_num_per_step 3 --max_steps 2 --val_steps 2 --client_lr 0.5
    --method FedAvg --client_batch_per_step 2 --grad_accum_steps 1 --batch_size 4 --dtype float32
    --report_to none --lora_dropout 0
"""


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences whose first word gives their class away, and a field in which neighbours are alike."""
    folder = tmp_path_factory.mktemp("sentences")
    for part, count in (("train", 48), ("validation", 20)):
        made = [
            {"sentence": f"{('bad', 'good')[i % 2]} film {i}", "label": i % 2, "studio": f"s{i // 16}"}
            for i in range(count)
        ]
        write_rows(folder / f"{part}.jsonl", made)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("encoder"), id2label={0: "positive", 1: "negative"})


@pytest.fixture
def fed(sentences, encoder, tmp_path):
    def run(name, more="", model=encoder):
        words = f"{WORDS} --model_name {model} --data_dir {sentences} --out_dir {tmp_path} --exp_name {name}"
        assert main([*words.split(), *more.split()]) == 0
        return tmp_path / name

    return run


def test_a_head_is_trained_by_name_and_peft_judges_as_validation_did(fed, sentences, encoder):
    folder = fed("plain", "--partition dirichlet --alpha 0.3")
    before, _, after = rows(folder)
    assert after["val_loss"] < before["val_loss"]
    held = json.loads((folder / "clients.json").read_text())
    assert "positive" in json.dumps(held)
    saved = folder / "checkpoints" / "round-000002"
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    model, tokenizer = PeftModel.from_pretrained(model, saved).eval(), AutoTokenizer.from_pretrained(saved)
    judged = [json.loads(line) for line in (sentences / "validation.jsonl").open()]
    right = 0
    for row in judged:
        with torch.no_grad():
            most = int(model(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax())
        right += model.config.id2label[most] == ("negative", "positive")[row["label"]]
    assert after["val_accuracy"] == pytest.approx(right / len(judged))
    assert "AutoModelForSequenceClassification" in (saved / "README.md").read_text()


def test_a_field_keeps_sentences_together_and_their_classes_stay(fed):
    folder = fed("studios", "--partition by_field --field studio --max_steps 1 --val_steps 1")
    clients = json.loads((folder / "clients.json").read_text())
    assert all(f"s{i}" in json.dumps(clients) for i in range(3))
    assert rows(folder)[1]["train_accuracy"] > 0


def test_a_model_that_writes_classifies_sentences_too(fed, tmp_path):
    folder = fed("llama", "--max_steps 1 --val_steps 1", save_tiny_llama(tmp_path / "writer"))
    assert main(["eval", "--adapter", str(folder), "--split", "validation"]) == 0
    (scores,) = json.loads((folder / "eval/eval.json").read_text())["adapters"]
    assert scores["accuracy"] == rows(folder)[-1]["val_accuracy"]


@pytest.mark.parametrize("method", ["FedGPL", "FedSA-LoRA", "FedEx-LoRA", "SCAFFOLD"])
def test_a_head_goes_with_every_method_and_resumes(fed, method):
    more = f"--method {method} --val_steps 1"
    more += " --max_layer_num 1 --min_layer_num 0" if method == "FedGPL" else ""
    whole = fed("whole", more)
    fed("cut", f"{more} --max_steps 1")
    resumed = fed("cut", f"{more} --resume")
    assert rows(resumed)[-1]["val_loss"] == rows(whole)[-1]["val_loss"]


def test_what_classifies_writes_no_answers(sentences, encoder, tmp_path, capsys):
    words = f"{WORDS} --model_name {encoder} --data_dir {sentences} --out_dir {tmp_path}"
    assert main([*words.split(), "--eval_generate_every", "1"]) == 2
    assert "this model classifies and writes no answers" in capsys.readouterr().err
