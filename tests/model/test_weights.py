"""What a model's files lack is an error, but for a classifier's head, which goes into the adapter."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import pair_tokenizer, save_tiny_bert, save_tiny_llama, tiny_bert, tiny_llama, tiny_model
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaConfig,
    DistilBertConfig,
    ModernBertConfig,
)

from fedloom.errors import UserError
from fedloom.model.adapters import choice
from fedloom.model.base import load_base
from fedloom.model.stacked import StackedModel

WEIGHTS = "model.safetensors"
ENCODER = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Whole models by name."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llama(folder / "llama")
    save_tiny_llama(folder / "tied", tie_word_embeddings=True)
    save_tiny_bert(folder / "bert")
    return folder


def load(folder, num_labels=None, **options):
    return load_base(str(folder), device="cpu", dtype="float32", num_labels=num_labels, **options)


def damaged(folder, change):
    """Change the tensors of a model's folder."""
    # A file that is read may be mapped, and then must not be written.
    tensors = {name: t.clone() for name, t in load_file(folder / WEIGHTS).items()}
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def renamed(before):
    return lambda tensors: {before(name): t for name, t in tensors.items()}


def without(part):
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def replaced(part, tensor):
    return lambda tensors: {name: tensor if part in name else t for name, t in tensors.items()}


DAMAGES = {
    "saved while compiled": (
        "llama",
        renamed(lambda name: f"_orig_mod.{name}"),
        ["lack 21 of 21 tensors (lm_head.weight", "strip the prefix '_orig_mod.'"],
    ),
    "saved while wrapped": ("bert", renamed(lambda name: f"module.{name}"), ["strip the prefix 'module.'"]),
    "without the first part of the names": (
        "llama",
        renamed(lambda name: name.removeprefix("model.layers.")),
        ["lack 18 of 21", "without 'model.layers.' in front"],
    ),
    "no head, and not tied": ("llama", without("lm_head"), ["lack 1 of 21", "tie_word_embeddings"]),
    "half its layers": (
        "llama",
        without("layers.1."),
        ["lack 9 of 21", "model.layers.1.", "Fetch the missing file"],
    ),
    "a layer of an encoder": (
        "bert",
        without("layer.1.attention"),
        ["lack 10 of", "bert.encoder.layer.1.attention"],
    ),
    "no embedding": ("bert", without("word_embeddings"), ["lack 1 of", "word_embeddings"]),
    "no final norm": ("llama", without("model.norm"), ["lack 1 of 21 tensors (model.norm.weight)"]),
    "a tensor of size 0": (
        "bert",
        replaced("layer.0.attention.self.query.weight", torch.zeros(0)),
        ["1 of 41 tensors have another shape", "query.weight is [0], not [32, 32]", "ZeRO-3"],
    ),
    "a tensor of another model": (
        "llama",
        replaced("layers.0.mlp.up_proj", torch.zeros(40, 32)),
        ["up_proj.weight is [40, 32], not [48, 32]", "Fetch config.json and the weights again"],
    ),
    "an embedding of another size": (
        "bert",
        replaced("word_embeddings", torch.zeros(300, 32)),
        ["word_embeddings.weight is [300, 32], not [320, 32]"],
    ),
    "NaN, as after training that diverged": (
        "llama",
        replaced("layers.1.mlp.up_proj", torch.full((48, 32), torch.nan)),
        ["1 of 21 tensors hold NaN or infinity", "model.layers.1.mlp.up_proj.weight"],
    ),
    "infinity": (
        "bert",
        replaced("layer.0.output.dense.bias", torch.full((32,), torch.inf)),
        ["1 of 41 tensors hold NaN or infinity", "bert.encoder.layer.0.output.dense.bias"],
    ),
    "quantised, and nothing says how": (
        "llama",
        replaced("layers.0.mlp.up_proj", torch.ones(48, 32, dtype=torch.int8)),
        ["1 of its weights are whole numbers", "layers.0.mlp.up_proj.weight is int8", "quantization_config"],
    ),
    "more layers than config.json counts": (
        "llama",
        lambda tensors: tensors | {n.replace("layers.1.", "layers.2."): t + 0 for n, t in tensors.items()},
        ["1 more layers", "Set num_hidden_layers to 3"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_is_trained_on_weights_that_nobody_trained(damage, saved, tmp_path):
    name, change, words = DAMAGES[damage]
    folder = damaged(Path(shutil.copytree(saved / name, tmp_path / name)), change)
    with pytest.raises(UserError) as told:
        load(folder, num_labels=2 if name == "bert" else None)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)
    assert all(word in str(told.value) for word in words), told.value


@pytest.mark.parametrize("name", ["llama", "tied"])
@pytest.mark.parametrize("kind", ["one file", "shards", "pickled"])
def test_whole_models_load_however_they_are_stored(name, kind, saved, tmp_path):
    if kind != "one file":
        whole = load(saved / name)
        whole.tokenizer.save_pretrained(tmp_path)
        whole.model.save_pretrained(tmp_path, max_shard_size="20KB" if kind == "shards" else "1GB")
    if kind == "pickled":
        torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
        (tmp_path / WEIGHTS).unlink()
    loaded = load(saved / name if kind == "one file" else tmp_path)
    expected = load_file(saved / name / WEIGHTS)
    assert loaded.drawn == ()
    assert all(torch.equal(loaded.model.state_dict()[tensor], t) for tensor, t in expected.items())


def test_a_shard_that_is_not_there_is_named_before_weights_are_read(tmp_path, monkeypatch):
    model = tiny_llama(vocab_size=320)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"1 of 6 files of weights are not there.*{shard.name}"):
        load(tmp_path)


def test_a_head_for_other_classes_is_replaced_and_nothing_else(saved, tmp_path, caplog):
    loaded = load(saved / "bert", num_labels=3)
    assert loaded.drawn == ("classifier",)
    assert "is for 2 classes, the task has 3" in caplog.text
    assert loaded.model.classifier.weight.shape == (3, 32)
    kept = load(saved / "bert", num_labels=2)
    assert kept.drawn == () and torch.equal(
        kept.model.classifier.weight, tiny_bert(vocab_size=320).classifier.weight
    )


HEADLESS = {
    "bert": (BertConfig, AutoModel, ("classifier",)),
    "bert, masked words": (BertConfig, AutoModelForMaskedLM, ("bert.pooler.dense", "classifier")),
    "deberta": (DebertaConfig, AutoModel, ("classifier", "pooler.dense")),
    "distilbert": (DistilBertConfig, AutoModel, ("classifier", "pre_classifier")),
    "modernbert": (ModernBertConfig, AutoModel, ("classifier", "head.dense")),
}


@pytest.mark.parametrize("name", HEADLESS)
def test_an_adapter_holds_every_layer_that_was_drawn(name, tmp_path):
    """So PEFT makes of it the same classifier every time, whatever it draws itself."""
    made, auto, drawn = HEADLESS[name]
    own = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48} if made is DistilBertConfig else ENCODER
    options = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = made(**{**options, **own, "vocab_size": 320})
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(tmp_path / "base")
    pair_tokenizer().save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base", num_labels=3)
    assert base.drawn == drawn
    plain = base.model
    ids = torch.tensor([[1, 40, 41, 42, 2]])
    expected = plain(ids).logits
    adapter = choice.lora(plain, r=2, alpha=4, dropout=0.0, target_modules=None)
    model = StackedModel(plain, choice.with_drawn(adapter, base.drawn), seed=0)
    for module in drawn:
        assert any(f".{module}." in held for held in model.initial)
    model.save(model.initial, tmp_path / "adapter")
    for seed in (1, 2):
        torch.manual_seed(seed)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
        assert torch.equal(
            PeftModel.from_pretrained(again, tmp_path / "adapter").eval()(ids).logits, expected
        )


