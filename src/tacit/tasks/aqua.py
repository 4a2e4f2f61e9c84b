"""AQuA: algebra word problems with five choices (Ling et al. 2017, "Program Induction by Rationale Generation"). The development split makes
the stream, the test split is held out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tacit.core.answers import final_choice
from tacit.core.rollouts import Prompt
from tacit.tasks.data import DataError, text_field
from tacit.tasks.finite import Finite, Row, load

LETTERS = "ABCDE"
INSTRUCTION = "Solve the problem step by step, and end with the letter of the right choice after ####."


class Aqua(Finite):
    """Reads $TACIT_DATA/aqua/dev.jsonl.gz, and test.jsonl.gz to hold out; or the files `train` and `test`. The prompt ends with `instruction`."""

    name = "aqua"

    def __init__(self, train: str | None = None, test: str | None = None, instruction: str = INSTRUCTION):
        def read(row: Row, path: Path, line: int) -> Prompt:
            question, rationale, correct = (text_field(row, name, path, line) for name in ("question", "rationale", "correct"))
            options = row.get("options")
            if not isinstance(options, list) or correct not in LETTERS[: len(options)]:
                raise DataError(f"{path}, line {line}: expected 'options', a list, and 'correct', the letter of one of them")
            text = "\n".join([question, *map(str, options), instruction])
            return Prompt(f"aqua/{row.get('id', line)}", text, correct, {"solution": f"{rationale}\n#### {correct}"})

        super().__init__(load(train, "aqua/dev.jsonl.gz", read), load(test, "aqua/test.jsonl.gz", read))

    def solve(self, prompt: Prompt) -> str:
        """The rationale of the data, and the letter."""
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> float:
        """1 when the letter that the completion settles on (see answers.final_choice) is the right one."""
        return float(final_choice(completion, LETTERS) == prompt.answer)

    def baselines(self) -> dict[str, float]:
        """majority: always the letter that is right most often in training."""
        letter = Counter(prompt.answer for prompt in self.train).most_common(1)[0][0]
        return {"majority": sum(prompt.answer == letter for prompt in self.test) / len(self.test)}
