"""Prompts in the format that a model was trained on: that of its tokenizer's chat template."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from fedloom.data.conversations import Piece, TemplateTalk, llama_2, plain, special_tokens
from fedloom.data.example import Turn
from fedloom.errors import UserError
from fedloom.options.run import PROMPT_DATE, FormatName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Quotes, a line break, markup, an accent: a template that prints the list of parts itself, escapes text, or
# picks characters out of it, does not give it back as it is.
_QUESTION = 'It\'s "1 < 2" & so on.\nIs it, René?'
_ANSWER = "The answer."

ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{{ message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The chat template that Zephyr and TinyLlama chat were published with."""


@dataclass(frozen=True)
class PromptFormat:
    """How a question is put to a model.

    Attributes:
        render: Makes the prompt of a question. It ends where the answer begins, and holds the
            beginning-of-text token only where a chat template wrote it.
        end: The token id that ends an answer: what training teaches to write behind it.
        pieces: Makes the pieces of a conversation, in order; together they are what the model reads.
    """

    render: Callable[[str], str]
    end: int
    pieces: Callable[[Sequence[Turn]], list[Piece]] = field(default=lambda turns: [])


def prompt_format(
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    name: FormatName = "auto",
    day: str = PROMPT_DATE,
) -> PromptFormat:
    """Returns the format of a model's prompts.

    It depends on the tokenizer and these arguments alone, so that a model that is moved or renamed is asked
    as it was in training.

    Args:
        tokenizer: The model's tokenizer.
        instruction: What to do with the questions; a system message where the format has such; "" for none.
        name: "auto": the tokenizer's chat template, without one as "plain"; "plain": the instruction and the
            question under each other; "llama-2", "zephyr": those of Llama 2 chat and of TinyLlama
            chat, for copies without a template.
        day: What a template with a clock takes for today, as ``YYYY-MM-DD``.

    Raises:
        UserError: If the template fails, or leaves out the question or the instruction; if there is no token
            to end an answer.
    """
    if name == "zephyr":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = ZEPHYR
    if name in ("auto", "zephyr") and tokenizer.chat_template is not None:
        template = _Template(tokenizer, date.fromisoformat(day))
        end = template.end_of_turn()
        talk = TemplateTalk(template.apply, tokenizer, end, instruction, _WAY_OUT)
        return PromptFormat(
            template.renderer(instruction), end_of_text(tokenizer) if end is None else end, talk.pieces
        )
    end = end_of_text(tokenizer)
    if name == "llama-2":
        said = f"<<SYS>>\n{instruction}\n<</SYS>>\n\n" if instruction else ""
        return PromptFormat(
            lambda question: f"[INST] {said}{question} [/INST]", end, partial(llama_2, tokenizer, instruction)
        )
    # Without an instruction a prompt stands as it is, for it may be one already.
    wrap = f"{instruction}\n\nQuestion: {{}}\nAnswer:" if instruction else "{}"
    before, after = wrap.split("{}")
    return PromptFormat(
        lambda question: f"{before}{question}{after}", end, partial(plain, tokenizer, instruction)
    )


def instruction_of(task_instruction: str, system_prompt: str) -> str:
    """Returns the instruction that stands in prompts; "" for none.

    Args:
        task_instruction: The task's.
        system_prompt: The option: "auto" for the task's, "none" for none, or a text.
    """
    return task_instruction if system_prompt == "auto" else "" if system_prompt == "none" else system_prompt


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token id that ends a text.

    Raises:
        UserError: If the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the model's tokenizer has no end-of-text token (eos_token), which ends an answer; set one."
        )
    return int(tokenizer.eos_token_id)


