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
from tiny import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer

from fedloom.data.templates import prompt_format
from fedloom.data.token_ids import encode_prompts
from fedloom.errors import UserError
from fedloom.evaluation.answering import ends_of_answer

INSTRUCTION = "Solve the math problem."
QUESTION = "What is 2 + 3?"
PLAIN = "Solve the math problem.\n\nQuestion: What is 2 + 3?\nAnswer:"
CHAT = (
    "<|im_start|>system\nSolve the math problem.<|im_end|>\n"
    "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_2 = "[INST] <<SYS>>\nSolve the math problem.\n<</SYS>>\n\nWhat is 2 + 3? [/INST]"
ZEPHYR = "<|system|>\nSolve the math problem.<|im_end|>\n<|user|>\nWhat is 2 + 3?<|im_end|>\n<|assistant|>\n"
TOLD_BY_THE_USER = "<|im_start|>user\nSolve the math problem.\n\nWhat is 2 + 3?<|im_end|>\n"


def prompt(template, question=QUESTION, **options):
    return prompt_format(tokenizer_with(template), INSTRUCTION, **options).render(question)


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        (CHAT_TEMPLATE, "auto", CHAT),
        (None, "auto", PLAIN),
        (CHAT_TEMPLATE, "plain", PLAIN),
        (None, "llama-2", LLAMA_2),
        (LLAMA_2_TEMPLATE, "auto", f"<|im_start|>{LLAMA_2}"),
        (ZEPHYR_TEMPLATE, "auto", ZEPHYR),
        (REFUSES, "auto", TOLD_BY_THE_USER),
        (IGNORES, "auto", TOLD_BY_THE_USER),
        (PARTS, "auto", CHAT),
        (RAISES_FOR_TEXT, "auto", CHAT),
    ],
)
def test_a_prompt_has_the_form_of_the_tokenizers_template_or_the_one_asked_for(template, name, expected):
    assert prompt(template, name=name) == expected
    assert "Another?" in prompt(template, "Another?", name=name)


def test_llama_2_without_a_template_reads_what_it_reads_with_one():
    tokenizer = tokenizer_with(None)
    tokenizer.add_bos_token = True
    lead = [tokenizer.bos_token_id]
    (bare,), (own,) = (
        encode_prompts([prompt(template, name=name)], tokenizer)
        for template, name in ((None, "llama-2"), (LLAMA_2_TEMPLATE, "auto"))
    )
    assert own == lead + [token for token in bare if token not in lead]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "{% for message in messages %}{{ message['role'] }}{% endfor %}",
            "leaves out or changes the question",
        ),
        ("{{ messages[-1]['content'] | replace('Solve', '') }}", "leaves out or changes the instruction"),
        ("{{ messages | tojson }}", "leaves out or changes the question"),
        # Text is left out, and of parts Python's own notation is printed.
        ("{% if messages[0].content is string %}{% else %}{{ messages }}{% endif %}", "changes the question"),
        ("{{ raise_exception('not today') }}", "fails: not today (TemplateError)"),
        ("{{ 1 / 0 }}", "fails: division by zero (ZeroDivisionError)"),
        ("{% for message in messages %}", "fails: Unexpected end of template"),
        ({"tools": CHAT_TEMPLATE}, "fails: "),
    ],
)
def test_a_template_that_fails_or_leaves_something_out_is_refused(template, told):
    with pytest.raises(UserError) as refused:
        prompt(template)
    assert told in str(refused.value) and "--prompt_format plain" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert prompt(template, name="plain") == PLAIN


def test_what_a_template_does_to_one_question_is_found_too():
    template = (
        "{% if 'seven' in messages[-1].content %}{{ raise_exception('no!') }}{% endif %}" + CHAT_TEMPLATE
    )
    form = prompt_format(
        tokenizer_with(template.replace("['content'] }}", "['content'] | replace('x', '') }}")), "Do."
    )
    assert "Is it five?" in form.render("Is it five?")
    with pytest.raises(UserError, match=r"changes the question 'Is it six\?'"):
        form.render("Is it six?")
    with pytest.raises(UserError, match=r"fails for the question 'Is it seven\?': no! \(TemplateError\)"):
        form.render("Is it seven?")


@pytest.mark.parametrize(
    ("clock", "shown"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "03 Feb 2031"),
        (
            "{% if strftime_now is defined %}{% set now = strftime_now('%Y-%m-%d') %}{% endif %}{{ now }}",
            "2031-02-03",
        ),
        (
            "{% set code = '%B %-d' %}{{ strftime_now(code) }}{{ strftime_now('%Y') | int - 1 }}",
            "February 32030",
        ),
        ("{% macro today() %}{{ strftime_now('%A') }}{% endmacro %}{{ today() }}", "Monday"),
        ("  {% if true %}\n  {{ strftime_now('100 %% of %j') }}{% endif %}", "  100 % of 034"),
        ("\n{{ strftime_now('%H:%M') }}", "\n00:00"),
        ("It is never.", "It is never."),
    ],
)
def test_a_template_with_a_clock_is_shown_the_day_that_it_is_given(clock, shown):
    assert prompt(clock + CHAT_TEMPLATE, day="2031-02-03") == shown + CHAT
    assert prompt(clock + CHAT_TEMPLATE) == prompt(clock + CHAT_TEMPLATE, day="2024-07-26")


def test_an_answer_ends_as_the_template_ends_a_turn():
    def end(tokenizer, name="auto"):
        return tokenizer.convert_ids_to_tokens(prompt_format(tokenizer, "Do.", name).end)

    tokenizer = tiny_tokenizer()
    assert end(tokenizer) == "<|im_end|>"
    # An end-of-text token that no turn ends with, as some chat models have it.
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    assert end(tokenizer) == "<|im_end|>" and end(tokenizer, "plain") == "<|endoftext|>"
    tokenizer.chat_template = PARTS
    assert end(tokenizer) == "<|im_end|>"
    # A turn that nothing closes, and a template for prompts alone.
    refuses = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('') }}{% endif %}"
    for template in (TURNS.replace("<|im_end|>", ""), refuses + CHAT_TEMPLATE):
        tokenizer.chat_template = template
        assert end(tokenizer) == "<|endoftext|>"
    # The token of number 0 is one, too.
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", "<|pad|>")
    assert end(tokenizer) == "<|pad|>" and tokenizer.convert_tokens_to_ids("<|pad|>") == 0


def test_without_a_template_an_answer_ends_with_the_text():
    tokenizer = tiny_tokenizer(chat_template=False)
    assert prompt_format(tokenizer, "Do.").end == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        prompt_format(tokenizer, "Do.")


@pytest.mark.parametrize(
    ("generation", "configured", "ends"),
    [([7, 8], 2, {1, 2, 7, 8}), (7, None, {1, 7}), (None, [0, 9], {0, 1}), (None, None, {1})],
)
def test_generation_stops_at_any_end_token_that_the_model_knows(generation, configured, ends):
    """Token 1 is taught; 0 and 2 are special tokens of the tokenizer, 9 is ordinary text."""
    model = tiny_llama(eos_token_id=configured)
    model.generation_config.eos_token_id = generation
    assert ends_of_answer(model, tiny_tokenizer(), taught=1) == ends
