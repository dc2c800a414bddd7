"""Architectures of transformers as tiny configs: what the engine and generation are held to.

`CAUSAL` and `ENCODERS` give, for each name, a function that makes a new config: hidden size 32, two layers
(three or four where an architecture has several kinds of them), a vocabulary of 320, no dropout, and each
architecture's own features small enough to matter in a dozen tokens: windows of 8, rotation of half a head,
grouped queries, caps, sinks, shared experts. `tiny_model(CAUSAL["mixtral"](), None)` makes the model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

Factory = Callable[[], PretrainedConfig]

VOCABULARY = 320
WINDOW = 8  # tokens that a layer with a sliding window, local attention or chunks sees
DENSE = 24  # tokens up to which sparse attention keeps all
LONGROPE_FROM = 16  # tokens after which longrope rotates by its long factors
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {
    **_SIZES,
    **_IDS,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_ENCODER = {
    **_SIZES,
    "pad_token_id": 0,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
# Multi-head latent attention: one narrow key and value for all heads, a part of a head rotated.
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
}
_GROUPS = {"n_group": 1, "topk_group": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SLIDING_THEN_FULL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_HEADS = {"head_dim": 8}
_MAMBA_2 = {
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
_DELTA_NET = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
# Sparse attention: of many tokens, a token sees those alone that an indexer picks for it.
_INDEX = {
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": DENSE,
    "layer_types": ["indexed_attention"] * 2,
    "mlp_layer_types": ["dense", "sparse"],
}
_COMPRESSED = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "q_lora_rank": 12,
    "o_groups": 2,
    "o_lora_rank": 8,
    "hc_mult": 2,
    "sliding_window": WINDOW,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
    "mlp_layer_types": ["hash_moe", "moe", "moe"],
    "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": DENSE // 2,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_NEO = {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "num_layers": 2, "num_heads": 4}


def _rope(kind: str = "default", **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


def _make(base: Mapping[str, Any], model_type: str, options: Mapping[str, Any]) -> Factory:
    def config() -> PretrainedConfig:
        made = AutoConfig.for_model(model_type, **{**base, **options})
        for name, value in vars(made).items():
            if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
                setattr(made, name, 0.0)
        return made

    return config


def _decoder(model_type: str, *parts: Mapping[str, Any], **options: Any) -> Factory:
    """A causal LM: the common sizes, then ``parts``, then ``options``; None takes the architecture's own."""
    merged = {**_DECODER, **{k: v for part in parts for k, v in part.items()}, **options}
    return _make({}, model_type, merged)


def _encoder(model_type: str, *parts: Mapping[str, Any], **options: Any) -> Factory:
    """An encoder with a classification head."""
    merged = {**_ENCODER, **{k: v for part in parts for k, v in part.items()}, **options}
    return _make({}, model_type, merged)


def _plain(model_type: str, **options: Any) -> Factory:
    """An architecture that has its own names for everything."""
    return _make({}, model_type, {"vocab_size": VOCABULARY, **options})


def _multimodal(model_type: str, text: Factory, vision: Mapping[str, Any], **options: Any) -> Factory:
    """A language model beside a vision tower; only text is given to it."""

    def config() -> PretrainedConfig:
        vision_config = {**_VISION, **vision}
        return AutoConfig.for_model(
            model_type, text_config=text(), vision_config=vision_config, initializer_range=0.2, **options
        )

    return config


_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2, **_IDS}

