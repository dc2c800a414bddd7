"""Which layers get LoRA, and what of PEFT's adapters runs: right, or refused by name."""

import dataclasses
import json

import pytest
import torch
from architectures import CAUSAL
from peft import LoraConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS_DEFAULTS
from safetensors.torch import load_file, save_file
from tiny import (
    save_tiny_llama,
    tiny_bert,
    tiny_bloom,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.model.adapters import supported
from fedloom.model.adapters.choice import default_targets, lora
from fedloom.model.adapters.supported import check_adapter, check_config
from fedloom.model.stacked import StackedModel
from fedloom.model.structure import without_weights
from fedloom.options.check_fed import check_target_modules
from fedloom.options.declare import names_or_pattern

DECODER = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
GEMMA_3 = {
    "text_config": {**DECODER, "head_dim": 8},
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}


def described(kind, num_labels=None, **sizes):
    return without_weights(AutoConfig.for_model(kind, **sizes), num_labels)


def adapted(model, config):
    """The modules that get LoRA, without PEFT's own prefix."""
    names = (name for name in check_adapter(model, config) if ".lora_" in name)
    return sorted({name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names})


CHOSEN = {
    "PEFT's default": (lambda: tiny_llama(), ["q_proj", "v_proj"]),
    "query and value": (lambda: described("olmo2", **DECODER), ["q_proj", "v_proj"]),
    "by other names": (lambda: tiny_distilbert(), ["q_lin", "v_lin"]),
    "one for all three": (lambda: described("phi3", **DECODER), ["qkv_proj"]),
    "one for all three, in an encoder": (
        lambda: described("modernbert", 2, **DECODER, bos_token_id=1, cls_token_id=1, sep_token_id=2),
        ["Wqkv"],
    ),
    # Of these PEFT would take the layers of the dense part for whole experts.
    "every linear layer that is no expert": (
        lambda: described("deepseek_v3", **{**DECODER, **LATENT}),
        ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"],
    ),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_layers_are_chosen_where_nobody_names_any(case):
    make, expected = CHOSEN[case]
    model = make()
    assert default_targets(model) == expected
    config = lora(model, r=2, alpha=4, dropout=0.0, target_modules=None)
    assert config.target_modules == set(expected)
    assert {name.rpartition(".")[2] for name in adapted(model, config)} == set(expected)


def test_of_a_model_that_sees_only_what_reads_text_is_adapted():
    """The tower has a `q_proj` too, which a text never reaches."""
    model = described("gemma3", **GEMMA_3)
    for targets in (None, "all-linear"):
        names = adapted(model, lora(model, r=2, alpha=4, dropout=0.0, target_modules=targets))
        assert names and all(name.startswith("model.language_model.layers.") for name in names)
    assert len({name.rpartition(".")[2] for name in names}) == 7


def test_a_default_that_is_a_regular_expression_stays_one(monkeypatch):
    monkeypatch.setitem(PEFTS_DEFAULTS, "llama", r"model\.layers\.1\..*\.(q_proj|v_proj)")
    config = lora(tiny_llama(), r=2, alpha=4, dropout=0.0, target_modules=None)
    assert config.target_modules == PEFTS_DEFAULTS["llama"]
    layer = "model.layers.1.self_attn"
    assert adapted(tiny_llama(), config) == [f"{layer}.q_proj", f"{layer}.v_proj"]


@pytest.mark.parametrize(
    ("make", "everything"),
    [
        (tiny_llama, "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        (tiny_gpt2, "c_attn c_fc c_proj"),
        (tiny_bloom, "dense dense_4h_to_h dense_h_to_4h query_key_value"),
        (tiny_distilbert, "k_lin lin1 lin2 out_lin q_lin v_lin"),
    ],
)
def test_all_linear_is_every_linear_layer_but_the_head(make, everything):
    config = lora(make(), r=2, alpha=4, dropout=0.0, target_modules=["all-linear"])
    names = {name.rpartition(".")[2] for name in adapted(make(), config) if ".layer" in name or ".h." in name}
    assert names == set(everything.split())


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_layer_that_is_linear_by_name_alone_gets_no_lora(targets):
    model = tiny_model(CAUSAL["deepseek-v4"](), None)
    config = lora(model, r=2, alpha=4, dropout=0.0, target_modules=targets)
    adapted = {name for layer in StackedModel(model, config, seed=0).adapted.values() for name, *_ in layer}
    assert any("q_b_proj" in name for name in adapted) and not any("o_a_proj" in name for name in adapted)
    with pytest.raises(UserError, match=r"o_a_proj is .*DeepseekV4GroupedLinear"):
        check_adapter(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["o_a_proj"]))


def test_all_linear_leaves_out_what_peft_takes_for_experts_and_says_so(caplog):
    model = described("deepseek_v3", **{**DECODER, **LATENT})
    config = lora(model, r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    names = {name.rpartition(".")[2] for name in adapted(model, config)}
    assert names == {"kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"}
    assert "without down_proj, gate_proj, up_proj" in caplog.text


@pytest.mark.parametrize(
    ("given", "means"),
    [
        (None, None),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("layers.0.self_attn.q_proj", ["layers.0.self_attn.q_proj"]),
        ("all-linear", ["all-linear"]),
        (r".*\.[01]\..*(q|v)_proj", r".*\.[01]\..*(q|v)_proj"),
        (r".*layers\.\d{1,2}\..*q_proj", r".*layers\.\d{1,2}\..*q_proj"),
    ],
)
def test_target_modules_are_names_or_a_regular_expression(given, means):
    assert names_or_pattern(given) == means
    check_target_modules(given)


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(UserError, match="no regular expression"):
        check_target_modules("*.q_proj(")


REFUSED = {
    "a norm": (["input_layernorm"], "a norm"),
    "an embedding": (["embed_tokens"], "an embedding"),
    "a whole block": (["mlp"], "a whole block"),
    "a whole layer": (["0"], "a whole block"),
    "an expression that also fits blocks": (r".*layers\.0.*", "a whole block"),
    "the head": (["lm_head"], "the language model's head"),
    "the head, by an expression": (".*(q_proj|lm_head)", "the language model's head"),
    "nothing": (["q_projj"], "q_projj is no layer.*q_proj.*all-linear"),
    "nothing, by an expression": (r".*\.nope", "is no layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_linear_layer_is_refused_by_name(case):
    targets, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        check_adapter(tiny_llama(), lora(tiny_llama(), r=2, alpha=4, dropout=0.0, target_modules=targets))


def test_experts_are_refused_by_name():
    model = described("mixtral", **DECODER, num_local_experts=4, num_experts_per_tok=2)
    for targets in (["w1", "w2", "w3"], ["experts"]):
        with pytest.raises(UserError, match="experts"):
            check_adapter(model, LoraConfig(task_type="CAUSAL_LM", target_modules=targets))


def test_every_field_of_pefts_configurations_is_known():
    """A new PEFT brings new fields: each must be sorted in, whether it changes what an adapter computes."""
    for kind in (LoraConfig, PromptTuningConfig, PromptEncoderConfig):
        for field in dataclasses.fields(kind):
            known = (
                field.name in supported._BUILT_BY_PEFT
                or field.name in supported.NOT_OF_THE_FUNCTION
                or field.name in supported._ONLY
                or field.name in SWITCHED_OFF
            )
            assert known, f"{kind.__name__}.{field.name}: does it change what an adapter computes?"


SWITCHED_OFF = {
    "use_dora": True,
    "lora_bias": True,
    "trainable_token_indices": [1, 2],
    "target_parameters": ["mlp.experts.down_proj"],
    "layer_replication": [(0, 1), (0, 2)],
    "megatron_config": {"a": 1},
    "alora_invocation_tokens": [5],
    "use_qalora": True,
    "monteclora_config": {"a": 1},
    "use_bdlora": True,
    "arrow_config": {"a": 1},
    "kasa_config": {"a": 1},
    "ensure_weight_tying": True,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [*SWITCHED_OFF.items(), ("bias", "all"), ("init_lora_weights", "pissa"), ("a_field_of_a_later_peft", 3)],
)
def test_a_variant_that_does_not_run_is_refused_by_name(name, value):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    check_config(config, "here")
    setattr(config, name, value)
    with pytest.raises(UserError, match=f"here: {name} is"):
        check_config(config, "here")


FUNCTIONS = {
    "rank by layer": {"rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 5}},
    "scale by layer": {"alpha_pattern": {"v_proj": 64}},
    "scale by the root": {"use_rslora": True},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "one layer": {"layers_to_transform": 0},
    "an expression": {"target_modules": r".*\.1\..*\.(up|down)_proj"},
    "without some": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "gate_proj"]},
    "transposed, it says": {"fan_in_fan_out": True},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "a head of its own": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")  # PEFT's, of PEFT's layers
@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_runs_computes_what_peft_computes(case, full_precision):
    options = {"target_modules": ["q_proj", "v_proj"], **FUNCTIONS[case]}
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, init_lora_weights=False, **options)
    torch.manual_seed(0)
    plain = get_peft_model(tiny_llama().double(), config).double()
    for name, p in plain.named_parameters():
        if p.requires_grad and "lora_" not in name:
            p.data += 0.5 * torch.randn_like(p)
    row = {n: p[None] for n, p in supported.trained(plain, config).items()}
    model = StackedModel(
        tiny_llama().double(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, **options), seed=0
    )
    assert {n: t.shape for n, t in model.initial.items()} == {n: t.shape[1:] for n, t in row.items()}
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad(), model.as_clients(row, [2]) as stacked:
        ours = stacked(ids).logits
        theirs = plain(ids).logits
        assert not torch.allclose(ours, tiny_llama().double()(ids).logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    (folder / "qa.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(4))
    )
    return save_tiny_llama(folder / "model")


def judge(model, adapter):
    words = ["eval", "--adapter", adapter, "--model_name", model, "--data_name", "qa", "--split", "train"]
    words += ["--data_dir", model.parent / "qa.jsonl", "--max_new_tokens", "8", "--dtype", "float32"]
    return main([*map(str, words), "--output_path", str(adapter / "eval")])


# PEFT says what it saves beside the adapter.
PEFT_SAVES_MORE = pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.")


def saved_adapter(model, folder, **options):
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, **options)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).eval()
    for name, p in made.named_parameters():
        if p.requires_grad and "lora_" not in name:
            p.data += 0.5 * torch.randn_like(p)
    made.save_pretrained(folder)
    return made


@PEFT_SAVES_MORE
def test_lora_on_the_head_answers_as_peft_does(llama, tmp_path, capsys):
    """PEFT saves the frozen head beside it."""
    plain = saved_adapter(llama, tmp_path, target_modules=["q_proj", "lm_head"])
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.lm_head.base_layer.weight" in held
    assert judge(llama, tmp_path) == 0
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for line in (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(row["prompt"], return_tensors="pt", add_special_tokens=False)
        made = plain.generate(**ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
        written = tokenizer.decode(made[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        assert written == row["output"]
    held["base_model.model.lm_head.base_layer.weight"] = torch.zeros(333, 32)
    save_file(held, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    assert judge(llama, tmp_path) == 2
    assert "weights of its own for lm_head.base_layer.weight" in capsys.readouterr().err


@PEFT_SAVES_MORE
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"modules_to_save": ["embed_tokens"]},
            "modules_to_save embed_tokens means model.embed_tokens, an emb",
        ),
        ({"modules_to_save": ["norm"]}, "modules_to_save norm means model.layers.0.input_layernorm, a norm"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens is an embedding"),
        ({"bias": "lora_only"}, "bias is lora_only"),
    ],
)
def test_eval_refuses_by_name_before_weights_are_read(options, words, llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedloom.model.base._load_model", lambda *args: pytest.fail("weights were read"))
    saved_adapter(llama, tmp_path, **options)
    assert judge(llama, tmp_path) == 2
    said = capsys.readouterr().err
    assert words in said and str(tmp_path) in said and said.count("fedloom: error:") == 1


def test_the_classifiers_own_layers_are_no_targets():
    with pytest.raises(UserError):
        check_adapter(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["classifier"]))
