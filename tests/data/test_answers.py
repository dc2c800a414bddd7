import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.answers import extract_number, normal_number, same_answer, stated_number


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


# What stands on the left is, as a whole or at the end of a sentence, the number on the right.
WRITTEN = {
    # thousands
    "1,200": "1200",
    "1{,}200": "1200",
    r"1\,200": "1200",
    r"1,\!200,\!000": "1200000",
    "1\u2009200": "1200",
    "1\u202f200\u202f000": "1200000",
    "1'200": "1200",
    "1,20,300": "120300",
    # fractions and mixed numbers
    r"\frac{3}{4}": "0.75",
    r"\dfrac{-3}{4}": "-0.75",
    r"-\tfrac{3}{4}": "-0.75",
    r"\frac34": "0.75",
    r"\frac{1{,}000}{8}": "125",
    "3 / 4": "0.75",
    "12.5/4": "3.125",
    "½": "0.5",
    r"3\frac{1}{2}": "3.5",
    r"-3\dfrac{1}{2}": "-3.5",
    "3 1/2": "3.5",
    "3½": "3.5",
    # powers
    "1.5e3": "1500",
    "1.5E-03": "0.0015",
    r"1.5 \times 10^3": "1500",
    r"1.5 \cdot 10^{-3}": "0.0015",
    "1.5 × 10³": "1500",
    "2*10**5": "200000",
    "10^{3}": "1000",
    "2^10": "1024",
    "-2^2": "-4",
    "2^{-2}": "0.25",
    "1.5 million": "1500000",
    # signs
    "\u22127": "-7",
    "$12.50": "12.5",
    r"\$1,200": "1200",
    "-$5": "-5",
    "$-5": "-5",
    "50%": "50",
    r"50\%": "50",
    r"90^\circ": "90",
    # digits that are no number
    "2024-07-26": None,
    "3/4/2024": None,
    "7:30": None,
    "3.11.2": None,
    r"\sqrt{2}": None,
    r"2\sqrt{3}": None,
    r"\frac{\sqrt{3}}{2}": None,
    r"\frac{x}{2}": None,
    r"3\pi": None,
    "2^n": None,
    r"\pm 3": None,
}


@pytest.mark.parametrize(("written", "number"), WRITTEN.items())
def test_a_number_is_read_however_it_is_written(written, number):
    assert extract_number(written) == number
    assert extract_number(f"Of 3 and 4 we get {written}.") == number
    assert extract_number(f"So it is \\boxed{{{written}}}, after 2 steps.") == number
    assert extract_number(f"The final answer is {written}, as we saw in step 2.") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"\boxed{x = -\frac{1}{2}}, in 3 steps", "-0.5"),
        (r"First \boxed{4}, then \boxed{5}.", "5"),
        (r"\boxed{12 \text{ apples}}", "12"),
        (r"\boxed{25\,\mathrm{cm}^2}", "25"),
        (r"\boxed{7", "7"),
        (r"\boxed{(A)}", None),
        (r"\boxed{3, 5}", None),
        (r"\boxed{2x + 3} with x = 4", None),
        (r"\boxed{4}. The answer is 5.", "5"),
        ("The answer is 3 + 4 = 7, not 8.", "7"),
        ("The answer is 3 + 4.", None),
        ("The answer is 7 = 3 + 4.", "7"),
        ("The answer is: **42**", "42"),
        ("x = - 5", "-5"),
        ("10 - 5", "5"),
    ],
)
def test_a_box_or_a_marker_says_which_number_is_the_answer(text, number):
    assert extract_number(text) == number


NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(lambda n: (str(n), f"{n:,}")),
    st.decimals(-(10**6), 10**6, places=2).map(lambda d: (str(d), f"{d:,}")),
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
    assert extract_number("Of 3 and 4: " + frame.format(written)) == normal_number(plain)


SEPARATORS = [",", "{,}", r"\,", r"\;", r",\!", "\u2009", "\u202f", "\u00a0", "'"]
WHOLE = st.integers(0, 10**9)
SHARE = st.integers(2, 99).flatmap(lambda under: st.tuples(st.integers(1, under - 1), st.just(under)))


@settings(deadline=None)
@given(
    WHOLE,
    st.sampled_from(SEPARATORS),
    st.sampled_from(["", ".5", ".25"]),
    st.sampled_from(["", "-", "\u2212"]),
)
def test_thousands_may_be_parted_in_many_ways(whole, separator, decimals, sign):
    written = sign + f"{whole:,}".replace(",", separator) + decimals
    value = Decimal(f"{whole}{decimals}") * (-1 if sign else 1)
    assert Decimal(extract_number(f"Of 3 apples {written} are left.")) == value


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 999), SHARE, st.sampled_from(["frac", "dfrac", "tfrac"]), st.booleans())
def test_fractions_and_mixed_numbers(whole, share, command, negative):
    over, under = share
    sign = "-" if negative else ""
    for written, value in [
        (f"\\{command}{{{over}}}{{{under}}}", Fraction(over, under)),
        (f"{over}/{under}", Fraction(over, under)),
        (f"{whole}\\{command}{{{over}}}{{{under}}}", whole + Fraction(over, under)),
        (f"{whole} {over}/{under}", whole + Fraction(over, under)),
    ]:
        found = extract_number(f"\\boxed{{{sign}{written}}}")
        assert abs(Fraction(found) - value * (-1 if negative else 1)) < Fraction(1, 10**9)
        assert (
            found == extract_number(f"The answer is {sign}{written} miles.") == normal_number(sign + written)
        )