CAUSAL: dict[str, Factory] = {
    # Rotary embedding, grouped queries, gated MLP.
    "llama": _decoder("llama"),
    "llama-3 rope": _decoder(
        "llama",
        _rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama, linear rope": _decoder("llama", _rope("linear", factor=2.0)),
    "llama, yarn": _decoder("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    # Rotation by the longest text of a pass, once that is longer than the positions trained on.
    "llama, dynamic rope": _decoder(
        "llama", _rope("dynamic", factor=2.0, original_max_position_embeddings=16), max_position_embeddings=16
    ),
    "arcee": _decoder("arcee", _HEADS),
    "apertus": _decoder("apertus"),
    "bitnet": _decoder("bitnet"),
    "cohere": _decoder("cohere", logit_scale=0.5),
    "cwm": _decoder("cwm", _HEADS, _SLIDING_THEN_FULL),
    "diffllama": _decoder("diffllama", _HEADS),
    "doge": _decoder("doge"),
    "ernie-4.5": _decoder("ernie4_5", _HEADS),
    "exaone": _decoder("exaone", _HEADS),
    "gemma": _decoder("gemma", head_dim=16, num_key_value_heads=1),
    "glm": _decoder("glm", _HEADS, _rope(partial_rotary_factor=0.5)),
    "glm-4": _decoder("glm4", _HEADS, _rope(partial_rotary_factor=0.5)),
    "granite": _decoder(
        "granite",
        attention_multiplier=0.4,
        embedding_multiplier=2.0,
        logits_scaling=2.0,
        residual_multiplier=0.7,
    ),
    "helium": _decoder("helium", _HEADS),
    "hunyuan": _decoder("hunyuan_v1_dense", _HEADS),
    "hyperclova": _decoder("hyperclovax"),
    "internlm3": _decoder("internlm3", _HEADS),
    "jais-2": _decoder("jais2", _HEADS),
    "nanochat": _decoder("nanochat"),
    "nemotron": _decoder("nemotron", _HEADS),
    "olmo": _decoder("olmo", clip_qkv=1.0),
    "olmo-2": _decoder("olmo2"),
    "persimmon": _decoder("persimmon", num_key_value_heads=4),
    "phi": _decoder("phi"),
    "phi, normed heads": _decoder("phi", qk_layernorm=True),
    "phi-3": _decoder("phi3", sliding_window=WINDOW),
    # Another rotation, and another cache, as soon as a text is longer than the original length.
    "phi-3, longrope": _decoder(
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 2.0, 4.0, 8.0],
                "original_max_position_embeddings": LONGROPE_FROM,
            }
        },
        original_max_position_embeddings=LONGROPE_FROM,
        max_position_embeddings=128,
    ),
    "qwen-2": _decoder("qwen2"),
    "qwen-2, window": _decoder("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen-3": _decoder("qwen3", _HEADS),
    "seed-oss": _decoder("seed_oss", _HEADS),
    "smollm-3": _decoder("smollm3", no_rope_layers=[1, 0]),
    "stablelm": _decoder("stablelm", use_qkv_bias=True),
    "stablelm, parallel": _decoder("stablelm", use_parallel_residual=True, qk_layernorm=True),
    "starcoder-2": _decoder("starcoder2", sliding_window=WINDOW),
    # Windows, caps, sinks, chunks.
    "mistral": _decoder("mistral", sliding_window=WINDOW),
    "ministral": _decoder("ministral", _HEADS, _SLIDING_THEN_FULL),
    "ministral-3": _decoder("ministral3", _HEADS),
    "cohere-2": _decoder("cohere2", _HEADS, _SLIDING_THEN_FULL, logit_scale=0.5),
    "exaone-4": _decoder("exaone4", _SLIDING_THEN_FULL),
    "gemma-2": _decoder(
        "gemma2",
        _HEADS,
        _SLIDING_THEN_FULL,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    ),
    "gemma-3": _decoder("gemma3_text", _HEADS, _SLIDING_THEN_FULL, query_pre_attn_scalar=8),
    "gemma-3n": _decoder(
        "gemma3n_text",
        _HEADS,
        _SLIDING_THEN_FULL,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.5, 0.0],
        laurel_rank=4,
    ),
    # The last two layers use keys and values of the first two.
    "gemma-4": _decoder(
        "gemma4_text",
        _HEADS,
        num_hidden_layers=4,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=2,
        enable_moe_block=False,
    ),
    "modernbert-decoder": _decoder(
        "modernbert-decoder",
        local_attention=2 * WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        cls_token_id=1,
        sep_token_id=2,
    ),
    "olmo-3": _decoder("olmo3", _SLIDING_THEN_FULL),
    "vaultgemma": _decoder(
        "vaultgemma", _HEADS, _SLIDING_THEN_FULL, query_pre_attn_scalar=8, final_logit_softcapping=3.0
    ),
    "granite, window": _decoder(
        "granite_swa", _SLIDING_THEN_FULL, layer_rope_theta=[10000.0, 10000.0], attention_multiplier=0.4
    ),
    # Learned positions, ALiBi, local layers, and other families from before Llama.
    "gpt-2": _plain("gpt2", **_GPT2),
    "gpt-bigcode": _plain("gpt_bigcode", **_GPT2),
    "gpt-sw3": _plain("gpt-sw3", **_GPT2),
    "openai-gpt": _plain("openai-gpt", **_GPT2),
    "gpt-neo": _plain(
        "gpt_neo", **_NEO, **_IDS, hidden_size=32, max_position_embeddings=256, initializer_range=0.2
    ),
    "gpt-j": _plain("gptj", **_GPT2, rotary_dim=4),
    "codegen": _plain("codegen", **_GPT2, rotary_dim=4),
    "gpt-neox": _decoder("gpt_neox", _rope(partial_rotary_factor=0.5)),
    "gpt-neox, one after the other": _decoder("gpt_neox", use_parallel_residual=False),
    "gpt-neox-japanese": _decoder("gpt_neox_japanese", intermediate_multiple_size=2),
    "opt": _decoder("opt", ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, pad_token_id=1, bos_token_id=2),
    "opt, projected": _decoder(
        "opt", ffn_dim=48, word_embed_proj_dim=16, init_std=0.2, do_layer_norm_before=False
    ),
    "bloom": _plain("bloom", hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **_IDS),
    "mpt": _plain("mpt", d_model=32, n_layers=2, n_heads=4, max_seq_len=256, initializer_range=0.2, **_IDS),
    "falcon": _decoder("falcon", num_kv_heads=1, ffn_hidden_size=64),
    "falcon, alibi": _decoder("falcon", alibi=True, multi_query=False, num_kv_heads=4, ffn_hidden_size=64),
    "falcon, new decoder": _decoder(
        "falcon", new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=64
    ),
    "biogpt": _decoder("biogpt"),
    "xglm": _plain(
        "xglm",
        d_model=32,
        num_layers=2,
        attention_heads=4,
        ffn_dim=48,
        init_std=0.2,
        max_position_embeddings=256,
        **_IDS,
    ),
    "ctrl": _plain("ctrl", n_embd=32, n_layer=2, n_head=4, dff=48, n_positions=256, initializer_range=0.2),
    # Multi-head latent attention.
    "minicpm-3": _decoder("minicpm3", _LATENT, dim_model_base=16, scale_emb=1),
    "youtu": _decoder("youtu", _LATENT),
    "deepseek-v2": _decoder("deepseek_v2", _LATENT, _ROUTED, first_k_dense_replace=1),
    "deepseek-v3": _decoder(
        "deepseek_v3", _LATENT, _ROUTED, n_group=2, topk_group=1, first_k_dense_replace=1
    ),
    "glm-4.7-lite": _decoder("glm4_moe_lite", _LATENT, _ROUTED, mlp_layer_types=["dense", "sparse"]),
    "longcat": _decoder(
        "longcat_flash",
        _LATENT,
        num_layers=2,
        head_dim=4,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=16,
    ),
    # Mixture of experts. (In float64 most need `config._experts_implementation = "eager"`.)
    "afmoe": _decoder(
        "afmoe", _HEADS, _EXPERTS, _SLIDING_THEN_FULL, num_shared_experts=1, num_dense_layers=1
    ),
    "aria": _decoder("aria_text", _HEADS, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
    "dbrx": _plain(
        "dbrx",
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=256,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        initializer_range=0.2,
        **_IDS,
    ),
    "dots-1": _decoder("dots1", _ROUTED, _GROUPS, _SLIDING_THEN_FULL, first_k_dense_replace=1),
    "ernie-4.5-moe": _decoder(
        "ernie4_5_moe",
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_intermediate_size=16,
        moe_layer_start_index=1,
        moe_layer_end_index=1,
    ),
    "exaone-moe": _decoder(
        "exaone_moe", _EXPERTS, _GROUPS, _SLIDING_THEN_FULL, num_shared_experts=1, first_k_dense_replace=1
    ),
    "flex-olmo": _decoder("flex_olmo", _EXPERTS),
    "glm-4-moe": _decoder("glm4_moe", _HEADS, _ROUTED, _GROUPS, use_qk_norm=True),
    "gpt-oss": _decoder("gpt_oss", _HEADS, _LOCAL_EXPERTS, _SLIDING_THEN_FULL, _rope()),
    "granite-moe": _decoder("granitemoe", _LOCAL_EXPERTS, attention_multiplier=0.4),
    "granite-moe-shared": _decoder("granitemoeshared", _LOCAL_EXPERTS, shared_intermediate_size=16),
    "hunyuan-moe": _decoder("hunyuan_v1_moe", _HEADS, num_experts=4, moe_topk=2),
    "jetmoe": _decoder("jetmoe", _LOCAL_EXPERTS, kv_channels=8),
    # Chunks instead of a window in the layers that rotate.
    "llama-4": _decoder(
        "llama4_text",
        _HEADS,
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=48,
        attention_chunk_size=WINDOW,
        no_rope_layers=[1, 0],
        layer_types=["chunked_attention", "full_attention"],
        interleave_moe_layer_step=2,
        # Queries of layers that do not rotate are scaled, farther into the text the more.
        floor_scale=32,
        attn_scale=0.5,
    ),
    "llama-4, unscaled": _decoder(
        "llama4_text",
        _HEADS,
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=48,
        attention_chunk_size=WINDOW,
        no_rope_layers=[1, 0],
        layer_types=["chunked_attention", "full_attention"],
        attn_temperature_tuning=False,
    ),
    "inkling": _decoder("inkling_text", _HEADS, _ROUTED, log_scaling_n_floor=32, log_scaling_alpha=0.5),
    "mixtral": _decoder("mixtral", _LOCAL_EXPERTS),
    "mixtral, window": _decoder("mixtral", _LOCAL_EXPERTS, sliding_window=WINDOW),
    "minimax-m2": _decoder("minimax_m2", _HEADS, _LOCAL_EXPERTS),
    "olmoe": _decoder("olmoe", _EXPERTS),
    "phi-3.5-moe": _decoder("phimoe", _LOCAL_EXPERTS, router_jitter_noise=0.0),
    "phi-3.5-moe, longrope": _decoder(
        "phimoe",
        _LOCAL_EXPERTS,
        _rope(
            "longrope",
            short_factor=[1.0] * 4,
            long_factor=[1.0, 2.0, 4.0, 8.0],
            short_mscale=1.0,
            long_mscale=1.3,
            original_max_position_embeddings=LONGROPE_FROM,
        ),
        router_jitter_noise=0.0,
        max_position_embeddings=128,
    ),
    "qwen-2-moe": _decoder("qwen2_moe", _EXPERTS, shared_expert_intermediate_size=16),
    "qwen-3-moe": _decoder("qwen3_moe", _EXPERTS, _HEADS),
    "solar-open": _decoder("solar_open", _ROUTED, _GROUPS, _HEADS),
    # Convolutions and recurrent state, alone or between layers of attention.
    "bamba": _decoder("bamba", _MAMBA_2, attn_layer_indices=[1]),
    "falcon-h1": _decoder("falcon_h1", _MAMBA_2, mamba_d_ssm=64),
    "granite-hybrid": _decoder(
        "granitemoehybrid",
        _MAMBA_2,
        _LOCAL_EXPERTS,
        layer_types=["mamba", "attention"],
        shared_intermediate_size=16,
    ),
    "jamba": _decoder(
        "jamba",
        num_hidden_layers=2,
        attn_layer_offset=1,
        attn_layer_period=2,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_dt_rank=4,
        mamba_d_state=8,
        use_mamba_kernels=False,
    ),
    "lfm-2": _decoder("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "lfm-2-moe": _decoder("lfm2_moe", _EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1),
    "minimax": _decoder(
        "minimax", _HEADS, _LOCAL_EXPERTS, layer_types=["linear_attention", "full_attention"], block_size=8
    ),
    "mamba-2": _plain(
        "mamba2",
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=2,
        chunk_size=8,
        initializer_range=0.2,
        **_IDS,
    ),
    "nemotron-h": _decoder(
        "nemotron_h",
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "mlp", "full_attention", "moe"],
        head_dim=8,
        mamba_head_dim=8,
        mamba_num_heads=8,
        n_groups=2,
        ssm_state_size=8,
        chunk_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        use_mamba_kernels=False,
    ),
    "olmo-hybrid": _decoder("olmo_hybrid", _DELTA_NET, linear_num_key_heads=4),
    "qwen-3-next": _decoder(
        "qwen3_next", _HEADS, _EXPERTS, _DELTA_NET, shared_expert_intermediate_size=16, decoder_sparse_step=2
    ),
    "qwen-3.5": _decoder("qwen3_5_text", _HEADS, _DELTA_NET),
    "qwen-3.5-moe": _decoder(
        "qwen3_5_moe_text", _HEADS, _EXPERTS, _DELTA_NET, shared_expert_intermediate_size=16
    ),
    "recurrent-gemma": _decoder(
        "recurrent_gemma",
        _HEADS,
        num_key_value_heads=1,
        num_hidden_layers=3,
        lru_width=32,
        attention_window_size=WINDOW,
        logits_soft_cap=3.0,
    ),
    "zamba-2": _decoder(
        "zamba2",
        num_key_value_heads=4,
        num_hidden_layers=3,
        layers_block_type=["linear_attention", "hybrid", "hybrid"],
        num_mem_blocks=1,
        mamba_d_state=8,
        mamba_headdim=8,
        n_mamba_heads=8,
        mamba_ngroups=2,
        chunk_size=8,
        attention_head_dim=16,
        adapter_rank=4,
        use_mem_rope=True,
        use_mamba_kernels=False,
    ),
}

