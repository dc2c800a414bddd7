"""`fedloom chat`: lines in, answers out, and what a user types by mistake."""

import io
import json
import re
import shutil
import signal
import sys

import pytest
import torch
from tiny import save_tiny_bert, tiny_tokenizer

from fedloom.commands.chat import _lines
from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.evaluation.talk import Streamed, Talk


@pytest.fixture
def chat(monkeypatch, capsys):
    """Runs `fedloom chat` on these lines; returns the exit status, what it said, and the complaints."""

    def run(*words, lines=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", *map(str, words)])
        return status, *capsys.readouterr()

    return run


LOADED = ("--dtype", "float32", "--max_new_tokens", 12)


def answers(out):
    """What was said between the greeting and the end."""
    return out.partition("Ctrl-C ends an answer.\n")[2]


def predicted(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", ["plain", "virtual"])
def test_it_answers_as_eval_does_adapter_by_adapter(chat, saved_runs, tmp_path, capsys, run):
    words = f"eval --adapter {saved_runs / run} --all_checkpoints true --limit 2 --dtype float32"
    assert main([*words.split(), "--max_new_tokens", "12", "--output_path", str(tmp_path)]) == 0
    capsys.readouterr()
    questions = [
        row["prompt"].partition("user\n")[2].partition("<|im_end|>")[0] for row in predicted(tmp_path)
    ]
    lines, expected = [], ""
    for round_ in (1, 2):
        for question, row in zip(questions, predicted(tmp_path), strict=True):
            if row["adapter"] == f"{run}/round-00000{round_}":
                lines += [f"/adapter round-00000{round_}", question]
                answer = "".join(c for c in row["output"] if c.isprintable() or c in "\n\t")
                expected += f"{run}/round-00000{round_} answers now.\n{answer}\n"
    status, out, err = chat(saved_runs / run, *LOADED, lines=lines)
    assert (status, err) == (0, "")
    assert " ".join(answers(out).split()) == " ".join(expected.split())


def test_it_is_told_what_the_run_was_told_unless_another_prompt_is_given(chat, saved_runs, tmp_path, capsys):
    """As `fedloom eval` tells it: a run's own prompt, one that is given, none."""
    copy = shutil.copytree(saved_runs / "plain", tmp_path / "told")
    config = copy / "config.yaml"
    own = "Say it in words."
    config.write_text(re.sub("(?m)^system_prompt: .*$", f"system_prompt: {own}", config.read_text()))
    said = []
    for words in ([], ["--system_prompt", own], ["--system_prompt", "No."], ["--system_prompt", "none"]):
        judge = (
            f"eval --adapter {copy} --limit 1 --dtype float32 --max_new_tokens 12 --output_path {tmp_path}"
        )
        assert main([*judge.split(), *words]) == 0
        capsys.readouterr()
        (row,) = predicted(tmp_path)
        assert (words[1] if words else own) in row["prompt"] or words == ["--system_prompt", "none"]
        question = row["prompt"].rpartition("user\n")[2].partition("<|im_end|>")[0]
        status, out, _ = chat(copy, *LOADED, *words, lines=[question])
        expected = "".join(c for c in row["output"] if c.isprintable() or c in "\n\t")
        assert status == 0 and answers(out).split() == expected.split()
        said.append(expected)
    assert said[0] == said[1] and len(set(said)) == 3


def test_the_base_answers_without_an_adapter_and_the_adapter_again_after_it(chat, saved_runs):
    lines = ["1?", "/adapter base", "1?", "/adapter plain/round-000002", "1?", "", "/quit", "2?"]
    _, out, err = chat(saved_runs / "plain", *LOADED, lines=lines)
    first, rest = answers(out).split("base answers now.\n")
    base, again = rest.split("plain/round-000002 answers now.\n")
    assert first == again != base and err == ""


def test_a_second_question_is_asked_with_the_first_and_its_answer(chat, saved_runs):
    _, together, _ = chat(saved_runs / "plain", *LOADED, lines=["1?", "1?"])
    _, apart, _ = chat(saved_runs / "plain", *LOADED, lines=["1?", "/adapter plain/round-000002", "1?"])
    first, second = (part for part in answers(apart).split("plain/round-000002 answers now.\n"))
    assert first == second and answers(together).startswith(first) and answers(together) != first + second


def test_slips_are_told_and_the_conversation_goes_on(chat, saved_runs):
    lines = ["/adaptre base", "/adapter nobody", "/adapter", f"{'long ' * 300}?", "1?"]
    status, out, err = chat(saved_runs / "plain", *LOADED, lines=lines)
    assert status == 0 and out.count("* plain/round-000002") == 1 and "  base\n" in out
    told = err.splitlines()
    assert len(told) == 3 and all(line.startswith("fedloom: ") for line in told)
    assert "/adaptre: is no command; /adapter NAME" in told[0]
    assert "/adapter nobody: is none of these" in told[1] and "leaves no room for an answer" in told[2]
    assert answers(out).split("plain/round-000002\n")[-1].strip()


def test_drawn_answers_differ_and_likeliest_ones_do_not(chat, saved_runs):
    lines = ["1?", "/adapter plain/round-000002"] * 3
    for temperature, few in (("0", True), ("50", False)):
        _, out, _ = chat(saved_runs / "plain", *LOADED, "--temperature", temperature, lines=lines)
        said = answers(out).split("plain/round-000002 answers now.\n")[:3]
        assert (len(set(said)) == 1) == few


def test_mistakes_are_told_before_weights_are_read(chat, saved_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("fedloom.commands.chat.load_base", None)
    encoder = save_tiny_bert(tmp_path / "bert")
    for words, part in [
        (("--max_new_tokens", 3), "adapter: is required: fedloom chat RUN"),
        ((saved_runs / "plian",), "did you mean plain?"),
        ((saved_runs / "plain", "--round", 9), "no checkpoint of round 9"),
        ((saved_runs / "plain", "--temperature", -1), "temperature: -1 is not a number of at least 0"),
        ((saved_runs / "plain", "--device", "gpu"), "device: gpu is not auto"),
        ((encoder,), "holds no adapter_config.json"),
    ]:
        status, _, err = chat(*words)
        assert status == 2 and err.count("\n") == 1 and part in err, err


def test_a_long_conversation_loses_its_beginning():
    tokenizer = tiny_tokenizer()

    def render(turns):
        return "".join(f"{role}: {text}\n" for role, text in turns)

    talk = Talk(tokenizer, render, True, {2}, 0.0, 10, room=50)
    turns = [("user", "a " * 12), ("assistant", "b " * 12), ("user", "the last")]
    assert len(tokenizer(render(turns)).input_ids) > 40
    ids, longest = talk.prompt(turns, virtual=0)
    assert [text for _, text in turns] == ["the last"] and longest == 10
    assert tokenizer.decode(ids[0]) == "user: the last\n"
    assert talk.prompt([("user", "x" * 40)], virtual=0)[1] < 10, "an answer may be shorter than wished for"
    with pytest.raises(UserError, match="reads 50 tokens"):
        talk.prompt([("user", "x" * 40)], virtual=12)


def test_an_answer_cannot_steer_the_terminal():
    tokenizer, said = tiny_tokenizer(), []
    streamed = Streamed(tokenizer, said.append)
    streamed.put(torch.tensor([[1, 5]]))
    for token in tokenizer("two\nlines \x1b[31mred\x07 \u202eback", add_special_tokens=False).input_ids:
        streamed.put(torch.tensor([token]))
    streamed.end()
    assert "".join(said) == streamed.text == "two\nlines [31mred back"


class Terminal(io.StringIO):
    """Lines that somebody types."""

    def isatty(self):
        return True


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: who started the tests in the background made it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_an_answer_in_a_terminal_and_there_the_conversation_goes_on(
    ctrl_c, saved_runs, monkeypatch, capsys
):
    whole = Streamed.on_finalized_text
    interrupted = []

    def interrupt_once(self, text, stream_end=False):
        whole(self, text, stream_end)
        if not interrupted:
            interrupted.append(self.text)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Streamed, "on_finalized_text", interrupt_once)
    monkeypatch.setattr(sys, "stdin", Terminal("1?\n/adapter base\n1?\n"))
    assert main(["chat", str(saved_runs / "plain"), *map(str, LOADED)]) == 0
    first, rest = answers(capsys.readouterr().out).split("base answers now.\n")
    assert first.removeprefix("> ").removesuffix("> ").strip() == interrupted[0].strip() and rest.strip(
        "> \n"
    )
    interrupted.clear()
    monkeypatch.setattr(sys, "stdin", io.StringIO("1?\n"))  # from a pipe nobody waits for the next answer
    assert main(["chat", str(saved_runs / "plain"), *map(str, LOADED)]) == 130


def test_ctrl_c_at_the_prompt_leaves(ctrl_c, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: signal.raise_signal(signal.SIGINT))
    assert list(_lines()) == []
