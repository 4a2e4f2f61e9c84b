"""GSM8K word problems, for models that read: a question, an answer that is one number."""

from __future__ import annotations

from pathlib import Path

from tacit.core.numbers import final_number, parse_number
from tacit.core.rollouts import Prompt
from tacit.tasks.base import first, stream_order
from tacit.tasks.data import DataError, locate, read_jsonl, text_field

INSTRUCTION = "Solve the problem step by step, and end with the answer as a number after ####."


class Gsm8k:
    """Reads $TACIT_DATA/gsm8k/train.jsonl.gz, and test.jsonl.gz to hold out; or the files `train` and `test`. The prompt ends with `instruction`.

    Raises DataError when a file is missing or broken, or a reference answer is no number.
    """

    name = "gsm8k"

    def __init__(self, train: str | None = None, test: str | None = None, instruction: str = INSTRUCTION):
        self.train = _read(Path(train) if train else locate("gsm8k/train.jsonl.gz"), instruction)
        self.test = _read(Path(test) if test else locate("gsm8k/test.jsonl.gz"), instruction)

    @property
    def alphabet(self) -> str:
        return "".join(sorted({c for p in [*self.train, *self.test] for c in p.text + p.info["solution"]}))

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return self.train[stream_order(ordinal, len(self.train), seed)]

    def heldout(self, count: int) -> list[Prompt]:
        return first(self.test, count, self.name)

    def solve(self, prompt: Prompt) -> str:
        """The reference solution, without its calculator annotations."""
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> float:
        """1 when the number that the completion ends on (after ####, in \\boxed, or the last) is the answer."""
        return float(final_number(completion) == parse_number(str(prompt.answer)))

    def baselines(self) -> dict[str, float]:
        return {}


def _read(path: Path, instruction: str) -> list[Prompt]:
    prompts = []
    for line, row in read_jsonl(path):
        question, solution = text_field(row, "question", path, line), text_field(row, "answer", path, line)
        answer = solution.rpartition("####")[2].strip()
        if parse_number(answer) is None:
            raise DataError(f"{path}, line {line}: the answer does not end with #### and a number")
        info = {"solution": _without_annotations(solution)}
        prompts.append(Prompt(f"gsm8k/{row.get('id', line)}", f"{question}\n{instruction}", answer, info))
    return prompts


def _without_annotations(solution: str) -> str:
    """<<48/2=24>> are notes to a calculator, not text."""
    parts = solution.split("<<")
    return parts[0] + "".join(part.partition(">>")[2] for part in parts[1:])
