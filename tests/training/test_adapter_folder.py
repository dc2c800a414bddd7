"""What lies beside a saved adapter: whoever loads it prompts the model as training did."""

import io
import json
import shutil
import sys

import pytest
import yaml
from peft import PeftModel
from tiny import save_tiny_bert, save_tiny_llama, tiny_tokenizer
from transformers import AutoTokenizer

from fedloom.commands.cli import main
from fedloom.data.carried import carried_tokenizer, messages_of
from fedloom.data.templates import prompt_format
from fedloom.data.token_ids import encode_prompts
from fedloom.evaluation.talk import Talk

NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
)
OF_PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}{% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
)
WITH_CLOCK = "{{ strftime_now('%d %B %Y') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
OTHER_MARK = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
ROWS = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(30)]


@pytest.mark.parametrize("instruction", ["Add.", ""])
@pytest.mark.parametrize("name", ["auto", "plain", "llama-2", "zephyr"])
@pytest.mark.parametrize("template", [None, NO_SYSTEM, OF_PARTS, WITH_CLOCK, OTHER_MARK])
def test_a_carried_tokenizer_makes_the_prompts_of_training(tmp_path, template, name, instruction):
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.chat_template = template
    if template == OTHER_MARK:
        tokenizer.backend_tokenizer.post_processor = _with_bos(tokenizer)
    form = prompt_format(tokenizer, instruction, name)
    carried_tokenizer(tokenizer, form, name, "2024-07-26").save_pretrained(tmp_path)
    carried = AutoTokenizer.from_pretrained(tmp_path)
    for question in ("What is 1 + 1?", 'It\'s "1 < 2" & so on.\nIs it?'):
        (trained,) = encode_prompts([form.render(question)], tokenizer)
        messages = messages_of(carried, form, instruction, question)
        assert messages is not None
        text = carried.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert carried(text, add_special_tokens=False).input_ids == trained
    assert tokenizer.chat_template == template, "the model's own is left alone"


def test_a_copy_of_tinyllama_chat_that_has_lost_its_template_is_asked_as_the_published_one():
    form = prompt_format(tiny_tokenizer(chat_template=False), "Add.", "zephyr")
    end = "<|im_end|>"  # this tokenizer's end of text
    assert form.render("1 + 1?") == f"<|system|>\nAdd.{end}\n<|user|>\n1 + 1?{end}\n<|assistant|>\n"


def _with_bos(tokenizer):
    from tokenizers import processors

    return processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, and a run of a server and one of peers with a system prompt of the user's own."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = save_tiny_llama(folder / "model")
    for command, own in (
        ("fed", "--client_num 2 --client_num_per_step 2 --train_mode fed --grad_accum_steps 1 --lr 0.1"),
        ("dfl", "--num_clients 3 --name ring --lr 0.1"),
    ):
        words = f"{command} --model_name {model} --data_name qa --data_dir {folder / 'sums.jsonl'} {own}"
        words += f" --out_dir {folder} --exp_name {command} --max_steps 1 --client_batch_per_step 1"
        words += " --lora_r 2"
        words += " --batch_size 2 --val_steps 1 --dtype float32 --report_to none"
        assert main([*words.split(), "--instruction", "You add.\nBe brief."]) == 0
    return folder


def test_the_prompt_stands_in_the_runs_options(trained):
    for name in ("fed", "dfl"):
        content = yaml.safe_load((trained / name / "config.yaml").read_text())
        assert content["system_prompt"] == "You add.\nBe brief."


def test_the_readme_says_how_to_load_and_to_prompt(trained):
    folder = trained / "fed" / "checkpoints" / "round-000001"
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    code = code.replace("THIS FOLDER", str(folder)).replace("QUESTION", "What is 3 + 1?")
    names: dict = {}
    exec(code.replace("max_new_tokens=256", "max_new_tokens=2"), names)
    tokenizer, model = names["tokenizer"], names["model"]
    assert isinstance(model, PeftModel) and names["answer"].shape[0] == 1
    form = prompt_format(AutoTokenizer.from_pretrained(trained / "model"), "You add.\nBe brief.")
    assert names["prompt"] == form.render("What is 3 + 1?")
    assert "You add.\nBe brief." in tokenizer.decode(names["inputs"]["input_ids"][0])


