from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.answers import answer_part, final_choice, last_boxed


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{4", None),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed4", None),
        (r"} \boxed{7}}", "7"),
        ("", None),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


def test_where_the_answer_stands():
    assert answer_part(r"\boxed{3} #### 4") == " 4"
    assert answer_part(r"we get \boxed{3}.") == "3"
    assert answer_part("we get 3.") == "we get 3."


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b)", "B"),
        ("**C**", "C"),
        ("(D).", "D"),
        ("#### C", "C"),
        (r"A is wrong, \boxed{D}", "D"),
        (r"\boxed{\text{(E)}}", "E"),
        ("The answer is (B).", "B"),
        ("The answer is option B", "B"),
        ("Answer: **D**", "D"),
        ("The answer is A. No, the answer is C.", "C"),
        ("A) 12 m", "A"),
        ("Not (A) but (C)", "C"),
        ("So B is right, I think", None),
        ("We get E.", "E"),
        ("I like A car", None),
        ("B-side and C's", None),
        ("The answer is F", None),
        ("the answer is a number", None),
        ("", None),
    ],
)
def test_final_choice(text, letter):
    assert final_choice(text) == letter


def test_letters_are_an_option():
    assert final_choice("The answer is (F).", "ABCDEF") == "F"


@given(st.text(st.sampled_from("\\boxed{}#A(B). answer is"), max_size=80))
def test_any_text_has_an_answer_or_none(text):
    boxed = last_boxed(text)
    assert boxed is None or boxed in text
    assert final_choice(text) in (None, *"ABCDE")
