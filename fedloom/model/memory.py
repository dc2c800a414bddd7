"""How many tokens one pass may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psutil
import torch
from transformers import PreTrainedModel

from fedloom.model.cache import argument_name
from fedloom.model.layers import decoder_layers
from fedloom.model.structure import size

# Numbers kept for the backward pass, per token and layer, in units of the hidden and the intermediate
# size; counted on Llama with LoRA on q and v, rounded up.
_HIDDEN_NUMBERS, _INTERMEDIATE_NUMBERS = 20, 5
_USUAL_WIDTH = 4096  # of a model whose configuration gives none
_SHARE_OF_FREE = 0.4
_SHARE_FOR_CACHE = 0.25  # a cache that grows is there twice for a moment
_FEWEST = 256
# More tokens than this gain nothing. Of a small model a GPU has computed a pass in less time than it takes to
# start its operations, so that two passes take twice as long as one (docs/log.md). A CPU's products are as
# fast as they get; but its many small operations show: where twice as many tokens take no more bytes than
# this, they take 7 % less time.
_ENOUGH_ON_CUDA, _ENOUGH_ON_CPU = 65536, 2048
_FEW_BYTES = 3 << 29


def auto_wave_tokens(model: PreTrainedModel, sharing: int = 1, jobs: int = 1) -> int:
    """Tokens per pass for which the activations of training fit well into the memory that is free now.

    Args:
        model: The base model.
        sharing: Processes on this machine that will train; those on a CPU share its memory.
        jobs: Runs beside each other, which share a GPU's memory, too.
    """
    hidden = size(model.config, "hidden_size", _USUAL_WIDTH)
    intermediate = size(model.config, "intermediate_size", 4 * hidden)
    layers = size(model.config, "num_hidden_layers", len(decoder_layers(model)[1]))
    numbers = layers * (_HIDDEN_NUMBERS * hidden + _INTERMEDIATE_NUMBERS * intermediate)
    bytes_per_token = numbers * torch.empty((), dtype=model.dtype).element_size()
    free = free_bytes(model.device) / (jobs if model.device.type == "cuda" else jobs * sharing)
    fits = int(_SHARE_OF_FREE * free / bytes_per_token)
    return max(_FEWEST, min(fits, _enough(model.device, bytes_per_token)))


def _enough(device: torch.device, bytes_per_token: int) -> int:
    if device.type == "cuda":
        return _ENOUGH_ON_CUDA
    return min(max(_ENOUGH_ON_CPU, _FEW_BYTES // bytes_per_token), 2 * _ENOUGH_ON_CPU)


class CacheRoom(NamedTuple):
    """How many rows can be written side by side.

    Attributes:
        free: Bytes that caches may take.
        row: Bytes of a row, however long it is: states that are carried along.
        token: Bytes of each token of a row: keys and values.
    """

    free: float
    row: int
    token: int

    def rows(self, tokens: int) -> int:
        """Rows of this many tokens that fit."""
        return int(self.free / (self.row + tokens * self.token))


@torch.no_grad()
def cache_room(model: PreTrainedModel) -> CacheRoom:
    """What the cache of generation takes, and what is free for it now.

    Measured on what the model itself keeps of a few tokens: its config may call things by any name, and what
    is kept (latent or expanded keys, states, convolutions) differs by architecture.
    """
    few, more = (_kept_bytes(model, tokens) for tokens in (4, 5))
    token = more - few
    # Without a cache all tokens are read again for each new one.
    width = model.get_input_embeddings().weight.shape[-1] * model.dtype.itemsize
    return CacheRoom(_SHARE_FOR_CACHE * free_bytes(model.device), max(0, few - 4 * token), max(token, width))


def _kept_bytes(model: PreTrainedModel, tokens: int) -> int:
    out = model(input_ids=torch.ones(1, tokens, dtype=torch.long, device=model.device), use_cache=True)
    cache = getattr(out, argument_name(model), None)
    return sum(t.numel() * t.element_size() for t in _tensors_in(cache))


def _tensors_in(held: object) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, list | tuple):
        for each in held:
            yield from _tensors_in(each)
    elif isinstance(held, dict):
        yield from _tensors_in(list(held.values()))
    elif type(held).__module__.startswith("transformers"):
        yield from _tensors_in(list(vars(held).values()))


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free now, of a GPU or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
