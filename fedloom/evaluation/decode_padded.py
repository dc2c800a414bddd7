"""Greedy decoding of rows of unequal length side by side, each through its own adapter.

What all prompts begin with (virtual tokens, chat header, instruction) can be read once per adapter; the rest
of each prompt is padded on the left:

    shared     [ virtual | shared | ···· rest of the prompt | answer ]
    otherwise  [ ···· virtual | prompt | answer ]

Both are right only for some architectures, `ways.py` finds out for which.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedloom.model.adapters.prompts import virtual_tokens
from fedloom.model.cache import argument_name, roomy_cache
from fedloom.model.stacked import StackedModel

Prompt = Sequence[int]

# Rows are taken out when so many of a pass have ended: taking them out copies the cache of the others.
_SHARE_TO_DROP = 0.2


class PaddedRows:
    """Rows that are read side by side, adapter by adapter."""

    def __init__(
        self,
        model: StackedModel,
        parameters: Mapping[str, Tensor],
        prompts: Sequence[Prompt],
        units: Sequence[int],
        *,
        share: bool,
        positions: int | None = None,
    ):
        """Rows of which nothing has been read.

        Args:
            model: The frozen base with stacked adapters.
            parameters: ``{name: tensor[adapters, *shape]}`` on the model's device.
            prompts: Token ids of each row, adapter by adapter.
            units: Rows of each adapter.
            share: Read what all prompts begin with once per adapter.
            positions: Tokens that the model has positions for; None: for all that may come.
        """
        self._model, self._parameters, self._prompts, self._share = model, parameters, prompts, share
        self._owners = torch.repeat_interleave(torch.arange(len(units)), torch.tensor(units)).to(model.device)
        self._adapters = len(units)
        self._cache = roomy_cache(model.model)
        self._takes = set(inspect.signature(model.model.forward).parameters)
        self._mask: Int[Tensor, "rows tokens"]
        self._position: Int[Tensor, "rows 1"]
        self._positions = positions

    @property
    def rows(self) -> int:
        """How many are still in the pass."""
        return self._owners.shape[0]

    def read(self) -> Float[Tensor, "rows vocabulary"]:
        """Let all rows read their prompts; returns the scores of each row's next token."""
        virtual = virtual_tokens(self._parameters)
        shared = self._shared() if self._share else 0
        before = 0
        if self._share:
            before = self._read_shared(self._prompts[0][:shared], virtual)
            virtual = None
        if before:
            self._cache.batch_select_indices(self._owners)
        rest = [prompt[shared:] for prompt in self._prompts]
        longest = max(map(len, rest))
        pad, device = self._model.layout.pad_id, self._model.device
        pads = [longest - len(unread) for unread in rest]
        ids = torch.tensor(
            [[pad] * n + list(unread) for n, unread in zip(pads, rest, strict=True)], device=device
        )
        columns = longest + (0 if virtual is None else virtual.shape[1])
        mask = [[1] * before + [0] * n + [1] * (columns - n) for n in pads]
        self._mask = torch.tensor(mask, device=device)
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        self._position = positions[:, -1:]
        if virtual is None:
            return self._forward({"input_ids": ids}, positions)
        return self._forward({"inputs_embeds": self._with_virtual(ids, virtual, pads)}, positions)

    def append(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Let each row read one more token; returns the scores of its next one."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], 1)
        self._position = self._position + 1
        if self._positions is not None:  # rows that have ended may have none left, and nobody looks at them
            self._position = self._position.clamp(max=self._positions - 1)
        return self._forward({"input_ids": tokens[:, None]}, self._position)

    def keep(self, places: Int[Tensor, " kept"]) -> None:
        """Go on with some of the rows."""
        self._owners, self._mask, self._position = (
            t[places] for t in (self._owners, self._mask, self._position)
        )
        self._cache.batch_select_indices(places)

    def _shared(self) -> int:
        """Tokens that all prompts begin with; each keeps one of its own, to be answered."""
        most = min(map(len, self._prompts)) - 1
        first = self._prompts[0]
        return next((i for i in range(most) if any(prompt[i] != first[i] for prompt in self._prompts)), most)

    def _read_shared(self, shared: Prompt, virtual: Float[Tensor, "adapters virtual width"] | None) -> int:
        """Each adapter's virtual tokens and the shared ones, into the cache; returns how many."""
        model, adapters = self._model, self._adapters
        ids = torch.tensor([list(shared)] * adapters, dtype=torch.long, device=model.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        before = len(shared)
        if virtual is not None:
            embedded = model.model.get_input_embeddings()(ids)
            inputs = {"inputs_embeds": torch.cat([virtual.to(embedded.dtype), embedded], 1)}
            before += virtual.shape[1]
        if before:
            inputs["attention_mask"] = torch.ones(adapters, before, dtype=torch.long, device=model.device)
            inputs[argument_name(model.trunk)] = self._cache
            with model.as_clients(self._parameters, [1] * adapters):
                model.trunk(**inputs, use_cache=True)
        return before

    def _with_virtual(
        self,
        ids: Int[Tensor, "rows tokens"],
        virtual: Float[Tensor, "adapters virtual width"],
        pads: Sequence[int],
    ) -> Float[Tensor, "rows columns width"]:
        embedded = self._model.model.get_input_embeddings()(ids)
        prefix = virtual.to(embedded.dtype)[self._owners]
        rows = zip(embedded, prefix, pads, strict=True)
        return torch.stack([torch.cat([tokens[:n], prompt, tokens[n:]]) for tokens, prompt, n in rows])

    def _forward(
        self, inputs: dict[str, Tensor], positions: Int[Tensor, "rows new"]
    ) -> Float[Tensor, "rows vocabulary"]:
        model = self._model
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        if "position_ids" in self._takes:
            options["position_ids"] = positions
        options[argument_name(model.model)] = self._cache
        units = torch.bincount(self._owners, minlength=self._adapters).tolist()
        with model.as_clients(self._parameters, units) as plain:
            out = plain(**inputs, attention_mask=self._mask, use_cache=True, **options)
        return out.logits[:, -1]


def write_padded(rows: PaddedRows, ends: Collection[int], longest: Sequence[int]) -> list[list[int]]:
    """Each row's likeliest tokens, one after the other, up to the token that ends its answer.

    Rows that have ended leave the pass and the cache, so it gets cheaper as its answers end.

    Args:
        rows: Rows of which nothing has been read.
        ends: The tokens that end an answer; they are not part of it.
        longest: Each row's longest answer, in tokens.
    """
    answers: list[list[int]] = [[] for _ in range(rows.rows)]
    numbers = list(range(rows.rows))  # of the rows that are still in the pass
    open_ = [True] * rows.rows
    tokens = rows.read().argmax(-1)
    while True:
        for place, (number, token) in enumerate(zip(numbers, tokens.tolist(), strict=True)):
            open_[place] = open_[place] and token not in ends
            if open_[place]:
                answers[number].append(token)
                open_[place] = len(answers[number]) < longest[number]
        going = [place for place, is_open in enumerate(open_) if is_open]
        if not going:
            return answers
        if len(numbers) - len(going) >= _SHARE_TO_DROP * len(numbers):
            numbers, open_ = [numbers[place] for place in going], [True] * len(going)
            kept = torch.tensor(going, device=tokens.device)
            rows.keep(kept)
            tokens = tokens[kept]
        tokens = rows.append(tokens).argmax(-1)
