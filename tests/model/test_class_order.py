"""Class numbers are a model's own affair: it is trained and judged by the names of its classes."""

import json
import logging
import shutil

import pytest
import torch
from peft import PeftModel
from run_files import write_rows
from safetensors.torch import load_file, save_file
from tiny import save_tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from fedloom.commands.cli import main
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError
from fedloom.model.class_order import class_order, name_classes

SST2, MNLI, QNLI = (TASKS[name].label_names for name in ("sst2", "mnli", "qnli"))


def config(*names, architecture="BertForSequenceClassification", **more):
    return BertConfig(id2label=dict(enumerate(names)), architectures=[architecture], **more)


@pytest.mark.parametrize(
    ("names", "classes", "order"),
    [
        (("positive", "negative"), SST2, ("positive", "negative")),
        (("NEGATIVE", "POSITIVE"), SST2, SST2),
        (("POS", "NEG"), SST2, ("positive", "negative")),
        (("CONTRADICTION", "Neutral", "entailment"), MNLI, ("contradiction", "neutral", "entailment")),
        (("Not Entailment", "entailment"), QNLI, ("not_entailment", "entailment")),
        (("non-entailment", "entailment"), QNLI, ("not_entailment", "entailment")),
    ],
)
def test_the_order_of_the_head_is_that_of_its_names(names, classes, order, caplog):
    assert class_order(config(*names), classes, "m") == order
    given = config(*(f"LABEL_{number}" for number in range(len(names))))
    given.label2id = {name: number for number, name in enumerate(names)}
    assert class_order(given, classes, "m") == order, "label2id will do where id2label says nothing"
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (config("LABEL_0", "LABEL_1"), ["none (LABEL_0, ...)", "0 negative, 1 positive"]),
        (config("0", "1"), ["none (LABEL_0, ...)"]),
        (config("toxic", "fine"), ["toxic, fine", "0 negative, 1 positive"]),
        (config("toxic", "fine", architecture="BertForMaskedLM"), []),
        (config("LABEL_0", "LABEL_1", architecture="BertModel"), []),
        (config("a", "b", "c"), []),  # its head is replaced, which is said elsewhere
    ],
)
def test_a_trained_head_without_the_tasks_names_is_taken_in_its_order_and_that_is_said(given, said, caplog):
    caplog.set_level(logging.WARNING)
    assert class_order(given, SST2, "m") == SST2
    assert len(caplog.records) == bool(said) and all(words in caplog.text for words in said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (config("entailment", "yes", "no"), "knows some and not others"),
        (config("entailment", "entailment", "neutral"), "knows some and not others"),
        (
            config("neutral", "entailment", "contradiction", label2id=dict(zip(MNLI, range(3), strict=True))),
            "contradict each other",
        ),
    ],
)
def test_names_in_doubt_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        class_order(given, MNLI, "m")


def sentences(count):
    return [{"sentence": f"{('fine', 'dull')[i % 2]} film {i}", "label": 1 - i % 2} for i in range(count)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Sentences, and one classifier twice: with the task's order, and with its classes swapped."""
    folder = tmp_path_factory.mktemp("inputs")
    for part, count in (("train", 60), ("validation", 12)):
        write_rows(folder / f"{part}.jsonl", sentences(count))
    save_tiny_bert(folder / "straight", id2label={0: "NEGATIVE", 1: "POSITIVE"})
    shutil.copytree(folder / "straight", folder / "swapped")
    tensors = load_file(folder / "swapped" / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, folder / "swapped" / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "swapped" / "config.json").read_text())
    content |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (folder / "swapped" / "config.json").write_text(json.dumps(content))
    return folder


def predictions(out, *words):
    assert main(["eval", *map(str, words), "--dtype", "float32", "--output_path", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    (scores,) = json.loads((out / "eval.json").read_text())["adapters"][:1]
    return rows, {name: scores[name] for name in ("accuracy", "f1", "matthews")}


def test_the_same_classifier_with_its_classes_swapped_learns_and_is_judged_alike(inputs, tmp_path):
    found = {}
    for name in ("straight", "swapped"):
        words = f"dfl --model_checkpoint {inputs / name} --data_dir {inputs} --out_dir {tmp_path}"
        words += f" --exp_name {name} --num_clients 2 --name complete --num_rounds 3 --batch_size 8"
        words += " --lr 0.02 --dtype float32"
        assert main([*words.split(), "--report_to", "none", "--lora_dropout", "0"]) == 0
        metrics = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        task = ("--model_name", inputs / name, "--data_name", "sst2", "--data_dir", inputs)
        base = predictions(tmp_path / "base", *task, "--split", "validation")
        tuned = predictions(tmp_path / "tuned", "--adapter", tmp_path / name, "--split", "validation")
        found[name] = ([json.loads(line)["val_loss"] for line in metrics], base, tuned)
    (losses, *judged), (swapped_losses, *swapped_judged) = found["straight"], found["swapped"]
    assert losses == pytest.approx(swapped_losses, rel=1e-4) and losses[-1] < losses[0]
    for (rows, scores), (others, other_scores) in zip(judged, swapped_judged, strict=True):
        assert scores == pytest.approx(other_scores)
        assert [row["output"] for row in rows] == [row["output"] for row in others]

    # Elsewhere the largest output is the class that the model's own configuration names.
    rows, _ = found["swapped"][2]
    base = AutoModelForSequenceClassification.from_pretrained(inputs / "swapped")
    plain = PeftModel.from_pretrained(
        base, tmp_path / "swapped" / "checkpoints" / "round-000003" / "peer-0001"
    )
    tokenizer = AutoTokenizer.from_pretrained(inputs / "swapped")
    for row in [row for row in rows if row["adapter"].endswith("peer-0001")]:
        with torch.no_grad():
            output = int(plain.eval()(**tokenizer(row["prompt"], return_tensors="pt")).logits.argmax())
        assert base.config.id2label[output] == row["output"]


def test_a_new_head_is_named_after_the_task():
    model = AutoModelForSequenceClassification.from_config(
        config("a", "b", "c", hidden_size=12, vocab_size=9)
    )
    name_classes(model, MNLI)
    assert model.config.id2label == dict(enumerate(MNLI)) and model.config.label2id["neutral"] == 1
    model.config.id2label = {0: "ENTAILMENT", 1: "NEUTRAL", 2: "CONTRADICTION"}
    name_classes(model, MNLI)
    assert model.config.id2label[0] == "ENTAILMENT", "names of its own stay"
