"""How many tokens one pass may have."""

from __future__ import annotations

import psutil
import torch
from transformers import PreTrainedModel

from fedloom.model.layers import decoder_layers
from fedloom.model.structure import size

# Numbers kept for the backward pass, per token and layer, in units of the hidden and the intermediate
# size; counted on Llama with LoRA on q and v, rounded up.
_HIDDEN_NUMBERS, _INTERMEDIATE_NUMBERS = 20, 5
_USUAL_WIDTH = 4096  # of a model whose configuration gives none
_SHARE_OF_FREE = 0.4
_SHARE_FOR_CACHE = 0.25  # a cache that grows is there twice for a moment
_FEWEST = 256
# More tokens than this gain nothing: a GPU is full, a CPU's products are as fast as they get. But on a CPU a
# small model's many small operations show: where twice as many tokens take no more bytes than this, they take
# 7 % less time (docs/log.md).
_ENOUGH_ON_CUDA, _ENOUGH_ON_CPU = 16384, 2048
_FEW_BYTES = 3 << 29


def auto_wave_tokens(model: PreTrainedModel, sharing: int = 1) -> int:
    """Tokens per pass for which the activations of training fit well into the memory that is free now.

    Args:
        model: The base model.
        sharing: Processes on this machine that will train; those on a CPU share its memory.
    """
    hidden = size(model.config, "hidden_size", _USUAL_WIDTH)
    intermediate = size(model.config, "intermediate_size", 4 * hidden)
    layers = size(model.config, "num_hidden_layers", len(decoder_layers(model)[1]))
    numbers = layers * (_HIDDEN_NUMBERS * hidden + _INTERMEDIATE_NUMBERS * intermediate)
    bytes_per_token = numbers * torch.empty((), dtype=model.dtype).element_size()
    free = _free_bytes(model.device) / (1 if model.device.type == "cuda" else sharing)
    fits = int(_SHARE_OF_FREE * free / bytes_per_token)
    return max(_FEWEST, min(fits, _enough(model.device, bytes_per_token)))


def _enough(device: torch.device, bytes_per_token: int) -> int:
    if device.type == "cuda":
        return _ENOUGH_ON_CUDA
    return min(max(_ENOUGH_ON_CPU, _FEW_BYTES // bytes_per_token), 2 * _ENOUGH_ON_CPU)


def cached_tokens(model: PreTrainedModel) -> int:
    """Tokens whose keys and values fit well into the memory that is free now, in generation."""
    hidden = size(model.config, "hidden_size", _USUAL_WIDTH)
    queries = size(model.config, "num_attention_heads", 1)
    heads = size(model.config, "num_key_value_heads", queries)
    width = size(model.config, "head_dim", max(1, hidden // queries))
    numbers = 2 * size(model.config, "num_hidden_layers", len(decoder_layers(model)[1])) * heads * width
    bytes_per_token = numbers * torch.empty((), dtype=model.dtype).element_size()
    return int(_SHARE_FOR_CACHE * _free_bytes(model.device) / bytes_per_token)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
