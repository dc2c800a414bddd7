"""Base models are told apart by what their files hold, however they are stored and whatever computes."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_llama, tiny_llama, tiny_tokenizer
from tiny_gguf import save_tiny_gguf
from tokenizers import AddedToken

from fedloom.model.base import load_base
from fedloom.model.fingerprint import fingerprints, tokenizer_fingerprint, weights_fingerprint

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return save_tiny_llama(tmp_path / "plain")


def changed(folder, change):
    """Another folder, whose tensors are others."""
    other = folder.with_name("changed")
    shutil.copytree(folder, other)
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: t.contiguous() for name, t in tensors.items()}, other / WEIGHTS, {"format": "pt"})
    return weights_fingerprint(str(other))


def test_the_same_weights_have_one_name_however_they_are_stored(folder):
    name = weights_fingerprint(str(folder))
    vocabulary = len(load_file(folder / WEIGHTS)["model.embed_tokens.weight"])
    tiny_llama(vocab_size=vocabulary).save_pretrained(folder.with_name("shards"), max_shard_size="20KB")
    assert len(list(folder.with_name("shards").glob("*.safetensors"))) > 1
    assert weights_fingerprint(str(folder.with_name("shards"))) == name
    shutil.copytree(folder, folder.with_name("pickled"), ignore=shutil.ignore_patterns(WEIGHTS))
    torch.save(load_file(folder / WEIGHTS), folder.with_name("pickled") / "pytorch_model.bin")
    assert weights_fingerprint(str(folder.with_name("pickled"))) == name
    gguf = [weights_fingerprint(str(save_tiny_gguf(folder / f"{k}.gguf", seed=k % 2))) for k in range(3)]
    assert gguf[0] == gguf[2] != gguf[1]
    bases = [load_base(str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
    assert len({str(fingerprints(str(folder), base.tokenizer)) for base in bases}) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: t.bfloat16() for name, t in tensors.items()},
        lambda tensors: {name: t + 1e-3 * (t.ndim > 1) for name, t in tensors.items()},
        lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"].neg()},
        lambda tensors: {name: t for name, t in tensors.items() if name != "model.norm.weight"},
    ],
)
def test_other_weights_have_another(folder, change):
    assert changed(folder, lambda tensors: tensors) == weights_fingerprint(str(folder))
    shutil.rmtree(folder.with_name("changed"))
    assert changed(folder, change) != weights_fingerprint(str(folder))


def test_another_tokenizer_has_another_name_and_using_one_changes_nothing():
    name, used, more = tokenizer_fingerprint(tiny_tokenizer()), tiny_tokenizer(), tiny_tokenizer()
    used(["a text", "an other text"], padding=True, truncation=True, max_length=3)
    used.chat_template = "Hello!"
    assert tokenizer_fingerprint(used) == name
    more.add_tokens([AddedToken("<new>")])
    assert tokenizer_fingerprint(more) != name
