"""List programs: nested functions of lists of digits, "rev(cat(31,sort(20)))=" -> "2013". Procedural, needs no data.

rev turns a list round, sort sorts it, tail drops its first entry, inc adds one to each modulo 10, uniq drops what occurred before, and cat joins two.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range

UNARY: dict[str, Callable[[str], str]] = {
    "rev": lambda x: x[::-1],
    "sort": lambda x: "".join(sorted(x)),
    "tail": lambda x: x[1:],
    "inc": lambda x: "".join(str((int(digit) + 1) % 10) for digit in x),
    "uniq": lambda x: "".join(dict.fromkeys(x)),
}
P_CAT = 0.25  # of a node that joins two lists


class ListPrograms(Procedural):
    """Functions nested `min_depth` to `max_depth` deep, over lists of 2 to 5 digits; the result is never empty."""

    name = "list_programs"
    alphabet = "".join(sorted(set("0123456789(),=cat" + "".join(UNARY))))

    def __init__(self, min_depth: int = 1, max_depth: int = 3):
        check_range("list_programs", "depth", min_depth, max_depth, least=1)
        if max_depth > 12:
            raise ValueError(f"list_programs needs max_depth of at most 12, not {max_depth}")
        self.min_depth, self.max_depth = min_depth, max_depth

    def draw(self, rng: np.random.Generator) -> Prompt:
        depth = int(rng.integers(self.min_depth, self.max_depth, endpoint=True))
        text, value = "", ""
        while not value:
            text, value = _nest(rng, depth)
        return Prompt(f"list_programs/{text}", f"{text}=", value, {"difficulty": f"depth {depth}"})


def _nest(rng: np.random.Generator, depth: int) -> tuple[str, str]:
    """A program of exactly this depth, and its value. Of the two parts of a cat, one may be shallower."""
    if depth == 0:
        digits = "".join(map(str, rng.integers(10, size=rng.integers(2, 5, endpoint=True))))
        return digits, digits
    text, value = _nest(rng, depth - 1)
    if rng.random() < P_CAT:
        other, more = _nest(rng, int(rng.integers(depth)) if depth < 4 else 0)  # the breadth of deep programs stays bounded
        return f"cat({text},{other})", value + more
    name = list(UNARY)[rng.integers(len(UNARY))]
    return f"{name}({text})", UNARY[name](value)