@pytest.mark.parametrize("make", [choice.prompt_tuning, choice.p_tuning])
def test_virtual_tokens_are_saved_with_the_layers_that_were_drawn(make):
    model = tiny_bert()
    config = choice.with_drawn(make(model, virtual_tokens=3), ("bert.pooler.dense", "classifier"))
    initial = StackedModel(model, config, seed=0).initial
    assert {"base_model.bert.pooler.dense.weight", "base_model.classifier.weight"} <= initial.keys()


def test_a_new_layer_that_cannot_be_trained_by_client_is_refused(saved, tmp_path):
    """A head with an embedding of its own, say."""

    class Odd(type(tiny_bert())):
        def __init__(self, config):
            super().__init__(config)
            self.marks = torch.nn.Embedding(3, 4)

    from fedloom.model.weights import check_weights

    report = {"missing_keys": {"marks.weight"}, "mismatched_keys": set(), "unexpected_keys": set()}
    with pytest.raises(UserError, match=r"lack marks \(Embedding\)"):
        check_weights(Odd(tiny_bert().config), report, "odd", classify=True)


def test_quantised_weights_are_told_in_pickled_files_too(saved, tmp_path):
    folder = Path(shutil.copytree(saved / "llama", tmp_path / "llama"))
    tensors = load_file(folder / WEIGHTS) | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"model\.norm\.weight is int8"):
        load(folder)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantising_hides_no_tensor_of_another_shape(quantize, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = save_tiny_llama(tmp_path, hidden_size=64, intermediate_size=128)
    damaged(folder, replaced("layers.0.mlp.up_proj", torch.zeros(100, 64)))
    with pytest.raises(UserError, match=r"up_proj.weight is \[100, 64\], not \[128, 64\]"):
        load_base(str(folder), quantize=quantize)


def test_a_pooler_that_is_drawn_stays_a_plain_layer_when_the_rest_is_quantised(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = BertConfig(**{**ENCODER, "hidden_size": 64})
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    pair_tokenizer().save_pretrained(tmp_path)
    loaded = load_base(str(tmp_path), quantize="4bit", num_labels=2)
    assert loaded.drawn == ("bert.pooler.dense", "classifier")
    assert type(loaded.model.bert.pooler.dense) is torch.nn.Linear
    assert type(loaded.model.bert.encoder.layer[0].attention.self.query).__name__ == "Linear4bit"


def test_half_a_classifier_is_said_to_be_filled_up(tmp_path, caplog):
    model = tiny_model(BertConfig(**ENCODER), 2)
    model.save_pretrained(tmp_path)
    pair_tokenizer().save_pretrained(tmp_path)
    damaged(tmp_path, without("classifier.bias"))
    assert load(tmp_path, num_labels=2).drawn == ()
    assert "lack classifier.bias" in caplog.text
