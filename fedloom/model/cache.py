"""Keys and values of the tokens written so far, in memory that has room for those to come."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 32  # tokens, at least; a longer cache gets room for half its length


class RoomyLayer(DynamicLayer):
    """A layer of transformers' cache that does not copy all of itself for every new token."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty; called by transformers."""
        super().lazy_initialization(key_states, value_states)
        self._held = [key_states[:, :, :0], value_states[:, :, :0]]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Put new tokens behind those held; returns all, ``[rows, heads, tokens, width]``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._held[0].shape[-2]:
            room = max(_ROOM, end // 2)
            self._held = [
                torch.cat([held[:, :, :start], new, new.new_empty(*new.shape[:2], room, new.shape[3])], 2)
                for held, new in zip(self._held, (key_states, value_states), strict=True)
            ]
        else:
            for held, new in zip(self._held, (key_states, value_states), strict=True):
                held[:, :, start:end] = new
        self.keys, self.values = (held[:, :, :end] for held in self._held)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, or repeat them, in the order given."""
        tokens = self.get_seq_length()
        if tokens == 0:
            return
        self._held = [held.index_select(0, indices) for held in self._held]
        self.keys, self.values = (held[:, :, :tokens] for held in self._held)


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for a model, with room where a layer keeps every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_every_token(cache: DynamicCache) -> bool:
    """Whether an empty cache is made for keys and values alone, each token's its own.

    Then rows can be padded, repeated and taken out. States that are carried from token to token have read the
    pads, and a convolution's or an index's are not always selected with the rest.
    """
    kinds = (RoomyLayer, DynamicSlidingWindowLayer)
    # What has no start holds nothing: a place for a layer without attention, or with another one's keys.
    return all(type(layer) in kinds or not hasattr(layer, "lazy_initialization") for layer in cache.layers)


def argument_name(module: nn.Module) -> str:
    """What a ``forward`` calls its cache, which differs between versions of transformers."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
