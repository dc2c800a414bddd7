"""A damaged model folder is told in one line, whatever is damaged; a template that does not end is ended."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CHAT_TEMPLATE, save_tiny_llama, tiny_llama, tiny_tokenizer

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.model.base import load_base
from fedloom.model.files import check_model_name
from fedloom.model.template import check_template

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
SETTINGS, INDEX, PICKLED = "tokenizer_config.json", "model.safetensors.index.json", "pytorch_model.bin"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"
BINARY = bytes(range(256))


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same model, stored in three ways."""
    folder = tmp_path_factory.mktemp("whole")
    save_tiny_llama(folder / "plain")
    model = tiny_llama(vocab_size=320)
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder / "shards")
    shutil.copytree(folder / "plain", folder / "pickled", ignore=shutil.ignore_patterns(WEIGHTS))
    torch.save(load_file(folder / "plain" / WEIGHTS), folder / "pickled" / PICKLED)
    (folder / "gguf").mkdir()
    return folder


def content(name, new):
    """Another content of a file."""
    return lambda folder: (folder / name).write_bytes(new if isinstance(new, bytes) else new.encode())


def cut(name, keep):
    """A download that broke off."""

    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])

    return damage


def values(name, **new):
    """Other values in a JSON file; None takes one out."""

    def damage(folder):
        old = json.loads((folder / name).read_text())
        mixed = {key: value for key, value in {**old, **new}.items() if value is not None}
        (folder / name).write_text(json.dumps(mixed))

    return damage


def shards(name):
    """All tensors in a shard of another name."""

    def damage(folder):
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = dict.fromkeys(index["weight_map"], name)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def tensors(change):
    def damage(folder):
        # A file that is read may be mapped, and then must not be written.
        changed = {name: change(t).clone() for name, t in load_file(folder / WEIGHTS).items()}
        save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def pickled(thing):
    return lambda folder: torch.save(thing, folder / PICKLED)


