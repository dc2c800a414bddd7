"""`fedloom eval` from the command line to the files it leaves, on tiny models and a few rows."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptEncoderConfig, get_peft_model
from run_files import write_rows
from sklearn.metrics import f1_score, matthews_corrcoef
from tiny import save_tiny_bert, save_tiny_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedloom.commands.cli import main
from fedloom.data.answers import extract_number, same_answer
from fedloom.evaluation.scores import wilson_interval

LONGEST = 12


def problems(count, what):
    return [
        {"question": f"Ann has {i} pears, finds {what} {i % 7}. How many?", "final_ans": i % 3}
        for i in range(count)
    ]


def sentences(count):
    return [{"sentence": f"{('fine', 'dull')[i % 2]} film {i}", "label": 1 - i % 2} for i in range(count)]


@pytest.fixture(scope="module")
def math(tmp_path_factory):
    """A causal model, and problems with a test split."""
    folder = tmp_path_factory.mktemp("math")
    for split, count in (("train", 40), ("validation", 6), ("test", 10)):
        write_rows(folder / f"{split}.jsonl", problems(count, split))
    model = save_tiny_llama(folder / "model")
    generation = json.loads((model / "generation_config.json").read_text())
    generation["eos_token_id"] = [2, *range(40, 60)]  # an answer may end at any of them
    (model / "generation_config.json").write_text(json.dumps(generation))
    return model, folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """An encoder, and sentences whose test split is held out."""
    folder = tmp_path_factory.mktemp("reviews")
    write_rows(folder / "train.jsonl", sentences(60))
    write_rows(folder / "validation.jsonl", sentences(12))
    return save_tiny_bert(folder / "model"), folder


@pytest.fixture(scope="module")
def fed_run(math, tmp_path_factory):
    """A run with a server, two checkpoints."""
    model, data = math
    out = tmp_path_factory.mktemp("runs")
    words = f"fed --model_name {model} --data_name ChilleD/MultiArith --data_dir {data} --out_dir {out}"
    words += " --exp_name served --train_mode fed --client_num 4 --client_num_per_step 2 --max_steps 4"
    words += " --client_batch_per_step 2 --val_steps 2 --client_lr 0.5 --lr 0.05 --lora_r 4 --dtype float32"
    words += " --report_to none --seed 5 --data_seed 5 --eval_generate_every 3 --eval_generate_limit 4"
    assert main(words.split()) == 0
    return out / "served"


@pytest.fixture(scope="module")
def dfl_run(reviews, tmp_path_factory):
    """A run of three peers that classify."""
    model, data = reviews
    out = tmp_path_factory.mktemp("peers")
    words = f"dfl --model_checkpoint {model} --data_dir {data} --out_dir {out} --exp_name peers --lr 0.02"
    words += " --num_clients 3 --name ring --num_rounds 2 --batch_size 8 --dtype float32 --report_to none"
    assert main(words.split()) == 0
    return out / "peers"


@pytest.fixture(autouse=True)
def folder_of_its_own(monkeypatch, tmp_path):
    """A base without a run is judged in the folder where the command is given."""
    monkeypatch.chdir(tmp_path)


def evaluate(output, *words):
    """Run `fedloom eval`; returns what it left."""
    status = main(["eval", "--dtype", "float32", "--output_path", str(output), *map(str, words)])
    assert status == 0
    predictions = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return json.loads((output / "eval.json").read_text()), predictions


def complaint(capsys, *words):
    assert main(["eval", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def written_by(model, folder, prompt):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**ids, max_new_tokens=LONGEST, do_sample=False, pad_token_id=0)
    written = made[0, ids["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    return tokenizer.decode([t for t in written if t not in ends], skip_special_tokens=True)


def test_the_base_answers_as_transformers_does(math, tmp_path, capsys):
    model, data = math
    words = ("--model_name", model, "--data_name", "ChilleD/MultiArith", "--data_dir", data)
    result, predictions = evaluate(tmp_path, *words, "--max_new_tokens", LONGEST, "--batch_size", 4)
    plain = AutoModelForCausalLM.from_pretrained(model)
    assert len(predictions) == 10 and {row["adapter"] for row in predictions} == {"base"}
    for row, problem in zip(predictions, problems(10, "test"), strict=True):
        assert problem["question"] in row["prompt"] and row["prompt"].endswith("assistant\n")
        assert row["output"] == written_by(plain, model, row["prompt"])
        assert row["extracted"] == extract_number(row["output"])
        assert row["expected"] == str(problem["final_ans"])
        assert row["right"] == (
            row["extracted"] is not None and same_answer(row["extracted"], row["expected"])
        )
    (scores,) = result["adapters"]
    right = sum(row["right"] for row in predictions)
    assert scores["accuracy"] == right / 10 and scores["n"] == 10
    assert (scores["low"], scores["high"]) == wilson_interval(right, 10)
    assert scores["without_number"] == sum(row["extracted"] is None for row in predictions)
    assert result["task"] == "ChilleD/MultiArith" and result["versions"]["torch"] == torch.__version__
    assert "no number" in capsys.readouterr().out


def test_a_run_is_judged_by_its_own_model_and_data(fed_run, math, capsys):
    exact = ("--dtype", "float32")  # auto is bfloat16 on a processor that multiplies it faster
    assert main(["eval", "--adapter", str(fed_run), "--max_new_tokens", str(LONGEST), *exact]) == 0
    shown = capsys.readouterr().out
    assert "taken from the run" in shown and "data_seed 5" in shown and "ChilleD/MultiArith" in shown
    result = json.loads((fed_run / "eval" / "eval.json").read_text())
    assert [each["name"] for each in result["adapters"]] == ["served/round-000004"]
    assert result["examples"] == 10 and result["dtype"] == "float32"
    model, _ = math
    base = AutoModelForCausalLM.from_pretrained(model)
    plain = PeftModel.from_pretrained(base, fed_run / "checkpoints" / "round-000004").eval()
    for line in (fed_run / "eval" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["output"] == written_by(plain, model, row["prompt"])


def test_all_checkpoints_in_one_pass_answer_as_each_alone(fed_run, tmp_path):
    words = ("--max_new_tokens", LONGEST, "--limit", 5, "--split", "validation")
    every, rows = evaluate(tmp_path, "--adapter", fed_run, "--all_checkpoints", "true", *words)
    assert [each["name"] for each in every["adapters"]] == ["served/round-000002", "served/round-000004"]
    for each in every["adapters"]:
        alone, own = evaluate(tmp_path / "alone", "--adapter", each["folder"], *words)
        assert own == [row for row in rows if row["adapter"] == each["name"]]
        drop = {"seconds": 0.0}
        assert alone["adapters"][0] | drop == each | drop


def test_adapters_that_peft_wrote_of_different_kinds(math, tmp_path):
    model, data = math
    torch.manual_seed(3)
    kinds = {
        "narrow": LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False),
        "wide": LoraConfig(task_type="CAUSAL_LM", r=8, use_rslora=True, init_lora_weights=False),
        "prompt": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    }
    plains = {}
    for name, config in kinds.items():
        plains[name] = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).eval()
        plains[name].save_pretrained(tmp_path / name)
    given = ",".join(str(tmp_path / name) for name in kinds)
    words = ("--data_name", "ChilleD/MultiArith", "--data_dir", data, "--max_new_tokens", LONGEST)
    result, rows = evaluate(tmp_path / "out", "--adapter", given, *words, "--limit", 3)
    assert [each["name"] for each in result["adapters"]] == [str(tmp_path / name) for name in kinds]
    assert len(rows) == 9 and len({row["output"] for row in rows}) > 3
    for row in rows:
        name = row["adapter"].rpartition("/")[2]
        if name != "prompt":  # transformers returns no prompt there; test_generate.py compares those
            assert row["output"] == written_by(plains[name], model, row["prompt"])


def test_peers_are_judged_side_by_side(dfl_run, reviews, tmp_path):
    model, _ = reviews
    result, rows = evaluate(tmp_path, "--adapter", dfl_run, "--split", "validation")
    names = [f"peers/round-000002/peer-{peer:04d}" for peer in (1, 2, 3)]
    assert [each["name"] for each in result["adapters"]] == names
    checkpoint = dfl_run / "checkpoints" / "round-000002"
    assert evaluate(tmp_path / "again", "--adapter", checkpoint, "--split", "validation")[1] == rows
    tokenizer = AutoTokenizer.from_pretrained(model)
    for each in result["adapters"]:
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
        plain = PeftModel.from_pretrained(base, each["folder"]).eval()
        own = [row for row in rows if row["adapter"] == each["name"]]
        expected = [row["label"] for row in sentences(12)]
        with torch.no_grad():
            predicted = [
                int(plain(**tokenizer(row["prompt"], return_tensors="pt")).logits.argmax()) for row in own
            ]
        assert [row["output"] == "positive" for row in own] == [bool(label) for label in predicted]
        assert each["accuracy"] == sum(a == b for a, b in zip(predicted, expected, strict=True)) / 12
        assert each["f1"] == pytest.approx(f1_score(expected, predicted, zero_division=0.0))
        assert each["matthews"] == pytest.approx(matthews_corrcoef(expected, predicted))


def test_a_classifier_without_an_adapter(reviews, tmp_path):
    model, data = reviews
    words = ("--model_checkpoint", model, "--dataset_type", "sst2", "--data_dir", data)
    result, rows = evaluate(tmp_path, *words, "--limit", 4)
    assert result["adapters"][0]["name"] == "base" and len(rows) == 4 == result["adapters"][0]["n"]
    assert {row["output"] for row in rows} <= {"negative", "positive"}


def test_an_encoder_names_the_operation_of_a_word_problem(reviews, tmp_path):
    words = ("--model_name", reviews[0], "--data_name", "arithmetic", "--limit", 6)
    result, rows = evaluate(tmp_path, *words)
    assert {row["expected"] for row in rows} <= {"add", "subtract", "multiply", "divide"}
    assert "f1" in result["adapters"][0]


def test_the_interval_is_wilsons():
    z, n, p = 1.959963984540054, 40, 30 / 40
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert wilson_interval(30, 40) == pytest.approx((low, high))
    assert wilson_interval(0, 5)[0] == 0.0 and wilson_interval(5, 5)[1] == 1.0


def test_mistakes_are_told_before_weights_are_read(fed_run, dfl_run, math, reviews, capsys, monkeypatch):
    monkeypatch.setattr("fedloom.model.base._load_model", lambda *args: pytest.fail("weights were read"))
    model, data = math
    task = ("--data_name", "ChilleD/MultiArith", "--data_dir", data)
    mistyped = fed_run.with_name("servd")
    assert "did you mean served?" in complaint(capsys, "--adapter", mistyped)
    assert "adapter_config.json" in complaint(capsys, "--adapter", data)
    assert "not a run's folder" in complaint(
        capsys, "--adapter", fed_run / "checkpoints" / "round-000004", "--all_checkpoints", "true"
    )
    assert "did you mean test?" in complaint(capsys, "--model_name", model, *task, "--split", "tests")
    assert "at least 1" in complaint(capsys, "--model_name", model, *task, "--limit", "0")
    assert "model_name: is required" in complaint(capsys, *task)
    assert "data_name: is required" in complaint(capsys, "--model_name", model)
    assert "encoder" in complaint(capsys, "--model_name", reviews[0], *task)
    assert "SEQ_CLS" in complaint(capsys, "--adapter", dfl_run, "--model_name", model, *task)
    both = f"{fed_run},{dfl_run}"
    assert "give --data_name" in complaint(capsys, "--adapter", both)


def test_an_adapter_of_another_model_does_not_fit(fed_run, math, tmp_path, capsys, caplog):
    other = save_tiny_llama(tmp_path / "model", hidden_size=16)
    error = complaint(capsys, "--adapter", fed_run, "--model_name", other)
    assert "does not fit" in error and "lora_A" in error
    assert "was trained on" in caplog.text


def test_answers_longer_than_the_model_reads(fed_run, capsys):
    error = complaint(capsys, "--adapter", fed_run, "--max_new_tokens", 250)
    assert "max_new_tokens" in error and "256" in error


def test_a_variant_of_lora_that_does_not_run_stacked(math, tmp_path, capsys):
    model, data = math
    config = LoraConfig(task_type="CAUSAL_LM", r=2, use_dora=True)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(tmp_path)
    error = complaint(capsys, "--adapter", tmp_path, "--data_name", "ChilleD/MultiArith", "--data_dir", data)
    assert "use_dora" in error
