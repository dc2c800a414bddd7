"""How many tokens one pass may have."""

from __future__ import annotations

import psutil
import torch
from transformers import PreTrainedModel

# Numbers kept for the backward pass, per token and layer, in units of the hidden and the intermediate
# size; counted on Llama with LoRA on q and v, rounded up.
_HIDDEN_NUMBERS, _INTERMEDIATE_NUMBERS = 20, 5
_SHARE_OF_FREE = 0.4
_FEWEST = 256
# More than this gains nothing: a CPU's products are as fast as they get, a GPU is full.
_MOST = {"cpu": 2048, "cuda": 16384}


def auto_wave_tokens(model: PreTrainedModel) -> int:
    """Tokens per pass for which the activations of training fit well into the memory that is free now."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    numbers = config.num_hidden_layers * (_HIDDEN_NUMBERS * hidden + _INTERMEDIATE_NUMBERS * intermediate)
    bytes_per_token = numbers * torch.empty((), dtype=model.dtype).element_size()
    fits = int(_SHARE_OF_FREE * _free_bytes(model.device) / bytes_per_token)
    return max(_FEWEST, min(fits, _MOST.get(model.device.type, _MOST["cpu"])))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
