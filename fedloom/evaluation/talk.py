"""A conversation with a model whose adapters can be exchanged, token by token as it answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from fedloom.data.token_ids import encode_prompts
from fedloom.errors import UserError, is_plain
from fedloom.evaluation.saved_adapters import SavedAdapter

Turns = Sequence[tuple[str, str]]
"""Roles, `user` and `assistant`, and what they said."""


class Adapters:
    """A base through PEFT, with one of several adapters, or with none.

    An adapter is read when it is first asked for.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        """Put no adapter into the base yet."""
        self._base = base
        self._model: PeftModel | None = None
        self._names: dict[str, str] = {}
        self._active: str | None = None
        self.device = base.device
        self.virtual = 0  # tokens before every text

    def use(self, adapter: SavedAdapter | None) -> None:
        """Answer with this adapter from now on; None: the base alone."""
        if adapter is None:
            self._active, self.virtual = None, 0
            return
        folder = str(adapter.folder)
        if folder not in self._names:
            name = f"adapter-{len(self._names)}"  # PEFT's own names take no dots
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT's
                if self._model is None:
                    self._model = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
                else:
                    self._model.load_adapter(folder, adapter_name=name)
            self._names[folder] = name
        assert self._model is not None
        self._active = self._names[folder]
        self._model.set_adapter(self._active)
        self._model.eval()
        self.virtual = getattr(self._model.peft_config[self._active], "num_virtual_tokens", None) or 0

    @torch.no_grad()
    def write(self, ids: torch.Tensor, settings: GenerationConfig, streamer: TextStreamer) -> None:
        """Continue a prompt, ``[1, tokens]``; the streamer is given every token as it comes."""
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "generation_config": settings,
            "streamer": streamer,
        }
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of positions, PEFT's
            if self._model is None:
                self._base.generate(**given)
            elif self._active is None:
                with self._model.disable_adapter():
                    self._model.generate(**given)
            else:
                self._model.generate(**given)


class Streamed(TextStreamer):
    """Hands on an answer in readable pieces, and keeps the whole of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
        """Skip the prompt and special tokens."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say, self.text = say, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with text that further tokens will not change."""
        # What a model writes must not move the cursor of a terminal, or colour it.
        harmless = "".join(c for c in text if c in "\n\t" or is_plain(c))
        self.text += harmless
        self._say(harmless)


@dataclass(frozen=True)
class Talk:
    """How a conversation is put to a model and answered.

    Attributes:
        tokenizer: The model's.
        render: Makes the prompt of turns, the last of which is a question.
        remembers: Whether a prompt holds earlier turns; without a chat template there is no form for them.
        ends: Tokens at which an answer ends.
        temperature: 0: always the likeliest token.
        max_new_tokens: Longest answer.
        room: Positions that the model has; None where there is no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    render: Callable[[Turns], str]
    remembers: bool
    ends: Iterable[int]
    temperature: float
    max_new_tokens: int
    room: int | None

    def prompt(self, turns: list[tuple[str, str]], virtual: int) -> tuple[torch.Tensor, int]:
        """The ids of a prompt, ``[1, tokens]``, and how many tokens may follow.

        Where the conversation has become longer than the model reads, its oldest questions and their answers
        are taken out of `turns`.

        Raises:
            UserError: The last question alone is too long.
        """
        while True:
            (ids,) = encode_prompts([self.render(turns)], self.tokenizer)
            left = self.max_new_tokens if self.room is None else self.room - virtual - len(ids)
            if left >= self.max_new_tokens or (len(turns) == 1 and left > 0):
                return torch.tensor([ids]), min(left, self.max_new_tokens)
            if len(turns) == 1:
                raise UserError(
                    f"a question of {len(ids)} tokens leaves no room for an answer: the model reads "
                    f"{self.room} tokens; ask a shorter one"
                )
            del turns[:2]

    def answer(self, adapters: Adapters, turns: list[tuple[str, str]], streamed: Streamed) -> None:
        """Let the model answer the last question.

        Raises:
            UserError: It is too long.
        """
        ids, longest = self.prompt(turns, adapters.virtual)
        drawn = {"temperature": self.temperature, "top_k": 0, "top_p": 1.0} if self.temperature else {}
        settings = GenerationConfig(
            max_new_tokens=longest,
            do_sample=self.temperature > 0,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.tokenizer.pad_token_id,
            repetition_penalty=1.0,
            # With virtual tokens PEFT's generation from a cache gives other answers than the model has.
            use_cache=adapters.virtual == 0,
            **drawn,
        )
        adapters.write(ids.to(adapters.device), settings, streamed)
