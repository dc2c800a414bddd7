import pytest

from fedloom.data.answers import extract_number
from fedloom.data.arithmetic import generate
from fedloom.data.tasks import TASKS, Example

ROWS = {
    "gsm8k": {
        "question": "Betty has $1,000. She gets 1/5 as much. How much has she now?",
        "answer": "She gets 1000/5 = $<<1000/5=200>>200.\n"
        "She has 1000+200 = $<<1000+200=1200>>1200.\n#### 1,200",
    },
    "camel-ai/math": {
        "role_1": "Algebra_Quadratics",
        "topic;": "Algebra",
        "sub_topic": "Quadratics",
        "message_1": "Solve x - 2 = 3 for x.",
        "message_2": "Add 2 on both sides, 2 steps in all.\n\n$x = \\boxed{5}$, after 1 line.",
    },
    "ChilleD/SVAMP": {
        "ID": "chal-0",
        "Body": "A pack costs 76 dollars. The discount is 25 dollars",
        "Question": "What does a pack cost?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": "51.0",
        "Type": "Subtraction",
    },
    "ChilleD/MultiArith": {
        "question": "Eight friends play, 5 quit. Each has 5 lives. How many lives?",
        "final_ans": "15",
    },
    "arithmetic": {
        "question": "Ann has 2 pears and buys 3 more. How many now?",
        "answer": "2 + 3 = 5",
        "label": "add",
    },
}


def example_of(name, **changes):
    return TASKS[name].to_example({**ROWS[name], **changes})


def test_the_names_that_data_name_takes():
    assert list(TASKS) == ["gsm8k", "camel-ai/math", "ChilleD/SVAMP", "ChilleD/MultiArith", "arithmetic"]
    assert {name: (task.hub, task.hub_config) for name, task in TASKS.items()} == {
        "gsm8k": ("openai/gsm8k", "main"),
        "camel-ai/math": ("camel-ai/math", None),
        "ChilleD/SVAMP": ("ChilleD/SVAMP", None),
        "ChilleD/MultiArith": ("ChilleD/MultiArith", None),
        "arithmetic": ("", None),
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_task_ends_its_answer_in_the_final_number(name):
    task, row = TASKS[name], ROWS[name]
    assert all(any(name in row for name in field.split("|")) for field in task.fields)
    example = task.to_example(row)
    assert task.keep(row)
    assert extract_number(example.answer) == example.final
    assert example.answer.endswith(example.final)
    assert task.instruction.endswith(".") and example.question not in task.instruction


def test_gsm8k_loses_its_calculator_notes_and_commas():
    example = example_of("gsm8k")
    assert example.answer == "She gets 1000/5 = $200.\nShe has 1000+200 = $1200.\n#### 1200"
    assert example.final == "1200"


@pytest.mark.parametrize("answer", ["no marker: 5", "so\n#### five", "#### 5 apples", ""])
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
        ("Therefore x = y.", ""),
    ],
)
def test_camel_math_finds_the_final_number_in_prose(solution, final):
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