class _Template:
    """A tokenizer's chat template on one day."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: date):
        self.tokenizer, self.day = tokenizer, day

    def renderer(self, instruction: str) -> Callable[[str], str]:
        """Finds out by trial how the template takes its messages.

        Some refuse a system message, some leave it out without a word; some want a message's content as text,
        some (those of models that see images too) as a list of parts.
        """
        failed, left_out = "", ""
        for with_system in (True, False):
            for parts in (False, True):

                def render(question: str, with_system: bool = with_system, parts: bool = parts) -> str:
                    user = question if with_system or not instruction else f"{instruction}\n\n{question}"
                    system = [("system", instruction)] if with_system and instruction else []
                    return self.apply([*system, ("user", user)], parts, add_generation_prompt=True)

                try:
                    prompt = render(_QUESTION)
                except Exception as error:  # the template is a program of the model's: it may raise anything
                    failed = failed or _first_line(error)
                    continue
                if _QUESTION in prompt and instruction in prompt:
                    return lambda question: self._checked(render, question)
                left_out = "the instruction" if _QUESTION in prompt else left_out or "the question"
        what = f"leaves out or changes {left_out}" if left_out else f"fails: {failed}"
        raise UserError(f"the chat template of the model's tokenizer {what}. {_WAY_OUT}")

    def _checked(self, render: Callable[[str], str], question: str) -> str:
        """What a template does may depend on the question."""
        try:
            prompt = render(question)
        except Exception as error:
            raise UserError(
                f"the chat template of the model's tokenizer fails for the question {question[:60]!r}: "
                f"{_first_line(error)}. {_WAY_OUT}"
            ) from error
        if question.strip() not in prompt:
            raise UserError(
                f"the chat template of the model's tokenizer changes the question {question[:60]!r}. "
                f"{_WAY_OUT}"
            )
        return prompt

    def end_of_turn(self) -> int | None:
        """Returns the special token that closes the assistant's turn, if one does.

        Some models have an end-of-text token that no turn ends with.
        """
        special = special_tokens(self.tokenizer)
        talk = [("user", "The question."), ("assistant", _ANSWER)]
        for parts in (False, True):
            try:
                text = self.apply(talk, parts, add_generation_prompt=False)
            except Exception:  # as above; such a template is for prompts alone
                continue
            _, answer, after = text.rpartition(_ANSWER)
            # Templates go on after the turn, with a line break for one: the first special token counts.
            for token in self.tokenizer(after, add_special_tokens=False).input_ids if answer else ():
                if token in special:
                    return int(token)
        return None

    def apply(
        self, talk: Sequence[tuple[str, str]], parts: bool, template: str | None = None, **options: bool
    ) -> str:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
            for role, text in talk
        ]
        template = self.tokenizer.get_chat_template() if template is None else template
        if "strftime_now" in template:
            template = stopped_clock(self.day) + template
        return str(
            self.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        )


def stopped_clock(day: date) -> str:
    """Returns a macro, to stand before a template, that hides transformers' function of the same name.

    That one reads the clock. A function cannot be handed to a template, which gets plain data alone, so the
    macro replaces the codes of `strftime`.
    """
    now = datetime(day.year, day.month, day.day)
    codes = [f"%{letter}" for letter in string.ascii_letters] + [f"%-{letter}" for letter in "dejmyHIMSUW"]
    percent = "\ue000"  # in the place of %% until all codes are gone
    pairs = [("%%", percent), *((code, now.strftime(code)) for code in codes), (percent, "%")]
    filters = "".join(f"|replace({json.dumps(code)}, {json.dumps(value)})" for code, value in pairs)
    # The line break goes with the block, so that what follows stands at the beginning of a line as before.
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n"


_WAY_OUT = "Mend chat_template in the model's folder, or choose --prompt_format plain."


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().partition(chr(10))[0]} ({type(error).__name__})"


def dialogue(
    tokenizer: PreTrainedTokenizerBase, instruction: str, day: str = PROMPT_DATE
) -> Callable[[Sequence[tuple[str, str]]], str]:
    """Returns what makes the prompt of a conversation, by the tokenizer's chat template.

    With one question it is the prompt that `prompt_format` makes of it.

    Args:
        tokenizer: The model's tokenizer, which has a chat template.
        instruction: A system message where the format has such, else before the first question; "" for none.
        day: What a template with a clock takes for today.

    Raises:
        UserError: If the template fails, or leaves out the question or the instruction.
    """
    template = _Template(tokenizer, date.fromisoformat(day))
    alone = template.renderer(instruction) if instruction else None
    for with_system in (True, False):
        for parts in (False, True):

            def render(
                turns: Sequence[tuple[str, str]], with_system: bool = with_system, parts: bool = parts
            ) -> str:
                if instruction and with_system:
                    turns = [("system", instruction), *turns]
                elif instruction:
                    (role, first), *rest = turns
                    turns = [(role, f"{instruction}\n\n{first}"), *rest]
                return template.apply(turns, parts, add_generation_prompt=True)

            try:
                prompt = render([("user", _QUESTION)])
                render([("user", _QUESTION), ("assistant", _ANSWER), ("user", _QUESTION)])
            except Exception:  # the template is a program of the model's: it may raise anything
                continue
            if prompt == alone(_QUESTION) if alone else _QUESTION in prompt:
                return render
    raise UserError(f"the chat template of the model's tokenizer takes no second question. {_WAY_OUT}")
