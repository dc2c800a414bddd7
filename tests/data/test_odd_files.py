"""Files as people have them: what is learned of each, decoded, and what is said of what cannot be."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_tokenizer

from fedloom.data.encode import encode
from fedloom.data.own import open_task
from fedloom.data.sources import load_rows
from fedloom.data.templates import instruction_of, prompt_format
from fedloom.errors import UserError

TOKENIZER = tiny_tokenizer()
ASK, SAY = {"role": "user", "content": "Town?"}, {"role": "assistant", "content": "Oslo"}
NO = {"role": "assistant", "content": "no"}
RULE = {"role": "system", "content": "Be brief."}
TOOL = [
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
    {"role": "tool", "content": "5"},
]
TALK = "<|im_start|>user\nTown?<|im_end|>\n<|im_start|>assistant\n"
BRIEF = "<|im_start|>system\nBe brief.<|im_end|>\n"


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows):
    pq.write_table(pa.Table.from_pylist(rows), sink := pa.BufferOutputStream())
    return sink.getvalue().to_pybytes()


def learned(path, columns=""):
    """Of the first row the prompts and what is learned behind each; and how many rows there are."""
    given = dict(pair.split("=") for pair in columns.split(",") if pair)
    task = open_task(str(path), columns=given)
    rows = load_rows(task, data_dir=None, seed=1, token=None)["train"]
    form = prompt_format(TOKENIZER, instruction_of(task.instruction, "none"))
    ((first, *_), _) = encode([rows[0].example], TOKENIZER, form, 500)
    said = []
    for side in first.sides:
        done = 0
        for start, end in side.spans:
            said += [TOKENIZER.decode(side.ids[done:start]), TOKENIZER.decode(side.ids[start:end])]
            done = end
    return said, len(rows)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "alpaca.json",
            json.dumps([{"instruction": "Town?", "output": "Oslo", "input": None}]).encode(),
            [TALK, "Oslo<|im_end|>"],
        ),
        (
            "system-later.jsonl",
            jsonl({"messages": [ASK, SAY, RULE, ASK, SAY]}),
            [TALK, "Oslo<|im_end|>", f"\n{BRIEF}{TALK}", "Oslo<|im_end|>"],
        ),
        ("ai.jsonl", jsonl({"messages": [ASK, SAY | {"role": "AI"}]}), [TALK, "Oslo<|im_end|>"]),
        (
            "struct.parquet",
            parquet({"messages": [ASK | {"meta": {"at": 1}}, SAY | {"meta": None}]}),
            [TALK, "Oslo<|im_end|>"],
        ),
        (
            "inside.parquet?prompt=talk.q,completion=talk.a.text",
            parquet({"talk": {"q": "Town?", "a": {"text": "Oslo"}}, "id": 1}),
            [TALK, "Oslo<|im_end|>"],
        ),
        (
            "excel.csv",
            "\ufeffprompt;completion\r\nTown?;Oslo, 1\r\n".encode(),
            [TALK, "Oslo, 1<|im_end|>"],
        ),
        (
            "bom.csv",
            '\ufeffprompt,completion\r\n"Town?",Oslo; 1\r\n'.encode(),
            [TALK, "Oslo; 1<|im_end|>"],
        ),
        (
            "packed.jsonl.gz",
            gzip.compress(jsonl({"prompt": [RULE, ASK], "completion": [SAY]})),
            [BRIEF + TALK, "Oslo<|im_end|>"],
        ),
        (
            "system.jsonl",
            jsonl({"system": "Be brief.", "prompt": "Town?", "completion": "Oslo"}),
            [BRIEF + TALK, "Oslo<|im_end|>"],
        ),
        (
            "hh.jsonl",
            jsonl(
                {
                    "chosen": "\n\nHuman: Town?\n\nAssistant: Oslo",
                    "rejected": "\n\nHuman: Town?\n\nAssistant: no",
                }
            ),
            [TALK, "Oslo<|im_end|>", TALK, "no<|im_end|>"],
        ),
        (
            "orca.jsonl?prompt=question",
            jsonl({"system": "Be brief.", "question": "Town?", "chosen": "Oslo", "rejected": "no"}),
            [BRIEF + TALK, "Oslo<|im_end|>", BRIEF + TALK, "no<|im_end|>"],
        ),
        (
            "single.jsonl",
            jsonl({"prompt": "Town?", "chosen": SAY, "rejected": NO, "score": 1.0}),
            [TALK, "Oslo<|im_end|>", TALK, "no<|im_end|>"],
        ),
    ],
)
def test_what_is_learned(tmp_path, name, content, said):
    name, _, columns = name.partition("?")
    (tmp_path / name).write_bytes(content)
    assert learned(tmp_path / name, columns) == (said, 1)


@pytest.mark.parametrize(
    ("bad", "good", "why"),
    [
        ({"messages": [ASK, *TOOL, SAY]}, {"messages": [ASK, SAY]}, "message 2 calls a tool"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "5"}]},
            {"conversations": [{"from": "human", "value": "Town?"}, {"from": "gpt", "value": "Oslo"}]},
            "message 2 has the from 'observation', of a tool",
        ),
        (
            {"messages": [ASK | {"content": [{"type": "image"}]}, SAY]},
            {"messages": [ASK, SAY]},
            "no text, such as an image",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            {"prompt": "Town?", "chosen": "Oslo", "rejected": "no"},
            "'chosen' and 'rejected' are the same",
        ),
        (
            {"chosen": "Human: a\n\nAssistant: ", "rejected": "Human: a\n\nAssistant: b"},
            {"chosen": "Human: Town?\n\nAssistant: Oslo", "rejected": "Human: Town?\n\nAssistant: no"},
            "somebody say nothing",
        ),
    ],
)
def test_what_nothing_can_be_learned_from_is_counted_and_left_out(tmp_path, caplog, bad, good, why):
    (tmp_path / "mine.jsonl").write_bytes(jsonl(bad, good, bad))
    said, rows = learned(tmp_path / "mine.jsonl")
    assert said[:2] == [TALK, "Oslo<|im_end|>"] and rows == 1
    assert "2 of 3 rows have nothing to learn and are left out (the first is " in caplog.text
    (tmp_path / "mine.jsonl").write_bytes(jsonl(bad))
    with pytest.raises(UserError, match=f"none of the 1 rows can be learned from; line 1: .*{why}"):
        learned(tmp_path / "mine.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("kto.jsonl", jsonl({"prompt": [ASK], "completion": [SAY], "label": False}), "unpaired preferences"),
        ("kto.csv", b"prompt,completion,label\na,b,False\n", "unpaired preferences"),
        ("orca.jsonl", jsonl({"question": "a", "chosen": "b", "rejected": "c"}), "--columns prompt=question"),
        (
            "caps.jsonl",
            jsonl({"Prompt": "a", "Response": "b"}),
            "--columns prompt=Prompt,completion=Response",
        ),
        ("talk.jsonl", jsonl({"conversation": [ASK, SAY]}), "--columns messages=conversation"),
        (
            "dolly.jsonl",
            jsonl({"instruction": "a", "context": "", "response": "b"}),
            "--columns output=response,input=context",
        ),
        ("odd.jsonl", jsonl({"x": "a"}), "as in --columns question=instr,answer=out"),
        ("columns.json", b'{"prompt": {"0": "a"}}', "pandas writes with to_json"),
        ("utf16.csv", "question,answer\na,b\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_what_is_said_of_other_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        learned(tmp_path / name)


def test_all_columns_that_are_read_are_told_also_those_that_the_first_row_lacks(tmp_path, capsys):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "c", "output": "b"}]
    (tmp_path / "alpaca.jsonl").write_bytes(jsonl(*rows))
    open_task(str(tmp_path / "alpaca.jsonl"))
    assert "format alpaca, from the columns instruction, output, input\n" in capsys.readouterr().out


def test_labels_that_differ_in_case_alone_are_told_and_stay_apart(tmp_path, caplog):
    labels = [" Very Bad", "Very Bad ", "very bad", "good"]
    (tmp_path / "films.jsonl").write_bytes(jsonl(*({"text": f"{one}!", "label": one} for one in labels)))
    assert open_task(str(tmp_path / "films.jsonl")).label_names == ("Very Bad", "good", "very bad")
    assert (
        "the labels 'Very Bad' and 'very bad' differ in their case alone, and are two classes" in caplog.text
    )
