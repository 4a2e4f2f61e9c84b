"""Stack machine: what lies on the stack after a program in postfix form, bottom first, "34+2ds:" -> "722". Procedural, needs no data.

A digit pushes itself; + - * take two numbers and push the result modulo 10; d repeats the top entry, s swaps the two top ones, p drops one.
"""

from __future__ import annotations

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range

ARITHMETIC = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: (a * b) % 10}
NEEDS = {"+": 2, "-": 2, "*": 2, "s": 2, "d": 1, "p": 2}  # entries on the stack; p leaves at least one


class StackMachine(Procedural):
    """Programs of `min_length` to `max_length` instructions, half of which push, and which never look below the stack."""

    name = "stack_machine"
    alphabet = "0123456789+-*dsp:"

    def __init__(self, min_length: int = 3, max_length: int = 8):
        check_range("stack_machine", "length", min_length, max_length, least=1)
        self.min_length, self.max_length = min_length, max_length

    def draw(self, rng: np.random.Generator) -> Prompt:
        length = int(rng.integers(self.min_length, self.max_length, endpoint=True))
        program, stack = "", list[int]()
        for _ in range(length):
            able = [name for name, depth in NEEDS.items() if depth <= len(stack)]
            push = not able or rng.random() < 0.5
            instruction = str(rng.integers(10)) if push else able[rng.integers(len(able))]
            program, stack = program + instruction, execute(instruction, stack)
        return Prompt(f"stack_machine/{program}", f"{program}:", "".join(map(str, stack)), {"difficulty": f"{length} instructions"})


def execute(instruction: str, stack: list[int]) -> list[int]:
    """The stack, top last, after one instruction."""
    match instruction:
        case "d":
            return [*stack, stack[-1]]
        case "s":
            return [*stack[:-2], stack[-1], stack[-2]]
        case "p":
            return stack[:-1]
        case "+" | "-" | "*":
            return [*stack[:-2], ARITHMETIC[instruction](stack[-2], stack[-1])]
        case _:
            return [*stack, int(instruction)]
