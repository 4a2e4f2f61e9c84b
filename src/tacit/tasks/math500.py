"""MATH: competition problems whose answers are LaTeX. Held out are those of MATH-500, the stream is the rest of the MATH test split.

Sources: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset"; Lightman et al. 2023, "Let's Verify Step by
Step", for the 500.
"""

from __future__ import annotations

from pathlib import Path

from tacit.core.rollouts import Prompt
from tacit.tasks.data import text_field
from tacit.tasks.finite import Finite, Row, load

INSTRUCTION = "Solve the problem step by step, and end with the answer in \\boxed{}."


class Math500(Finite):
    """Reads $TACIT_DATA/math500/pool.jsonl.gz, and test.jsonl.gz to hold out; or the files `train` and `test`. The prompt ends with `instruction`.

    The difficulty is the level. Whether two formulas are equal is for math-verify to say, in a worker: see `reward`.
    """

    name = "math500"
    reward = "tacit.rewards.math:score"

    def __init__(self, train: str | None = None, test: str | None = None, instruction: str = INSTRUCTION):
        def read(row: Row, path: Path, line: int) -> Prompt:
            problem, answer, level = (text_field(row, name, path, line) for name in ("problem", "answer", "level"))
            key = row.get("unique_id", row.get("id", line))
            return Prompt(f"math500/{key}", f"{problem}\n{instruction}", answer, {"difficulty": level.lower(), "subject": row.get("subject")})

        super().__init__(load(train, "math500/pool.jsonl.gz", read), load(test, "math500/test.jsonl.gz", read))

    def solve(self, prompt: Prompt) -> str:
        """The answer alone: the data hold no worked solutions."""
        return f"\\boxed{{{prompt.answer}}}"
