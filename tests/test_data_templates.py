import pytest
from tiny import tiny_tokenizer

from fedloom.config import UserError
from fedloom.data.templates import end_of_answer, prompt_renderer

INSTRUCTION = "Solve the math problem."
QUESTION = "What is 2 + 3?"
PLAIN = "Solve the math problem.\n\nQuestion: What is 2 + 3?\nAnswer:"
CHAT = (
    "<|im_start|>system\nSolve the math problem.<|im_end|>\n"
    "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_2 = "[INST] <<SYS>>\nSolve the math problem.\n<</SYS>>\n\nWhat is 2 + 3? [/INST]"
ZEPHYR = "<|system|>\nSolve the math problem.<|im_end|>\n<|user|>\nWhat is 2 + 3?<|im_end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("model_name", "has_template", "prompt"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", True, LLAMA_2),
        ("/models/llama-2-13b-chat/", False, LLAMA_2),
        ("meta-llama/Llama-2-7b-hf", False, PLAIN),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", True, ZEPHYR),
        ("HuggingFaceH4/zephyr-7b-beta", False, ZEPHYR),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", False, PLAIN),
        ("bigscience/bloom-3b", False, PLAIN),
        ("smollm2-135m", True, CHAT),
        ("/bloom/llama-2-chat/my-model", True, CHAT),
        ("my-model", False, PLAIN),
    ],
)
def test_the_format_of_each_family(model_name, has_template, prompt):
    render = prompt_renderer(model_name, tiny_tokenizer(chat_template=has_template), INSTRUCTION)
    assert render(QUESTION) == prompt
    assert render("Another?") != prompt


TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
IGNORES = TURNS.replace("%}<|im_start|>", "%}{% if message['role'] != 'system' %}<|im_start|>").replace(
    "<|im_end|>\n", "<|im_end|>\n{% endif %}"
)


@pytest.mark.parametrize("template", [REFUSES, IGNORES])
def test_without_a_system_role_the_instruction_goes_to_the_user(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    prompt = prompt_renderer("some-model", tokenizer, INSTRUCTION)(QUESTION)
    assert prompt == "<|im_start|>user\nSolve the math problem.\n\nWhat is 2 + 3?<|im_end|>\n"


def test_an_answer_ends_as_the_template_ends_a_turn():
    tokenizer = tiny_tokenizer()
    assert end_of_answer(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    # An end-of-text token that no turn ends with, as some chat models have it.
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]})
    assert end_of_answer(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id


def test_without_a_template_an_answer_ends_with_the_text():
    tokenizer = tiny_tokenizer(chat_template=False)
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        end_of_answer(tokenizer)
