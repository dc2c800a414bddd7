"""BigBird's two kinds of attention, each for the texts that it is for.

Block-sparse attention (Zaheer et al., 2020, arXiv:2007.14062) needs a text of some length; for a shorter one
transformers turns a model to full attention for good, so that what it says of a long text would depend on
whether it has ever seen a short one. Here every pass is run as a fresh model would run it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_SHARED = ("query", "key", "value")


class BlockSparse:
    """The attention layers of a model whose configuration asks for block-sparse attention; else none."""

    def __init__(self, model: nn.Module):
        self._holders: list[Any] = []
        self._layers: list[tuple[Any, nn.Module, nn.Module]] = []
        trunks: list[Any] = [m for m in model.modules() if type(m).__name__ == "BigBirdModel"]
        for trunk in trunks:
            if trunk.config.attention_type != "block_sparse":
                continue
            attentions: list[Any] = [m for m in trunk.modules() if type(m).__name__ == "BigBirdAttention"]
            self._holders += [m for m in trunk.modules() if hasattr(m, "attention_type")]
            kinds: dict[str, list[nn.Module]] = {}
            for kind in ("block_sparse", "original_full"):
                trunk.set_attention_type(kind)
                kinds[kind] = [attention.self for attention in attentions]
            self._layers += list(zip(attentions, kinds["block_sparse"], kinds["original_full"], strict=True))

    @contextmanager
    def frozen(self, sparse: bool) -> Iterator[None]:
        """Let attention be block-sparse for the length of the block, where ``sparse`` says so."""
        self._take(sparse)
        try:
            yield
        finally:
            self._take(False)  # a head that runs on single tokens would turn the model to full attention

    def _take(self, sparse: bool) -> None:
        for holder in self._holders:
            holder.attention_type = "block_sparse" if sparse else "original_full"
        for attention, of_blocks, full in self._layers:
            for name in _SHARED:  # adapters have been put into the full one
                setattr(of_blocks, name, getattr(full, name))
            attention.self = of_blocks if sparse else full
