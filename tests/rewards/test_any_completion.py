"""No text makes a pure verifier raise or take long: empty, huge, bidirectional, lone surrogates, LaTeX that nests, 10^5 digits."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.answers import final_choice, last_boxed
from tacit.rewards.combine import gated, scorer, weighted
from tacit.rewards.instruction_checks import CHECKS
from tacit.rewards.instructions import follows
from tacit.rewards.math import math_equal, score
from tacit.rewards.quantities import quantity
from tacit.rewards.verifiers import exact, multiple_choice, numeric
from tacit.rewards.workers import WorkerPool

ARGUMENTS = {
    "change_case:capital_word_frequency": {"capital_relation": "at least", "capital_frequency": 2},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say it."},
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "keywords:existence": {"keywords": ["cat", "dog"]},
    "keywords:forbidden_words": {"forbidden_words": ["cat"]},
    "keywords:frequency": {"keyword": "cat", "frequency": 2, "relation": "at least"},
    "keywords:letter_frequency": {"letter": "a", "let_frequency": 3, "let_relation": "less than"},
    "language:response_language": {"language": "ko"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "elm"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
    "length_constraints:number_words": {"num_words": 3, "relation": "less than"},
    "startend:end_checker": {"end_phrase": "Any questions?"},
}
PIECES = [
    "\\boxed{",
    "}",
    "{",
    "\\frac{",
    "\\",
    "####",
    "$",
    "€",
    "-",
    "+",
    ",",
    ".",
    "1,000",
    "²",
    "٣",
    "°C",
    "km",
    "cat",
    "P.S.",
    "***",
    "*",
    "<<",
    ">>",
]
PIECES += [
    "[",
    "]",
    '"',
    "```",
    "\n\n",
    "\n",
    " ",
    "\t",
    "\u202e",
    "\u2066",
    "\ud800",
    "\udfff",
    "\0",
    "e\u0301",
    "Answer: ",
    "answer is (",
    "A)",
    "9" * 50,
]
FORMULAS = [
    "\\frac{",
    "}",
    "{",
    "x",
    "^",
    "2",
    "+1",
    "\\sqrt{",
    "(",
    ")",
    "\\pi",
    "=",
    ",",
    "\\cup",
    "[0,1]",
    "\\begin{pmatrix}",
    "&",
    "!",
    "10^{10^",
    "\ud800",
]
TEXTS = st.text(max_size=40) | st.text(st.characters(), max_size=40) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
TEXTS |= st.tuples(st.sampled_from(PIECES), st.integers(1, 400), TEXTS).map(lambda t: t[0] * t[1] + t[2])
HUGE = {piece: piece * (10**5 // len(piece)) for piece in PIECES} | {
    "digits": "9" * 10**5,
    "digits in a box": rf"\boxed{{{'9' * 10**5}}}",
    "minus and spaces": "-" + " " * 10**5 + "x",
    "answers": "answer is " * 10**4,
    "fence and lines": "```" + "\n" * 10**5,
    "lines and spaces": "\n " * 50_000 + "x",
    "combining": "a" + "\u0301\u0323" * 50_000,
    "open boxes": "\\boxed{" * 10_000 + "}" * 10_000,
    "dots": "a" + "." * 10**5 + "b",
    "sections": "Section " * 12_000,
    "commas": "1" + ",111" * 25_000 + "x",
}


def judge(text: str) -> None:
    """Every pure verifier once; all verdicts are numbers from 0 to 1, or None."""
    last_boxed(text), final_choice(text)
    verdicts = [exact(text, "a"), numeric(text, "5"), numeric("5", text), multiple_choice(text, "A"), multiple_choice("A", text)]
    verdicts += [quantity(text, "5 km"), quantity("5 km", text), exact("a", text)]
    both = weighted(a=(1.0, scorer(exact)), b=(0.0, gated(scorer(numeric), scorer(quantity))))
    verdicts += list(both("?", text, "5").values())
    assert all(verdict is None or 0 <= verdict <= 1 for verdict in verdicts)
    assert all(follows(text, name, **ARGUMENTS.get(name, {})) in (True, False) for name in CHECKS)


@settings(max_examples=400)
@given(TEXTS)
def test_no_text_makes_a_verifier_raise(text):
    judge(text)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(TEXTS)
def test_no_text_of_ten_thousand_makes_a_verifier_raise(text):
    judge(text)


@pytest.mark.parametrize("name", HUGE, ids=ascii)
def test_huge_texts_are_judged_in_bounded_time(name):
    start = time.process_time()
    judge(HUGE[name])
    assert time.process_time() - start < 5, "33 verdicts on 100,000 characters; quadratic ones would take minutes"


@pytest.mark.parametrize("name", ["digits", "digits in a box", "open boxes", "\\frac{", "$", "commas"], ids=ascii)
def test_what_is_too_long_for_algebra_is_wrong_not_slow(name):
    start = time.process_time()
    assert math_equal("5", HUGE[name]) is False
    assert time.process_time() - start < 20


@pytest.mark.slow
def test_algebra_on_any_text_ends_within_the_deadline_with_a_verdict_or_a_reason():
    pytest.importorskip("math_verify", reason="needs the extra 'math': pip install 'tacit[math]'")
    random = np.random.default_rng(0)
    texts = ["\\boxed{" + "".join(random.choice(FORMULAS, size=random.integers(1, 12))) + "}" for _ in range(500)]
    texts += [rf"\boxed{{{bomb}}}" for bomb in ("9^" * 40 + "9", "(" * 900, r"\frac{1}{" * 150 + "2" + "}" * 150, "10000000!!", r"\sqrt{" * 300)]
    with WorkerPool(score, deadline=5.0, workers=2) as pool:
        pool.submit("?", "5", "5").result()  # workers are there
        start = time.monotonic()
        answers = [future.result() for future in [pool.submit("?", text, "x^2+1") for text in texts]]
        assert time.monotonic() - start < 5.0 * len(texts)
    assert all(answer.value in (0, 1) or answer.failure for answer in answers)
    assert sum(bool(answer.failure) for answer in answers) < 0.05 * len(answers)


@pytest.mark.slow
@pytest.mark.parametrize(("verdict", "answer"), [(exact, "72"), (numeric, "72"), (multiple_choice, "B")])
def test_exact_scorers_make_fifty_thousand_verdicts_a_second(verdict, answer):
    completions = ["72", "#### 72", "B", "(B)", "#### 27"] * 20_000
    start = time.process_time()
    for completion in completions:
        verdict(completion, answer)
    assert len(completions) / (time.process_time() - start) > 50_000
