"""What a model was asked in training it is asked ever after: moved, resumed, judged, or with other peers."""

import json
import shutil

import pytest
import yaml
from run_files import write_rows
from tiny import CHAT_TEMPLATE, save_tiny_llama

from fedloom.commands.cli import main
from fedloom.options.peer import PeerConfig
from fedloom.training.peer import _expected
from fedloom.training.setup_graph import build_one

CLOCK = "It is {{ strftime_now('%d %b %Y') }}.\n" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model whose template has a clock, and a file of questions."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(CLOCK)
    rows = [{"question": f"What is {i} plus 1?", "answer": f"{i + 1}"} for i in range(20)]
    write_rows(folder / "mine.jsonl", rows)
    return folder


def fed(inputs, out, *flags):
    words = f"fed --model_name {inputs}/model --data_name qa --data_dir {inputs}/mine.jsonl --out_dir {out}"
    words += (
        " --train_mode fed --client_num 2 --client_num_per_step 2 --client_batch_per_step 1 --max_steps 1"
    )
    return main([*words.split(), "--dtype", "float32", "--report_to", "none", *flags])


def asked(out, *flags):
    words = f"eval --limit 1 --max_new_tokens 1 --dtype float32 --output_path {out}"
    assert main([*words.split(), *flags]) == 0
    return json.loads((out / "predictions.jsonl").read_text())["prompt"]


def test_the_day_of_a_run_is_written_down_and_is_that_of_its_evaluation(inputs, tmp_path, capsys):
    assert fed(inputs, tmp_path, "--prompt_date", "2031-02-03") == 0
    assert yaml.safe_load((tmp_path / "test" / "config.yaml").read_text())["prompt_date"] == "2031-02-03"
    run = ("--adapter", str(tmp_path / "test"))
    assert asked(tmp_path / "a", *run).startswith("It is 03 Feb 2031.\n<|im_start|>system")
    assert asked(tmp_path / "b", *run, "--prompt_date", "2040-01-01").startswith("It is 01 Jan 2040.\n")
    base = ("--model_name", f"{inputs}/model", "--data_name", "qa", "--data_dir", f"{inputs}/mine.jsonl")
    assert asked(tmp_path / "c", *base).startswith("It is 26 Jul 2024.\n")
    assert asked(tmp_path / "d", *base, "--prompt_format", "plain").startswith(
        "Answer the question.\n\nQuest"
    )
    resume = ("--exp_name", "test", "--resume", "--max_steps", "2")
    assert fed(inputs, tmp_path, *resume, "--prompt_date", "2031-02-04") == 2
    assert "prompt_date was 2031-02-03, now 2031-02-04" in capsys.readouterr().err
    assert fed(inputs, tmp_path, *resume) == 0


@pytest.mark.parametrize("day", ["tomorrow", "2031-02-30", "20310203", "03.02.2031"])
def test_a_day_that_is_none_is_told_at_once(inputs, tmp_path, capsys, day):
    for command in (
        fed,
        lambda inputs, out, *flags: main(["eval", "--model_name", "m", "--data_name", "qa", *flags]),
    ):
        assert command(inputs, tmp_path, "--prompt_date", day) == 2
        assert f"prompt_date: {day} is no day of the form YYYY-MM-DD" in capsys.readouterr().err


def test_the_name_of_a_folder_changes_no_prompt(inputs, tmp_path):
    data = ("--data_name", "qa", "--data_dir", f"{inputs}/mine.jsonl")
    prompts = set()
    for name in ("base", "zephyr-tinyllama-chat", "bloom-7b", "Llama-2-7b-chat"):
        (tmp_path / name).symlink_to(inputs / "model")
        prompts.add(asked(tmp_path / "eval", "--model_name", str(tmp_path / name), *data))
    assert len(prompts) == 1


def test_peers_must_put_questions_in_the_same_form(inputs, tmp_path):
    def expected(model, **options):
        config = PeerConfig(
            model_checkpoint=str(model),
            dataset_type="qa",
            data_dir=str(inputs / "mine.jsonl"),
            num_clients=2,
            device="cpu",
            wave_tokens=1000,
            **options,
        )
        return _expected(*build_one(config)).run

    shutil.copytree(inputs / "model", tmp_path / "moved")
    ours = expected(inputs / "model")
    assert expected(tmp_path / "moved") == ours
    assert expected(tmp_path / "moved", prompt_date="2031-02-03") != ours
    assert expected(tmp_path / "moved", prompt_format="plain") != ours
    (tmp_path / "moved" / "chat_template.jinja").write_text("Hello! " + CLOCK)
    assert expected(tmp_path / "moved") != ours