def gone(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


DAMAGES = {
    "plain": {
        "config empty": (content(CONFIG, ""), "config.json is damaged, it is empty"),
        "config null": (content(CONFIG, "null"), "config.json is damaged, it holds NoneType"),
        "config a list": (content(CONFIG, "[]"), "it holds list"),
        "config binary": (content(CONFIG, BINARY), "it is no JSON"),
        "config cut off": (cut(CONFIG, 0.5), "it is no JSON"),
        "config a tokenizer's": (lambda f: shutil.copy(f / SETTINGS, f / CONFIG), "names no model_type"),
        "config deep": (content(CONFIG, "[" * 100_000), "it is no JSON"),
        "config a web page": (content(CONFIG, "<html>404</html>"), "it is no JSON"),
        "config of Git LFS": (content(CONFIG, LFS), "git lfs pull"),
        "config gone": (gone(CONFIG), "no config.json"),
        "config in UTF-16": (
            lambda f: (f / CONFIG).write_text((f / CONFIG).read_text(), encoding="utf-16"),
            "its configuration cannot be loaded",
        ),
        "kind unknown": (values(CONFIG, model_type="nope"), "`nope`"),
        "kind a number": (values(CONFIG, model_type=5), "names no model_type"),
        "kind of images": (values(CONFIG, model_type="vit"), "is no causal language model"),
        "kind of another model": (values(CONFIG, model_type="gpt2"), "its files lack 28 of 29 tensors"),
        "width a word": (values(CONFIG, hidden_size="abc"), "hidden_size"),
        "width negative": (values(CONFIG, hidden_size=-32), "negative dimension"),
        "width huge": (values(CONFIG, hidden_size=10**12), "have another shape"),
        "words too few": (values(CONFIG, vocab_size=100), r"is \[320, 32\], not \[100, 32\]"),
        "words too many": (values(CONFIG, vocab_size=10**12), "have another shape"),
        "heads none": (values(CONFIG, num_attention_heads=0), "its configuration cannot be loaded"),
        "heads that do not divide": (values(CONFIG, num_attention_heads=5), "number of attention heads"),
        "layers too few": (values(CONFIG, num_hidden_layers=1), "Set num_hidden_layers to 2"),
        "layers too many": (values(CONFIG, num_hidden_layers=3), "its files lack 9 of 30 tensors"),
        "layers none": (values(CONFIG, num_hidden_layers=0), "counts 0 layers"),
        "layers without end": (values(CONFIG, num_hidden_layers=10**9), "counts 1,000,000,000 layers"),
        "activation unknown": (values(CONFIG, hidden_act="nope"), "nope"),
        "dtype unknown": (values(CONFIG, dtype="nope"), "nope"),
        "pad token beyond": (values(CONFIG, pad_token_id=999), "[Pp]adding_idx"),
        "weights elsewhere": (
            values(CONFIG, transformers_weights="../x.safetensors"),
            "inside the model dir",
        ),
        "weights empty": (content(WEIGHTS, ""), "model.safetensors is damaged"),
        "weights cut off": (cut(WEIGHTS, 0.9), "model.safetensors is damaged"),
        "weights cut off early": (cut(WEIGHTS, 6), "model.safetensors is damaged"),
        "weights a web page": (
            content(WEIGHTS, "<html>404 Not Found</html>"),
            "model.safetensors is damaged",
        ),
        "weights of Git LFS": (content(WEIGHTS, LFS), "git lfs pull"),
        "weights pickled": (
            lambda f: torch.save(tiny_llama().state_dict(), f / WEIGHTS),
            "model.safetensors is damaged",
        ),
        "weights gone": (gone(WEIGHTS), "cannot be loaded, the folder holds no weights"),
        "weights with a dimension more": (tensors(lambda t: t[None]), "21 of 21 tensors have another shape"),
        "tokenizer empty": (content(TOKENIZER, ""), "tokenizer.json is damaged"),
        "tokenizer cut off": (cut(TOKENIZER, 0.5), "tokenizer.json is damaged"),
        "tokenizer a list": (content(TOKENIZER, "[]"), "tokenizer.json is damaged"),
        "tokenizer without a model": (values(TOKENIZER, model={"type": "Nope"}), "its tokenizer cannot be"),
        "tokenizer without words": (
            values(TOKENIZER, model={"type": "BPE", "vocab": {}, "merges": []}),
            "no token of a text",
        ),
        "tokenizer gone": (gone(TOKENIZER, SETTINGS), "its tokenizer cannot be loaded"),
        "settings null": (content(SETTINGS, "null"), "tokenizer_config.json is damaged"),
        "settings with a number": (values(SETTINGS, eos_token=5), "its tokenizer cannot be loaded"),
        "settings with a word": (values(SETTINGS, model_max_length="x"), "its tokenizer cannot be loaded"),
        "generation a list": (content("generation_config.json", "[]"), "generation_config.json is damaged"),
        "an adapter beside": (content("adapter_config.json", "{}"), "also holds an adapter"),
    },
    "shards": {
        "index empty": (content(INDEX, ""), "index.json is damaged"),
        "index a list": (content(INDEX, "[]"), "it holds list"),
        "index of nothing": (content(INDEX, "{}"), "it holds no weight_map"),
        "index leaves the folder": (shards("../../etc/passwd"), "is no file of this folder"),
        "index with a root": (shards("/etc/passwd"), "is no file of this folder"),
        "index with numbers": (shards(5), "is no file of this folder"),
        "index without end": (shards("a" * 5000), "1 of 1 files of weights are not there"),
        "index of another file": (shards("config.json"), "damaged, or holds more than tensors"),
        "shard gone": (
            lambda f: sorted(f.glob("model-*"))[0].unlink(),
            "1 of 6 files of weights are not there",
        ),
        "shard cut off": (
            lambda f: sorted(f.glob("model-*"))[2].write_bytes(b"short"),
            "model-00003-of-00006.safetensors is damaged",
        ),
    },
    "pickled": {
        "cut off": (cut(PICKLED, 0.5), "pytorch_model.bin is damaged"),
        "empty": (content(PICKLED, ""), "its weights cannot be loaded"),
        "with code": (content(PICKLED, pickle.dumps(Evil())), "could run code"),
        "with code, as torch packs it": (pickled(Evil()), "could run code"),
        "a whole model": (pickled(tiny_llama()), "could run code"),
        "a list": (pickled([1, 2]), "its weights cannot be loaded"),
        "numbers for tensors": (pickled({"lm_head.weight": 5}), "its weights cannot be loaded"),
        "tensors further in": (pickled({"model": {"lm_head.weight": torch.ones(3)}}), "lack 21 of 21"),
    },
    "gguf": {
        "empty": (content("model.gguf", ""), "it is no GGUF file"),
        "a text": (content("model.gguf", "hello"), "it is no GGUF file"),
        "cut off": (content("model.gguf", b"GGUF\x03"), "its configuration cannot be loaded"),
    },
}


@pytest.mark.parametrize(
    ("kind", "damage"), [(kind, damage) for kind, damages in DAMAGES.items() for damage in damages]
)
def test_a_damaged_file_is_told_in_one_line(kind, damage, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, words = DAMAGES[kind][damage]
    folder = shutil.copytree(whole / kind, tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=words) as told:
        load_base(str(folder / "model.gguf" if kind == "gguf" else folder), device="cpu", dtype="float32")
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value) and len(str(told.value)) < 800
    assert not (tmp_path / "ran").exists(), "code of the model ran"


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "./a\0b", "~nobody-of-this-name/model"])
def test_what_can_be_no_files_name_is_no_model(name):
    with pytest.raises(UserError):
        check_model_name(name)


TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "powers": "{{ (10 + messages|length) ** (10 ** (9 + messages|length)) }}",
    "memory": "{{ 'a' * 10000000000 }}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_does_not_end_is_ended(template, monkeypatch):
    monkeypatch.setattr("fedloom.model.template.CPU_SECONDS", 1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    with pytest.raises(UserError, match="model 'mine': its chat template does not end"):
        check_template(tokenizer, "mine")


@pytest.mark.parametrize(
    "template",
    [
        None,
        CHAT_TEMPLATE,
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    ],
)
def test_what_else_is_wrong_with_a_template_is_not_asked_here(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    check_template(tokenizer, "mine")


def test_the_command_line_tells_it_before_it_reads_data(whole, tmp_path, capsys):
    folder = shutil.copytree(whole / "plain", tmp_path / "model")
    cut(WEIGHTS, 0.5)(folder)
    assert main(["fed", "--model_name", str(folder), "--data_name", "qa", "--data_dir", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedloom: error: model") and said.count("\n") == 1 and WEIGHTS in said
