"""Python functions to write, judged by running unit tests: MBPP and HumanEval. `info` holds what the reward for programs needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tacit.core.rollouts import Prompt
from tacit.tasks.data import DataError, text_field
from tacit.tasks.finite import Finite, Row, load, split

PROGRAM_TESTS = "tacit.rewards.programs:ProgramTests"
MBPP_INSTRUCTION = "Write a Python program for this task. It should pass these tests:"
CALLED = re.compile(r"[A-Za-z_]\w*(?=\s*\()")


class Mbpp(Finite):
    """Short tasks with three asserts each, which the prompt shows. Source: Austin et al. 2021, "Program Synthesis with Large Language Models".

    Reads $TACIT_DATA/mbpp/train.jsonl.gz (tasks 601 to 974), and test.jsonl.gz (of 11 to 510) to hold out; or the files `train` and `test`.
    """

    name = "mbpp"
    reward = PROGRAM_TESTS

    def __init__(self, train: str | None = None, test: str | None = None, instruction: str = MBPP_INSTRUCTION):
        def read(row: Row, path: Path, line: int) -> Prompt:
            text, code = text_field(row, "text", path, line), text_field(row, "code", path, line).replace("\r\n", "\n")
            tests, setup = row.get("test_list"), row.get("test_setup_code") or ""
            if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
                raise DataError(f"{path}, line {line}: expected 'test_list', a list of asserts")
            prompt = "\n".join([text, instruction, *tests, ""])
            info = {"tests": tests, "setup": setup.replace("\r\n", "\n"), "entry_point": called_by(tests[0], code), "solution": code}
            return Prompt(f"mbpp/{row.get('task_id', line)}", prompt, None, info)

        super().__init__(load(train, "mbpp/train.jsonl.gz", read), load(test, "mbpp/test.jsonl.gz", read))

    def solve(self, prompt: Prompt) -> str:
        return str(prompt.info["solution"])


class HumanEval(Finite):
    """Function heads with a docstring, to be completed; a whole function in a code block counts as well. `instruction` may precede them.

    Reads $TACIT_DATA/humaneval/humaneval.jsonl.gz, or `path`. With heldout_share 1 all is held out: an evaluation on the whole set.
    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
    """

    name = "humaneval"
    reward = PROGRAM_TESTS

    def __init__(self, path: str | None = None, heldout_share: float = 0.5, instruction: str = ""):
        def read(row: Row, source: Path, line: int) -> Prompt:
            names = ("prompt", "canonical_solution", "test", "entry_point")
            head, solution, test, entry_point = (text_field(row, name, source, line) for name in names)
            info: dict[str, Any] = {"tests": [test], "setup": "", "entry_point": entry_point, "solution": solution}
            return Prompt(f"humaneval/{row.get('task_id', line)}", instruction + head, None, info)

        super().__init__(*split(load(path, "humaneval/humaneval.jsonl.gz", read), heldout_share, key=lambda prompt: prompt.id))

    def solve(self, prompt: Prompt) -> str:
        """What follows the head."""
        return str(prompt.info["solution"])


def called_by(test: str, code: str) -> str | None:
    """The name of the function or class that a test calls, among those that the reference defines at its top level."""
    defined = set(re.findall(r"^(?:def|class)\s+(\w+)", code, re.MULTILINE))
    return next((name for name in CALLED.findall(test) if name in defined), None)
