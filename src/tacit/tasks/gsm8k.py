"""GSM8K word problems, for models that read: a question, an answer that is one number."""

from __future__ import annotations

from pathlib import Path

from tacit.core.numbers import final_number, parse_number
from tacit.core.rollouts import Prompt
from tacit.tasks.data import DataError, text_field
from tacit.tasks.finite import Finite, Row, load

INSTRUCTION = "Solve the problem step by step, and end with the answer as a number after ####."


class Gsm8k(Finite):
    """Reads $TACIT_DATA/gsm8k/train.jsonl.gz, and test.jsonl.gz to hold out; or the files `train` and `test`. The prompt ends with `instruction`.

    Raises DataError when a file is missing or broken, or a reference answer is no number.
    """

    name = "gsm8k"

    def __init__(self, train: str | None = None, test: str | None = None, instruction: str = INSTRUCTION):
        def read(row: Row, path: Path, line: int) -> Prompt:
            question, solution = text_field(row, "question", path, line), text_field(row, "answer", path, line)
            answer = solution.rpartition("####")[2].strip()
            if parse_number(answer) is None:
                raise DataError(f"{path}, line {line}: the answer does not end with #### and a number")
            return Prompt(f"gsm8k/{row.get('id', line)}", f"{question}\n{instruction}", answer, {"solution": _without_annotations(solution)})

        super().__init__(load(train, "gsm8k/train.jsonl.gz", read), load(test, "gsm8k/test.jsonl.gz", read))

    def solve(self, prompt: Prompt) -> str:
        """The reference solution, without its calculator annotations."""
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> float:
        """1 when the number that the completion ends on (after ####, in \\boxed, or the last) is the answer."""
        return float(final_number(completion) == parse_number(str(prompt.answer)))


def _without_annotations(solution: str) -> str:
    """<<48/2=24>> are notes to a calculator, not text."""
    parts = solution.split("<<")
    return parts[0] + "".join(part.partition(">>")[2] for part in parts[1:])
