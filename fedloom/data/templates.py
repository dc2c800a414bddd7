"""Prompts in the format that a model was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedloom.config import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Renderer = Callable[[str], str]


def prompt_renderer(model_name: str, tokenizer: PreTrainedTokenizerBase, instruction: str) -> Renderer:
    """Returns the function that makes the prompt of a question.

    Llama-2 chat, TinyLlama chat, Zephyr and BLOOM have their formats here, known by the last part of the
    model's name. Any other model gets its tokenizer's chat template, and without one the plain
    format. A prompt ends where the answer begins, and holds the beginning-of-text token only where a chat
    template wrote it.

    Args:
        model_name: The model's name on the hub, or its folder or file.
        tokenizer: The model's tokenizer.
        instruction: What to do with the questions; a system message where the format has such.
    """
    name = re.split(r"[/\\]", model_name.rstrip("/\\"))[-1].lower()
    if "llama-2" in name and "chat" in name:
        return lambda question: f"[INST] <<SYS>>\n{instruction}\n<</SYS>>\n\n{question} [/INST]"
    if "zephyr" in name or ("tinyllama" in name and "chat" in name):
        end = tokenizer.eos_token or "</s>"
        return lambda question: f"<|system|>\n{instruction}{end}\n<|user|>\n{question}{end}\n<|assistant|>\n"
    if "bloom" not in name and tokenizer.chat_template is not None:
        return _chat_renderer(tokenizer, instruction)
    return lambda question: f"{instruction}\n\nQuestion: {question}\nAnswer:"


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token id that ends an answer: learnt in training, the sign to stop in generation.

    For a tokenizer with a chat template it is the special token that closes the assistant's turn there (some
    models have an end-of-text token that no turn ends with), otherwise the end-of-text token.

    Raises:
        UserError: If the tokenizer has neither.
    """
    if tokenizer.chat_template is not None:
        mark = "The answer."
        talk = [{"role": "user", "content": "The question."}, {"role": "assistant", "content": mark}]
        after = _apply_template(tokenizer, talk, add_generation_prompt=False).rpartition(mark)[2]
        # Templates go on after the turn, with a line break for one: the first special token counts.
        for token in tokenizer(after, add_special_tokens=False).input_ids:
            if token in tokenizer.all_special_ids:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the model's tokenizer has no end-of-text token (eos_token), which ends an answer; set one."
        )
    return int(tokenizer.eos_token_id)


def _chat_renderer(tokenizer: PreTrainedTokenizerBase, instruction: str) -> Renderer:
    with_system = _takes_system_message(tokenizer, instruction)

    def render(question: str) -> str:
        if with_system:
            talk = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        else:
            talk = [{"role": "user", "content": f"{instruction}\n\n{question}"}]
        return _apply_template(tokenizer, talk, add_generation_prompt=True)

    return render


def _takes_system_message(tokenizer: PreTrainedTokenizerBase, instruction: str) -> bool:
    """Tries it: some templates refuse a system message with an error, some leave it out without a word."""
    from jinja2 import TemplateError

    talk = [{"role": "system", "content": instruction}, {"role": "user", "content": "The question."}]
    try:
        return instruction in _apply_template(tokenizer, talk, add_generation_prompt=True)
    except TemplateError:
        return False


def _apply_template(tokenizer: PreTrainedTokenizerBase, talk: list[dict[str, Any]], **options: bool) -> str:
    return str(tokenizer.apply_chat_template(talk, tokenize=False, **options))
