"""Conversations in the forms of chat templates: every answer is learned, and nothing else."""

import pytest
from chat_templates import (
    IGNORES,
    LLAMA_2_TEMPLATE,
    PARTS,
    RAISES_FOR_TEXT,
    REFUSES,
    TURNS,
    ZEPHYR_TEMPLATE,
    tokenizer_with,
)
from tiny import CHAT_TEMPLATE, tiny_tokenizer

from fedloom.data.encode import encode
from fedloom.data.example import Turn
from fedloom.data.formats import FORMATS, conversation
from fedloom.data.templates import prompt_format
from fedloom.errors import UserError

TALK = (
    Turn("system", "Be brief."),
    Turn("user", "Which town? Oslo?"),
    Turn("assistant", "Oslo"),  # stands in the question too
    Turn("user", "Oslo again?"),
    Turn("assistant", "Yes, Oslo.\nIt's <b>Oslo</b> & so on."),
)
# As Qwen 3 does it: an answer loses its thinking but for the last, which gets an empty one where it has none.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% set answer = message['content'].split('</think>')[-1].strip() %}"
    "{% if loop.last %}<think>\n{{ message['content'].split('</think>')[0].replace('<think>', '').strip() "
    "if '</think>' in message['content'] }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% endfor %}"
) + TURNS
ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}<|im_start|>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
MARKED = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}<|im_end|>\n",
    "{% if message['role'] == 'assistant' %}{%- generation -%}{{ message['content'] }}<|im_end|>"
    "{%- endgeneration -%}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n",
)
NEVER_CLOSED = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FIRST, LAST = "Oslo", TALK[-1].text


def sequence(template, turns=TALK, instruction="", name="auto", max_length=10_000):
    tokenizer = tokenizer_with(template)
    form = prompt_format(tokenizer, instruction, name)
    (tokens,), _ = encode([conversation(turns)], tokenizer, form, max_length)
    return tokens, tokenizer


def learned(*arguments, **options):
    tokens, tokenizer = sequence(*arguments, **options)
    return [tokenizer.decode(tokens.ids[first:end]) for first, end in tokens.spans]


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHAT_TEMPLATE, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (TURNS, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),  # has no prompt for an answer
        (LLAMA_2_TEMPLATE, [f" {FIRST} <|im_end|>", f" {LAST} <|im_end|>"]),
        (ZEPHYR_TEMPLATE, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (REFUSES, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (IGNORES, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (PARTS, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (RAISES_FOR_TEXT, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (ALTERNATES, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (THINKING, [f"{FIRST}<|im_end|>", f"<think>\n\n</think>\n\n{LAST}<|im_end|>"]),
        (MARKED, [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        (NEVER_CLOSED, [f" {FIRST}", f" {LAST}<|im_end|>"]),  # the text's end closes the last
    ],
)
def test_every_answer_is_learned_and_nothing_else(template, answers):
    assert [text.lstrip("\n") for text in learned(template)] == answers
    tokens, tokenizer = sequence(template)
    said = tokenizer.decode(tokens.ids)
    assert "Be brief." in said and "Which town? Oslo?" in said and tokens.spans[-1][1] == len(tokens.ids)
    # What the model reads is what the template makes of the conversation, up to the last answer's end.
    if template not in (REFUSES, IGNORES, ALTERNATES, PARTS, RAISES_FOR_TEXT, NEVER_CLOSED):
        messages = [{"role": turn.role, "content": turn.text} for turn in TALK]
        assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(said)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_2_TEMPLATE, THINKING, MARKED])
def test_an_answer_is_learned_behind_the_prompt_that_generation_begins_from(template):
    tokens, tokenizer = sequence(template, TALK[1:])
    messages = [{"role": turn.role, "content": turn.text} for turn in TALK[1:]]
    for (first, _), length in zip(tokens.spans, (1, 3), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:length], add_generation_prompt=True, tokenize=False)
        if length == 1 or template is not THINKING:
            assert tokenizer.decode(tokens.ids[:first]) == prompt


def test_thinking_is_learned_where_the_template_leaves_it():
    turns = (*TALK[:2], Turn("assistant", "<think>\nHm.\n</think>\n\nOslo"), TALK[3])
    last = Turn("assistant", "<think>\nOf course.\n</think>\n\nYes.")
    answers = ["Oslo<|im_end|>", "<think>\nOf course.\n</think>\n\nYes.<|im_end|>"]
    assert learned(THINKING, (*turns, last)) == answers
    with pytest.raises(UserError, match=r"where the answers stand cannot be found.*prompt_format plain"):
        learned(THINKING.replace("<|im_start|>assistant\n", ""), (*turns, last))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "plain",
            "Be brief.\n\nUser: Which town? Oslo?\nAssistant: Oslo<|im_end|>\nUser: Oslo again?\n"
            f"Assistant: {LAST}<|im_end|>",
        ),
        (
            "llama-2",
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhich town? Oslo? [/INST] Oslo<|im_end|>"
            f"<|im_start|>[INST] Oslo again? [/INST] {LAST}<|im_end|>",
        ),
    ],
)
def test_forms_without_a_template(name, text):
    tokens, tokenizer = sequence(None, name=name)
    assert tokenizer.decode(tokens.ids) == text
    assert learned(None, name=name) == [f" {FIRST}<|im_end|>", f" {LAST}<|im_end|>"]


