"""A tokenizer that prompts by itself as training did: it lies beside an adapter, for whoever loads that.

Training puts questions to a model in a `PromptFormat`. The copy here has a chat template that makes the same
prompts of messages, also where the format is none of the model's own, where a template reads the clock, and
with the beginning-of-text token that the format leaves to the tokenizer.
"""

from __future__ import annotations

import copy
import json
from datetime import date
from typing import TYPE_CHECKING, Any

from fedloom.data.templates import ZEPHYR, PromptFormat, stopped_clock
from fedloom.data.token_ids import encode_prompts
from fedloom.options.run import FormatName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

_QUESTION = "What is 1 + 1?"
_ANSWERED = "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token + '\\n\\n' }}"
_PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' and messages[0]['role'] == 'system' %}"
    "{{ 'Question: ' + message['content'] + '\\nAnswer:' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] }}" + _ANSWERED + "{% endif %}{% endfor %}"
)
_LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '[INST] <<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ ('' if loop.previtem is defined and loop.previtem['role'] == 'system' else '[INST] ')"
    " + message['content'] + ' [/INST]' }}" + _ANSWERED + "{% endif %}{% endfor %}"
)


def carried_tokenizer(
    tokenizer: PreTrainedTokenizerBase, form: PromptFormat, name: FormatName, day: str
) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer whose chat template makes the prompts of a format.

    Args:
        tokenizer: The model's.
        form: The format, of this tokenizer.
        name: The option that the format comes from; see `fedloom.data.templates.prompt_format`.
        day: What a template with a clock takes for today, as ``YYYY-MM-DD``.
    """
    if name == "zephyr":
        template = ZEPHYR
    elif name == "auto" and tokenizer.chat_template is not None:
        template = str(tokenizer.get_chat_template())
        if "strftime_now" in template:
            template = stopped_clock(date.fromisoformat(day)) + template
    else:
        template = _LLAMA_2 if name == "llama-2" else _PLAIN
    prompt = form.render(_QUESTION)
    (ids,) = encode_prompts([prompt], tokenizer)
    lead = ids[: len(ids) - len(tokenizer(prompt, add_special_tokens=False).input_ids)]
    carried = copy.deepcopy(tokenizer)
    # Whoever applies a template reads its text without adding marks: those that training adds stand in it.
    carried.chat_template = f"{{{{ {json.dumps(tokenizer.decode(lead))} }}}}{template}" if lead else template
    return carried


def messages_of(
    carried: PreTrainedTokenizerBase, form: PromptFormat, instruction: str, question: str
) -> list[Message] | None:
    """Returns the messages of which a carried tokenizer makes the prompt of a question; None where none does.

    Args:
        carried: As `carried_tokenizer` returns it.
        form: The format.
        instruction: The format's; "" for none.
        question: What is asked.
    """
    (wanted,) = encode_prompts([form.render(question)], carried)
    merged = f"{instruction}\n\n{question}" if instruction else question
    system = [("system", instruction)] if instruction else []
    for talk in ([*system, ("user", question)], [("user", merged)]):
        for parts in (False, True):
            messages: list[Message] = [
                {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
                for role, text in talk
            ]
            try:
                text = carried.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except Exception:  # a template is a program of the model's: it may raise anything
                continue
            if carried(text, add_special_tokens=False).input_ids == wanted:
                return messages
    return None
