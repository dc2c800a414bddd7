"""What adapters write: greedy answers of many adapters in one pass, each row through its own adapter.

A pass holds rows of several adapters, adapter by adapter. What all its prompts begin with (virtual tokens,
chat header, instruction) is computed once per adapter, the rest of each prompt is padded on the left:

    row   [ virtual | shared | ···· rest of the prompt | answer ]

Rows that have ended leave the batch and the cache, so a pass gets cheaper as its answers end.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedloom.model.adapters.prompts import virtual_tokens
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.cache import roomy_cache
from fedloom.model.memory import cached_tokens
from fedloom.model.stacked import StackedModel

Prompt = Sequence[int]

# Rows are taken out when so many of a pass have ended: taking them out copies the cache of the others.
_SHARE_TO_DROP = 0.2


@torch.no_grad()
def generate(
    model: StackedModel,
    bank: AdapterBank,
    prompts: Sequence[Sequence[Prompt]],
    *,
    end: int,
    max_new_tokens: int,
    batch_size: int,
    used: Row | None = None,
) -> list[list[list[int]]]:
    """Greedy continuations of each adapter's own prompts.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters; with no tensors at all, the base itself writes.
        prompts: For each adapter its prompts, as token ids.
        end: The token that ends an answer.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts per pass and adapter.
        used: Adapter parameters that are the same for all and not in the bank.

    Returns:
        For each adapter and prompt the tokens written, without the end token.
    """
    written: list[list[list[int]]] = [[[] for _ in own] for own in prompts]
    room = cached_tokens(model.model)
    if model.layout.virtual and _exceeds_window(model, [p for own in prompts for p in own], max_new_tokens):
        batch_size, room = 1, 0  # no pads between virtual tokens and a prompt
    for first, chosen in _passes(prompts, batch_size, max_new_tokens, room):
        rows = slice(first, first + len(chosen))
        parameters = {name: t[rows].to(model.device) for name, t in bank.tensors.items()}
        for name, t in (used or {}).items():
            parameters[name] = t.to(model.device).expand(len(chosen), *t.shape)
        places = [(first + k, i) for k, own in enumerate(chosen) for i in own]
        asked = [prompts[adapter][i] for adapter, i in places]
        answers = _Pass(model, parameters, asked, [len(own) for own in chosen], end).write(max_new_tokens)
        for (adapter, i), answer in zip(places, answers, strict=True):
            written[adapter][i] = answer
    return written


def _passes(
    prompts: Sequence[Sequence[Prompt]], batch_size: int, max_new_tokens: int, room: int
) -> Iterator[tuple[int, list[list[int]]]]:
    """Which prompts go into one pass: of like length, ``batch_size`` of each adapter, within the room.

    Yields:
        The first adapter of the pass, and for each adapter from there on the numbers of its prompts.
    """
    order = [sorted(range(len(own)), key=[len(prompt) for prompt in own].__getitem__) for own in prompts]
    for start in range(0, max(map(len, prompts)), batch_size):
        batch = [own[start : start + batch_size] for own in order]
        longest = max(len(prompts[k][i]) for k, own in enumerate(batch) for i in own)
        adapters = max(1, room // (batch_size * (longest + max_new_tokens)))
        for first in range(0, len(batch), adapters):
            if any(batch[first : first + adapters]):
                yield first, batch[first : first + adapters]


class _Pass:
    """Rows that are answered side by side, adapter by adapter."""

    def __init__(
        self,
        model: StackedModel,
        parameters: Mapping[str, Tensor],
        prompts: Sequence[Prompt],
        units: Sequence[int],
        end: int,
    ):
        self.model, self.parameters, self.end = model, parameters, end
        self.prompts = prompts
        self.owners = torch.repeat_interleave(torch.arange(len(units)), torch.tensor(units)).to(model.device)
        self.clients = len(units)
        self.cache = roomy_cache(model.model)
        self.mask: Int[Tensor, "rows tokens"]
        self.position: Int[Tensor, "rows 1"]
        self.takes = set(inspect.signature(model.model.forward).parameters)

    def write(self, max_new_tokens: int) -> list[list[int]]:
        """The answers, without the end token."""
        answers: list[list[int]] = [[] for _ in self.prompts]
        rows = list(range(len(self.prompts)))
        open_ = [True] * len(rows)
        tokens = self._read(max_new_tokens)
        for left in range(max_new_tokens - 1, -1, -1):
            for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                open_[place] = open_[place] and token != self.end
                if open_[place]:
                    answers[row].append(token)
            going = [place for place, is_open in enumerate(open_) if is_open]
            if not going or not left:
                break
            if len(rows) - len(going) >= _SHARE_TO_DROP * len(rows):
                rows, open_ = [rows[place] for place in going], [True] * len(going)
                tokens = self._keep(torch.tensor(going, device=self.model.device), tokens)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], 1)
            self.position = self.position + 1
            tokens = self._next(tokens[:, None], self.position)
        return answers

    def _keep(self, going: Int[Tensor, " kept"], tokens: Int[Tensor, " rows"]) -> Int[Tensor, " kept"]:
        self.owners, self.mask, self.position = (t[going] for t in (self.owners, self.mask, self.position))
        self.cache.batch_select_indices(going)
        return tokens[going]

    def _read(self, max_new_tokens: int) -> Int[Tensor, " rows"]:
        """Let all rows read their prompts; returns the first token of each answer."""
        shared = self._shared(max_new_tokens)
        before = self._read_shared(self.prompts[0][:shared])
        if before:
            self.cache.batch_select_indices(self.owners)
        rest = [prompt[shared:] for prompt in self.prompts]
        longest = max(map(len, rest))
        pad, device = self.model.layout.pad_id, self.model.device
        pads = [longest - len(own) for own in rest]
        ids = [[pad] * n + list(own) for n, own in zip(pads, rest, strict=True)]
        mask = [[1] * before + [0] * n + [1] * (longest - n) for n in pads]
        self.mask = torch.tensor(mask, device=device)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        self.position = positions[:, -1:]
        return self._next(torch.tensor(ids, device=device), positions)

    def _shared(self, max_new_tokens: int) -> int:
        """Tokens that all prompts begin with; each keeps one of its own, to be answered."""
        # The pads behind shared tokens would push these out of a window too early.
        if _exceeds_window(self.model, self.prompts, max_new_tokens):
            return 0
        most = min(map(len, self.prompts)) - 1
        first = self.prompts[0]
        return next((i for i in range(most) if any(own[i] != first[i] for own in self.prompts)), most)

    def _read_shared(self, shared: Prompt) -> int:
        """Each adapter's virtual tokens and the shared ones, into the cache; returns how many."""
        model, clients = self.model, self.clients
        ids = torch.tensor([list(shared)] * clients, dtype=torch.long, device=model.device)
        virtual = virtual_tokens(self.parameters)
        inputs: dict[str, Any] = {"input_ids": ids}
        before = len(shared)
        if virtual is not None:
            embedded = model.model.get_input_embeddings()(ids)
            inputs = {"inputs_embeds": torch.cat([virtual.to(embedded.dtype), embedded], 1)}
            before += virtual.shape[1]
        if before:
            mask = torch.ones(clients, before, dtype=torch.long, device=model.device)
            with model.as_clients(self.parameters, [1] * clients):
                model.trunk(**inputs, attention_mask=mask, past_key_values=self.cache, use_cache=True)
        return before

    def _next(self, ids: Int[Tensor, "rows new"], positions: Int[Tensor, "rows new"]) -> Int[Tensor, " rows"]:
        """Read new tokens; returns each row's likeliest next one."""
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self.takes else {}
        if "position_ids" in self.takes:
            options["position_ids"] = positions
        units = torch.bincount(self.owners, minlength=self.clients).tolist()
        with self.model.as_clients(self.parameters, units) as plain:
            out = plain(
                input_ids=ids,
                attention_mask=self.mask,
                past_key_values=self.cache,
                use_cache=True,
                **options,
            )
        return out.logits[:, -1].argmax(-1)


def _exceeds_window(model: StackedModel, prompts: Sequence[Prompt], max_new_tokens: int) -> bool:
    """Whether some of the model's layers cannot see all of a prompt and its answer."""
    config = model.model.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    longest = model.layout.virtual + max(map(len, prompts)) + max_new_tokens
    return any(window is not None and longest > window for window in windows)
