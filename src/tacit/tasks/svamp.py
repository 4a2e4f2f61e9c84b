"""SVAMP: one-step word problems, varied so that shallow cues mislead (Patel et al. 2021, "Are NLP Models really able to Solve Simple Math Word
Problems?"). All are test problems; a share of them is held out, the others make the stream."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from tacit.core.numbers import final_number, parse_number, write_number
from tacit.core.rollouts import Prompt
from tacit.tasks.data import DataError, text_field
from tacit.tasks.finite import Finite, Row, load, split
from tacit.tasks.gsm8k import INSTRUCTION


class Svamp(Finite):
    """Reads $TACIT_DATA/svamp/test.jsonl.gz, or `path`. With heldout_share 1 all is held out: an evaluation on the whole set. The difficulty is
    the operation.
    """

    name = "svamp"

    def __init__(self, path: str | None = None, heldout_share: float = 0.5, instruction: str = INSTRUCTION):
        def read(row: Row, source: Path, line: int) -> Prompt:
            body, question, equation, kind = (text_field(row, name, source, line).strip() for name in ("Body", "Question", "Equation", "Type"))
            if (answer := _number(row.get("Answer"))) is None:
                raise DataError(f"{source}, line {line}: the column 'Answer' is no number")
            text = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {question}\n{instruction}"
            info = {"difficulty": kind.replace("Divison", "Division").lower(), "solution": f"{equation} = {answer}\n#### {answer}"}
            return Prompt(f"svamp/{row.get('ID', line)}", text, answer, info)

        super().__init__(*split(load(path, "svamp/test.jsonl.gz", read), heldout_share, key=lambda prompt: prompt.id))

    def solve(self, prompt: Prompt) -> str:
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> float:
        """1 when the number that the completion ends on is the answer."""
        return float(final_number(completion) == parse_number(str(prompt.answer)))


def _number(value: object) -> str | None:
    """As it is written: 51.0 is "51"."""
    return write_number(Fraction(repr(value))) if isinstance(value, int | float) else None