@settings(deadline=None)
@given(st.decimals(1, 10, places=3), st.integers(-30, 30))
def test_powers_of_ten(value, exponent):
    small = [f"{value}e{exponent}", f"{value} \\times 10^{{{exponent}}}", f"{value} × 10^{exponent}"]
    found = {extract_number(f"It is {written} J.") for written in small}
    assert {Decimal(number) for number in found} == {value.scaleb(exponent)}


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_it_fail(text):
    for read in (extract_number, stated_number, normal_number):
        number = read(text)
        assert number is None or normal_number(number) == number
    assert same_answer(text, text)


LONG = {"1": 20000, "1 ": 300, "1,": 300, "\\frac{1}{": 300, "\\frac{": 4000, "\\boxed{": 4000, "-": 20000}
LONG |= {"$": 20000, "{": 20000, "=": 20000, "1 and then ": 300}


@pytest.mark.parametrize("text", ["\\frac{" + " " * 20000, *(piece * count for piece, count in LONG.items())])
def test_long_texts_take_no_time(text):
    began = time.perf_counter()
    extract_number(text)
    same_answer("5 km", text)
    assert time.perf_counter() - began < 5


@settings(deadline=None)
@given(NUMBERS, st.text(max_size=30), st.sampled_from(["#### ", "The final answer is ", "The answer is $"]))
def test_what_stands_before_the_marker_does_not_matter(number, before, marker):
    plain, written = number
    assert extract_number(f"{before}\n{marker}{written}\nthat was 99") == normal_number(plain)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,-+$%/#eE \\frac{}^x½⁴\n", max_size=40))
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
    assert same_answer("18", "18.0")
    assert same_answer("1,200", "1200")
    assert same_answer("0.333333", "0.3333333333")
    assert not same_answer("1000001", "1000002")
    assert not same_answer("18", "19")
    assert not same_answer("18", "")
    # Small numbers differ by their size, not by a fixed amount.
    assert same_answer("1.6e-19", "1.600001e-19")
    assert not same_answer("1.6e-19", "9.1e-31")
    assert not same_answer("0", "1e-9")


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("18", "That makes 18.0 in all.", True),
        ("She has 9 + 9 = 18.\n#### 18", "The answer is 18, not 17.", True),
        (r"So it is \boxed{18}.", "18", True),
        ("$1,200", "#### 1200", True),
        ("18", "eighteen", False),
        ("18", "", False),
        ("12", "12 keys", True),
        # A number with a unit: of the same unit, or alone.
        ("11 days", "11", True),
        ("11 days", "The answer is 11.", True),
        ("11 days", r"\boxed{11}", True),
        ("11 days", "It took 11 long days.", True),
        ("11 days", "It took 11 hours.", False),
        ("11 days", "11 hours", False),
        ("11 days", "Apollo 11", False),
        ("1 day", "1 days", True),
        ("42 km", "It is 42 kilometers away.", True),
        ("25 cm^2", r"\boxed{25 \text{ cm}^2}", True),
        ("25 cm²", "25 cm^2", True),
        ("20 degrees Celsius", "20 °C", True),
        ("20 °C", "20 °F", False),
        ("50%", "50 percent", True),
        ("50%", "about 50", True),
        ("$5", "5 dollars", True),
        ("$5", "€5", False),
        ("3/4", r"\frac34", True),
        ("2 million", "2,000,000", True),
        # Words, even where they hold digits.
        ("Paris", " paris\n", True),
        ("Paris", "Paris.", True),
        ("New  York", "new york", True),
        ("STRASSE", "straße", True),
        ("café", "cafe\u0301", True),
        ("Paris", "Paris, France", False),
        ("Paris", "It is 12 km away", False),
        ("Apollo 11", "Apollo 11", True),
        ("Apollo 11", "11 days", False),
        ("Apollo 11", "11", False),
        ("It has 12 keys.", "12", False),
        ("10 Downing Street", "10", False),
        ("101 Dalmatians", "101", False),
        ("5 or 6", "5", False),
        ("2024-07-26", "26", False),
        ("7:30", "30", False),
        ("007", "7", False),
    ],
)
def test_an_output_is_the_expected_answer_by_its_number_or_by_its_words(expected, output, same):
    assert same_answer(expected, output) is same