def test_every_peer_carries_it_and_the_files_are_one(trained):
    folders = sorted((trained / "dfl" / "checkpoints" / "round-000001").glob("peer-*"))
    assert len(folders) == 3
    assert len({(folder / "tokenizer.json").stat().st_ino for folder in folders}) == 1
    assert all("You add." in (folder / "README.md").read_text() for folder in folders)


def prompts(output, *words):
    assert main([*map(str, ["eval", "--dtype", "float32", "--max_new_tokens", 2]), *map(str, words)]) == 0
    return [json.loads(line)["prompt"] for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_an_adapter_is_judged_with_the_prompt_of_its_run_wherever_it_lies(trained, tmp_path):
    of_run = prompts(tmp_path, "--adapter", trained / "fed", "--output_path", tmp_path)
    assert all("You add.\nBe brief." in prompt for prompt in of_run)
    shutil.copytree(trained / "fed" / "checkpoints" / "round-000001", tmp_path / "taken")
    elsewhere = ["--adapter", tmp_path / "taken", "--output_path", tmp_path]
    elsewhere += ["--data_dir", trained / "sums.jsonl", "--model_name", trained / "model"]
    assert prompts(tmp_path, *elsewhere) == of_run
    none = prompts(tmp_path, *elsewhere, "--system_prompt", "none")
    assert none != of_run and not any("You add." in prompt for prompt in none)


def test_chat_tells_the_model_what_training_did(trained, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("fedloom.evaluation.talk.Talk.prompt", _noting(Talk.prompt, asked))
    shutil.copytree(trained / "fed" / "checkpoints" / "round-000001", tmp_path / "taken")
    for adapter in (trained / "fed", tmp_path / "taken"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 3 + 1?\n"))
        words = ["chat", "--adapter", str(adapter), "--model_name", str(trained / "model")]
        assert main([*words, "--dtype", "float32", "--max_new_tokens", "2"]) == 0
    form = prompt_format(AutoTokenizer.from_pretrained(trained / "model"), "You add.\nBe brief.")
    assert asked == [form.render("What is 3 + 1?")] * 2


def _noting(prompt, asked):
    def noted(talk, turns, virtual):
        ids, longest = prompt(talk, turns, virtual)
        asked.append(talk.tokenizer.decode(ids[0]))
        return ids, longest

    return noted


def test_a_run_that_goes_on_keeps_its_prompt(trained, capsys):
    words = ["fed", "--resume", "--out_dir", str(trained), "--exp_name", "fed", "--max_steps", "2"]
    assert main([*words, "--system_prompt", "Another."]) == 2
    assert "system_prompt was You add." in capsys.readouterr().err
    assert main(words) == 0


def test_a_classifiers_folder_names_its_classes(tmp_path):
    rows = [{"sentence": f"film {i}", "label": i % 2} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"dfl --model_checkpoint {save_tiny_bert(tmp_path / 'model')} --data_dir {tmp_path}/rows.jsonl"
    words += f" --num_clients 2 --name line --num_rounds 1 --batch_size 8 --lora_r 2 --out_dir {tmp_path}"
    assert main([*words.split(), "--dtype", "float32", "--report_to", "none"]) == 0
    folder = tmp_path / "test" / "checkpoints" / "round-000001" / "peer-0001"
    card = (folder / "README.md").read_text()
    assert '["negative", "positive"]' in card and "num_labels=2" in card
    names: dict = {}
    code = card.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("THIS FOLDER", str(folder)), names)
    assert names["label"] in ("negative", "positive")
