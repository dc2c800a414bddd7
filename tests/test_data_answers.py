import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.answers import extract_number, normal_number, same_answer, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("11 + 8 = 19", "19"),
        ("11 + 8 = 19\n19 * 3 = 57", "57"),
        ("48/2 = 24 clips in May.\n48+24 = 72 clips altogether.\n#### 72", "72"),
        ("#### 1,080", "1080"),
        ("#### 850,000.50", "850000.5"),
        ("#### 5\n\nQuestion: what is 3 + 4? Answer: 7", "5"),
        ("The final answer is $1,200.", "1200"),
        ("the answer is: 42 apples, not 43", "42"),
        ("So the final answer is x = -3.", "-3"),
        ("That costs $ 5 .", "5"),
        ("She pays -$5.", "-5"),
        ("He owes $-5", "-5"),
        ("It falls to \u22127 degrees", "-7"),
        ("10-5", "5"),
        ("from 10 - 5", "5"),
        ("(12)-7", "7"),
        ("50%", "50"),
        ("about .5 liters", "0.5"),
        ("it weighs 12.50 kg.", "12.5"),
        ("an area of 25 cm^2", "25"),
        ("7km", "7"),
        ("one of 1, 2, 3", "3"),
        ("1,2000", "2000"),
        ("x = 3/4", "0.75"),
        ("x = -\\frac{1}{2}", "-0.5"),
        ("12/4 = 3", "3"),
        ("dollars: 5/0", "0"),
        ("-0", "0"),
        ("007", "7"),
        ("H2O", None),
        ("", None),
        ("I do not know.", None),
        ("It is 5.\n#### unknown", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert extract_number(text) == number


NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(lambda n: (str(n), f"{n:,}")),
    st.decimals(-(10**6), 10**6, places=2).map(lambda d: (str(normal_number(str(d))), f"{d:,}")),
)
FRAMES = [
    "{}",
    "{}.",
    "It is {} dollars.",
    "= {}",
    "{}%",
    "\\boxed{{{}}}",
    "**{}**",
    "x={}",
    "{}km",
    "It is ({})",
]


@settings(deadline=None)
@given(NUMBERS, st.sampled_from(FRAMES))
def test_a_number_is_found_in_any_frame(number, frame):
    plain, written = number
    assert extract_number("Of 3 and 4: " + frame.format(written)) == plain


@settings(deadline=None)
@given(NUMBERS, st.text(max_size=30), st.sampled_from(["#### ", "The final answer is ", "The answer is $"]))
def test_what_stands_before_the_marker_does_not_matter(number, before, marker):
    plain, written = number
    assert extract_number(f"{before}\n{marker}{written}\nthat was 99") == plain


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,-+$%/#eE \\frac{}^x\n", max_size=40))
def test_what_comes_out_is_plain_or_nothing(text):
    number = extract_number(text)
    if number is not None:
        assert normal_number(number) == number
        float(number)
        assert not set(number) - set("-.0123456789")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (18, "18"),
        (18.0, "18"),
        ("18.0", "18"),
        (" 1,200 ", "1200"),
        ("$5", "5"),
        ("7%", "7"),
        ("+3", "3"),
        (-2.5, "-2.5"),
        (1e20, "100000000000000000000"),
        (True, None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        ("about 5", None),
        ("5 apples", None),
        ("", None),
    ],
)
def test_a_field_is_a_number_or_not(value, number):
    assert normal_number(value) == number


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_is_a_number(value):
    assert float(normal_number(value)) == value


def test_numbers_are_compared_by_value():
    assert same_number("18", "18.0")
    assert same_number("1,200", "1200")
    assert same_number("0.333333", "0.3333333333")
    assert not same_number("1000001", "1000002")
    assert not same_number("18", "19")
    assert not same_number("18", None)
    assert not same_number(None, None)
    assert not same_number("", "")


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("18", "That makes 18.0 in all.", True),
        ("She has 9 + 9 = 18.\n#### 18", "The answer is 18, not 17.", True),
        ("$1,200", "#### 1200", True),
        ("18", "eighteen", False),
        ("18", "", False),
        ("Paris", " paris\n", True),
        ("New  York", "new york", True),
        ("STRASSE", "straße", True),
        ("Paris", "Paris, France", False),
        ("Paris", "It is 12 km away", False),
    ],
)
def test_an_output_is_the_expected_answer_by_its_number_or_by_its_words(expected, output, same):
    assert same_answer(expected, output) is same