CAUSAL |= {
    "deepseek-v3.2": _decoder("deepseek_v32", _LATENT, _ROUTED, _GROUPS, _INDEX, head_dim=4),
    "deepseek-v4": _decoder("deepseek_v4", _ROUTED, _COMPRESSED),
    # Of so many tokens a summary is made that no short text has one.
    "deepseek-v4, heavily compressed": _decoder(
        "deepseek_v4",
        _ROUTED,
        _COMPRESSED,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "heavily_compressed_attention"],
        mlp_layer_types=["moe", "moe"],
        compress_rates={"heavily_compressed_attention": 32},
    ),
    "glm-moe-dsa": _decoder(
        "glm_moe_dsa", _LATENT, _ROUTED, _GROUPS, _INDEX, indexer_types=["full", "shared"]
    ),
    "axk-2": _decoder("axk2", _LATENT, _ROUTED, _INDEX, gated_norm_rank=4),
    "hy-v4": _decoder(
        "hy_v4", _LATENT, _ROUTED, _GROUPS, _INDEX, indexer_types=["full", "shared"], hc_mult=2
    ),
    "dots-3-note": _decoder(
        "dots3_note_text",
        _LATENT,
        _ROUTED,
        _GROUPS,
        _INDEX,
        {f"swa_{name}": size for name, size in _LATENT.items()},
        layer_types=["indexed_attention", "sliding_attention"],
        head_dim=12,
        swa_head_dim=12,
        swa_num_attention_heads=4,
        sliding_window=WINDOW,
        shared_experts_intermediate_size=16,
    ),
    "qwen-4-exp": _decoder(
        "qwen4_exp_text",
        _HEADS,
        _EXPERTS,
        _DELTA_NET,
        _rope(partial_rotary_factor=0.5),
        layer_types=["linear_attention", "indexed_attention"],
        shared_expert_intermediate_size=16,
        hc_count=2,
        hc_lowrank=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=DENSE,
        indexer_compress_ratio=2,
        ple_layer_ids=[1],
        ple_embed_dim=16,
        heads_per_ngram=2,
        ngram_vocab_size_base=64,
        make_ngram_vocab_size_divisible_by=8,
        split_ngram_parts=4,
    ),
    "doge, sparse": _decoder("doge", keep_window_size=DENSE),
    "minimax-m3": _decoder(
        "minimax_m3_vl_text",
        _HEADS,
        _LOCAL_EXPERTS,
        dense_intermediate_size=48,
        shared_intermediate_size=16,
        index_block_size=4,
        index_head_dim=8,
        index_n_heads=2,
        index_topk_blocks=DENSE // 4,
        rotary_dim=4,
        layer_types=["full_attention", "minimax_m3_sparse"],
        mlp_layer_types=["dense", "sparse"],
    ),
    "kimi-linear": _decoder(
        "kimi_linear",
        _LATENT,
        _EXPERTS,
        _GROUPS,
        head_dim=4,
        n_shared_experts=1,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=["linear_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"],
    ),
    "gemma-3, multimodal": _multimodal(
        "gemma3",
        CAUSAL["gemma-3"],
        {},
        mm_tokens_per_image=4,
        image_token_index=319,
        boi_token_index=318,
        eoi_token_index=317,
    ),
    "llama-4, multimodal": _multimodal(
        "llama4",
        CAUSAL["llama-4"],
        {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        image_token_index=319,
        boi_token_index=318,
        eoi_token_index=317,
    ),
    "qwen-3.5, multimodal": _multimodal(
        "qwen3_5",
        CAUSAL["qwen-3.5"],
        {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16},
        image_token_id=319,
        video_token_id=318,
        vision_start_token_id=317,
        vision_end_token_id=316,
    ),
}

