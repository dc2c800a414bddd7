"""A tiny Llama as a GGUF file with quantised weights."""

import json
from pathlib import Path

import gguf
import numpy as np
from tiny import CHAT_TEMPLATE, tiny_tokenizer


def save_tiny_gguf(path: Path, layers: int = 2, width: int = 64, seed: int = 0) -> Path:
    """Write the file, weights in Q8_0 (blocks of 32 numbers with a scale each); returns it."""
    tokenizer = tiny_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    model = tokenizer.backend_tokenizer.to_str()
    merges = [" ".join(pair) for pair in json.loads(model)["model"]["merges"]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 4)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges(merges)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    shapes = {"token_embd": (len(vocabulary), width), "output": (len(vocabulary), width)}
    for layer in range(layers):
        own = {"attn_q": (width, width), "attn_k": (width // 2, width), "attn_v": (width // 2, width)}
        own |= {"attn_output": (width, width), "ffn_gate": (2 * width, width), "ffn_up": (2 * width, width)}
        own |= {"ffn_down": (width, 2 * width), "attn_norm": (width,), "ffn_norm": (width,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    random = np.random.default_rng(seed)
    for name, shape in {**shapes, "output_norm": (width,)}.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        else:
            numbers = random.normal(0, 0.2, shape).astype(np.float32)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
