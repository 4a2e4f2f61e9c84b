"""Short programs: a function without a body, and examples of what it does; the completion is the body, judged by running unit tests.

    def f(x):
        # f(2) == 9, f(5) == 15
                                    ->          return x*2+5

Any body that passes is right, so that judging one means running it: `verify` gives no verdict, `info` holds what the reward for programs needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural

Function = Callable[[Any, int, int], Any]  # of x and the two constants of a family
FAMILIES: dict[str, dict[str, Function]] = {
    "one step": {
        "x+{a}": lambda x, a, _: x + a,
        "x-{a}": lambda x, a, _: x - a,
        "{a}-x": lambda x, a, _: a - x,
        "x*{a}": lambda x, a, _: x * a,
        "x//{a}": lambda x, a, _: x // a,
        "x%{a}": lambda x, a, _: x % a,
        "max(x,{a})": lambda x, a, _: max(x, a),
        "min(x,{a})": lambda x, a, _: min(x, a),
    },
    "two steps": {
        "x*{a}+{b}": lambda x, a, b: x * a + b,
        "x*{a}-{b}": lambda x, a, b: x * a - b,
        "(x+{a})*{b}": lambda x, a, b: (x + a) * b,
        "{b}-x*{a}": lambda x, a, b: b - x * a,
        "x%{a}+{b}": lambda x, a, b: x % a + b,
        "x//{a}+{b}": lambda x, a, b: x // a + b,
        "max(x,{a})-{b}": lambda x, a, b: max(x, a) - b,
        "abs(x-{a})+{b}": lambda x, a, b: abs(x - a) + b,
    },
}
INPUTS = range(21)  # what examples and tests are drawn from
EXAMPLES, TESTS = 3, 5
INDENT = "    "


class ShortPrograms(Procedural):
    """Functions of one natural number with constants from 2 to `largest`. Held out are functions, however they are written: by their values.

    info: `tests` (asserts: the examples, then others) and `entry_point`. The program is the prompt with the completion behind it.
    """

    name = "short_programs"
    alphabet = "".join(sorted(set("0123456789 \n#=,:()+-*/%return def f(x): max min abs")))
    reward = "tacit.rewards.programs:ProgramTests"

    def __init__(self, largest: int = 40):
        if largest < 2:
            raise ValueError(f"short_programs needs largest of at least 2, not {largest}")
        self.largest = largest

    def draw(self, rng: np.random.Generator) -> Prompt:
        level = list(FAMILIES)[rng.integers(len(FAMILIES))]
        form = list(FAMILIES[level])[rng.integers(len(FAMILIES[level]))]
        a, b = (int(n) for n in rng.integers(2, self.largest, size=2, endpoint=True))
        places = [int(n) for n in rng.choice(len(INPUTS), size=EXAMPLES + TESTS, replace=False)]
        values = [int(FAMILIES[level][form](x, a, b)) for x in INPUTS]
        facts = [f"f({x}) == {values[x]}" for x in places]
        head = f"def f(x):\n{INDENT}# {', '.join(facts[:EXAMPLES])}\n"
        body = form.format(a=a, b=b)
        info = {
            "tests": [f"assert {fact}" for fact in facts],
            "entry_point": "f",
            "solution": f"{INDENT}return {body}",
            "values": values,
            "difficulty": level,
        }
        return Prompt(f"short_programs/{body}/{','.join(map(str, places[:EXAMPLES]))}", head, None, info)

    def key(self, prompt: Prompt) -> str:
        return repr(prompt.info["values"])

    def solve(self, prompt: Prompt) -> str:
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> None:
        """No verdict: a program is judged by running it, and that needs a sandbox."""
        return