def test_an_instruction_is_the_system_prompt_of_a_conversation_without_one():
    tokens, tokenizer = sequence(CHAT_TEMPLATE, TALK[1:], "Answer.")
    assert tokenizer.decode(tokens.ids).startswith("<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user")
    tokens, tokenizer = sequence(CHAT_TEMPLATE, TALK, "Answer.")
    assert tokenizer.decode(tokens.ids).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )
    tokens, tokenizer = sequence(CHAT_TEMPLATE, TALK[1:])
    assert tokenizer.decode(tokens.ids).startswith("<|im_start|>user")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, IGNORES, NO_SYSTEM, LLAMA_2_TEMPLATE, None, "llama-2"])
def test_a_system_message_in_the_middle_is_read_there_or_begins_the_next_question(template):
    name = "llama-2" if template == "llama-2" else "auto"
    form = prompt_format(tokenizer_with(None if template == "llama-2" else template), "", name)
    ask, reply = Turn("user", "Town?"), Turn("assistant", "Oslo")
    pieces = form.pieces((ask, reply, Turn("system", "Be brief."), ask, reply))
    whole = "".join(piece.text for piece in pieces)
    assert whole.count("Be brief.") == 1
    assert whole.index("Oslo") < whole.index("Be brief.") < whole.rindex("Town?")
    said = [piece.text.removesuffix("<|im_end|>").strip() for piece in pieces if piece.learned]
    assert said == ["Oslo"] * 2


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED, THINKING])
def test_answers_of_weight_0_are_read_and_not_learned(template):
    turns = (*TALK[:2], TALK[2]._replace(learned=False), *TALK[3:])
    assert len(learned(template, turns)) == 1 and learned(template, turns)[0].endswith(f"{LAST}<|im_end|>")
    assert "assistant\nOslo<|im_end|>" in (made := sequence(template, turns))[1].decode(made[0].ids)


def test_a_long_conversation_ends_behind_its_last_whole_answer(caplog):
    tokens, _ = sequence(CHAT_TEMPLATE)
    short, _ = sequence(CHAT_TEMPLATE, max_length=len(tokens.ids) - 1)
    assert short.ids == tokens.ids[: tokens.spans[0][1]] and short.spans == tokens.spans[:1]
    assert "1 of 1 conversations or texts are longer than max_length" in caplog.text
    assert (tokens.final, short.final) == ("", "")
    with pytest.raises(UserError, match=f"the shortest has {tokens.spans[0][1]} tokens"):
        sequence(CHAT_TEMPLATE, max_length=tokens.spans[0][1] - 1)


def test_what_a_template_refuses_is_told_with_the_conversation():
    with pytest.raises(UserError, match=r"fails for a conversation of user, user, .*'Which.*roles must alt"):
        sequence(ALTERNATES, (TALK[1], TALK[1], TALK[2]))


def test_all_of_a_text_is_learned_but_the_first_token():
    tokenizer = tiny_tokenizer()
    examples = [FORMATS["text"].read({"text": "11 + 8 = 19"})]
    (tokens,), _ = encode(examples, tokenizer, prompt_format(tokenizer, ""), 512)
    assert tokenizer.decode(tokens.ids) == "11 + 8 = 19<|im_end|>"
    assert tokens.spans == ((1, len(tokens.ids)),)
    (cut,), _ = encode(examples, tokenizer, prompt_format(tokenizer, ""), 4)
    assert (cut.ids, cut.spans) == (tokens.ids[:4], ((1, 4),))
