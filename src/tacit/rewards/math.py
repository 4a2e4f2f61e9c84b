"""Mathematical equality of LaTeX answers, by math-verify, without its timeouts: these use signals, which only the main thread can have.

What stands in a \\boxed{} may keep a computer algebra system busy for ever, so run this where it can be killed: in a worker.
"""

from __future__ import annotations

import logging

from tacit.core.answers import answer_part
from tacit.rewards.workers import isolated

LONGEST = 2000  # characters of an answer; what is longer is none
LOOKS = (("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\,", ""), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("$", ""))


def math_equal(answer: str, completion: str) -> bool:
    """Whether the answer of the completion (see answers.answer_part) equals the reference, written alike or otherwise.

    Of a completion that marks no answer, the last formula or number counts. Raises ModuleNotFoundError without math-verify, where the two are
    not written alike.
    """
    wanted, said = answer.strip(), answer_part(completion)
    marked = said is not completion
    said = said[: LONGEST + 1].strip() if marked else said[-LONGEST:].strip()
    if not said or not wanted or len(said) > LONGEST:
        return False
    return plain(said) == plain(wanted) or equivalent(wanted, f"\\boxed{{{said}}}" if marked else said)


def equivalent(answer: str, said: str) -> bool:
    """Whether math-verify finds the expression `answer` equal to the one it reads out of `said`."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it reports every formula that it cannot read, and that it has no timeout
    return bool(verify(parse(f"\\boxed{{{answer}}}", parsing_timeout=0), parse(said, parsing_timeout=0), timeout_seconds=0))


@isolated(deadline=10.0)
def score(prompt: str, completion: str, answer: str) -> float:
    """`math_equal` as a reward function, in killable workers."""
    return float(math_equal(answer, completion))


def plain(text: str) -> str:
    """The same without what only changes how it looks."""
    for look, short in LOOKS:
        text = text.replace(look, short)
    return "".join(text.split()).rstrip(".")