_MODERN = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_NO_SHARING = {"num_key_value_heads": 4}
_DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}

ENCODERS: dict[str, Factory] = {
    "bert": _encoder("bert"),
    "roberta": _encoder("roberta", **{**_IDS, "pad_token_id": 1, "bos_token_id": 0}),
    "roberta, layer norm first": _encoder("roberta-prelayernorm", pad_token_id=1),
    "distilbert": _plain(
        "distilbert",
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        initializer_range=0.2,
    ),
    "albert": _encoder("albert", embedding_size=16),
    "camembert": _encoder("camembert", pad_token_id=1),
    "data2vec": _encoder("data2vec-text", pad_token_id=1),
    "deberta": _encoder("deberta", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "deberta-v2": _encoder("deberta-v2", {**_DEBERTA_V3, "share_att_key": False}),
    "deberta-v3": _encoder("deberta-v2", _DEBERTA_V3),
    "electra": _encoder("electra", embedding_size=16),
    "ernie": _encoder("ernie"),
    "esm": _encoder("esm", position_embedding_type="rotary", mask_token_id=3),
    "eurobert": _encoder("eurobert", _IDS, num_key_value_heads=2, mask_token_id=3),
    "eurobert, mean": _encoder(
        "eurobert", _IDS, num_key_value_heads=2, mask_token_id=3, classifier_pooling="mean"
    ),
    "gte": _encoder("gte"),
    "jina-v3": _encoder("jina_embeddings_v3"),
    "megatron-bert": _encoder("megatron-bert"),
    "mobilebert": _encoder(
        "mobilebert",
        intra_bottleneck_size=16,
        embedding_size=16,
        true_hidden_size=16,
        num_feedforward_networks=2,
    ),
    "modernbert": _encoder(
        "modernbert", _MODERN, local_attention=WINDOW, global_attn_every_n_layers=2, classifier_pooling="cls"
    ),
    "modernbert, mean": _encoder(
        "modernbert", _MODERN, local_attention=WINDOW, global_attn_every_n_layers=2, classifier_pooling="mean"
    ),
    "mpnet": _encoder("mpnet", pad_token_id=1, relative_attention_num_buckets=32),
    "nomic": _encoder("nomic_bert"),
    "rembert": _encoder("rembert", input_embedding_size=16, output_embedding_size=16),
    "roformer": _encoder("roformer", embedding_size=16),
    "squeezebert": _encoder(
        "squeezebert",
        embedding_size=32,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=1,
        intermediate_groups=2,
        output_groups=2,
    ),
    "xlm": _plain(
        "xlm",
        emb_dim=32,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=256,
        init_std=0.2,
        embed_init_std=0.2,
    ),
    "xlm-roberta": _encoder("xlm-roberta", pad_token_id=1),
    "xlm-roberta-xl": _encoder("xlm-roberta-xl", pad_token_id=1),
    # What a token becomes depends on how long the row is, or on which part of it is looked at.
    "big-bird, block sparse": _encoder(
        "big_bird", attention_type="block_sparse", block_size=4, num_random_blocks=1
    ),
    "big-bird": _encoder("big_bird", attention_type="original_full"),
    "canine": _encoder(
        "canine", downsampling_rate=4, local_transformer_stride=8, num_hash_buckets=64, num_hash_functions=4
    ),
    "convbert": _encoder("convbert", embedding_size=16, head_ratio=2, conv_kernel_size=3),
    "fnet": _encoder("fnet"),
    "funnel": _plain(
        "funnel",
        block_sizes=[1, 1],
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=48,
        initializer_std=0.2,
        pad_token_id=0,
    ),
    "layoutlm": _encoder("layoutlm", max_2d_position_embeddings=64),
    "longformer": _encoder("longformer", _IDS, attention_window=WINDOW, sep_token_id=2),
    "nystromformer": _encoder("nystromformer", num_landmarks=64, segment_means_seq_len=64),
    "yoso": _encoder("yoso", use_expectation=True),
}

# One family of each mechanism and each way to be run: `make test` has these, `make test-models` the others,
# which are variants of them: what those show can change with `fedloom/model` and with transformers alone.
FIRST = """llama; llama, dynamic rope; gpt-2; openai-gpt; gpt-neo; opt; bloom; mpt; falcon; mistral; gemma-3;
    gemma-4; phi-3, longrope; mixtral; gpt-oss; deepseek-v3; deepseek-v3.2; deepseek-v4; llama-4; lfm-2;
    mamba-2; qwen-3-next; recurrent-gemma; kimi-linear; llama-4, multimodal; bert; roberta; distilbert;
    albert; modernbert; deberta-v3; xlm; squeezebert; longformer; funnel"""


def sweep(names: Iterable[str]) -> list[Any]:
    """These names as parameters of a test, those that `make test` leaves to `make test-models` marked."""
    first = {" ".join(name.split()) for name in FIRST.split(";")}
    assert first <= CAUSAL.keys() | ENCODERS.keys()
    return [name if name in first else pytest.param(name, marks=pytest.mark.families) for name in names]
