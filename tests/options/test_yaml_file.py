"""YAML that anybody may have written: what is read, and what is told with its line."""

import os
import time

import pytest

from fedloom.errors import UserError
from fedloom.options.yaml_file import LARGEST_FILE, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def read(tmp_path, content: str | bytes):
    path = tmp_path / "my.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return read_yaml(path)


def test_what_is_read(tmp_path):
    content, lines = read(
        tmp_path,
        "\ufeff# mine\nwhole: 3\nnumber: 0.5\ntext: 'yes'\ntruth: yes\nnothing:\nday: 2026-02-31\n"
        "lr: &rate 2.5\nclient_lr: *rate\nlist: [1, {two: 2}]\nlike: {<<: &base {a: 1, b: 2}, b: 3}\n",
    )
    assert content == {
        "whole": 3, "number": 0.5, "text": "yes", "truth": True, "nothing": None, "day": "2026-02-31",
        "lr": 2.5, "client_lr": 2.5, "list": [1, {"two": 2}], "like": {"a": 1, "b": 3},
    }  # fmt: skip
    assert lines["whole"] == 2 and lines["like"] == 11
    assert read(tmp_path, "") == (None, {})


def test_numbers_are_those_of_flags(tmp_path):
    """YAML 1.1 reads 1_3 as 13, 010 as 8, 1:30 as 90 and 1e-3 as text."""
    content, _ = read(tmp_path, "[-7, 1e-3, .5, 2.E+3, -.inf, 1_3, 010, 1:30, 0x10, 0b11, 1_0.5, 1:30.5]")
    assert content == [
        -7,
        1e-3,
        0.5,
        2e3,
        float("-inf"),
        "1_3",
        "010",
        "1:30",
        "0x10",
        "0b11",
        "1_0.5",
        "1:30.5",
    ]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("a: 1\nb: !!bool abc", 2, "cannot be of the type bool"),
        ("a: 1\nb: !!int x", 2, "type int"),
        ("b: !!float x", 1, "type float"),
        ("b: " + "9" * 5000, 1, "a number of 5,000 characters"),
        ("b: -" + "9" * 5000 + ".0", 1, "a number of 5,003 characters"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", 2, "constructor for the tag"),
        ("b: !!timestamp 2026-02-31", 1, "constructor for the tag"),
        ("b: !!binary abc", 1, "constructor for the tag"),
        ("b: !!set {x}", 1, "constructor for the tag"),
        ("b: " + "[" * 900, 1, "nested more than 20 times"),
        ("b:\n" + "".join(" " * n + "- \n" for n in range(1, 30)), 21, "nested more than 20 times"),
        (BOMB, 14, "stands for more than 20,000 values"),
        ("a: &a [*a]", 1, "it contains itself"),
        ("a: *nobody", 1, "undefined alias"),
        ("a: 1\nb: 2\na: 3", 3, "stands twice"),
        ("b: {c: 1, 'c': 2}", 1, "stands twice"),
        ("a: 1\nb: 2: 3", 2, "mapping values are not allowed"),
        ("a: 1\n--- b", 2, "expected a single document"),
        ("? [1]\n: 2", 1, "unhashable key"),
        ("a: 1\nb: \x07", 2, "a character that YAML does not allow"),
        ("a: 1\nb: \x00", 2, "a character that YAML does not allow"),
        ('a: 1\nb: "\\U00110000"', 2, "a value that has no meaning"),
        (b"a: 1\nb: \xff", 2, "not UTF-8"),
        ("a: 1\nb: \ud83d", 2, "not UTF-8"),
        ("a: 1".encode("utf-16"), 1, "not UTF-8"),
    ],
)
def test_what_is_not_read_is_told_with_its_line(tmp_path, content, line, reason):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'my.yaml'}, line {line}: is not YAML as read here ("), said
    assert reason in said and "`name: value`" in said and "\n" not in said and len(said) < 400


@pytest.mark.parametrize("content", ["a: [" + "1," * 60_000 + "]", "a: " + "[" * 100_000, BOMB])
def test_no_file_takes_more_than_a_moment(tmp_path, content):
    began = time.monotonic()
    with pytest.raises(UserError):
        read(tmp_path, content)
    assert time.monotonic() - began < 10


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to("round")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="not a file"):
            read_yaml(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "round")
    with pytest.raises(UserError, match="more than 128 KiB"):
        read(tmp_path, "#" * (LARGEST_FILE + 1))
