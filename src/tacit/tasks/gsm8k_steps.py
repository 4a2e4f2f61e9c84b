"""GSM8K calculator steps: real arithmetic, as people wrote it into their solutions: "48/2=" -> "24".

The worked solutions of GSM8K carry calculator annotations, <<48/2=24>>. Each with at least one operator is an example; the few that
cannot be read (560//10), or whose value is not exactly that of the expression, are dropped and counted.

The held-out set is kept apart twice. By problem: one problem in ten, chosen by a hash of its text, gives nothing to the stream. And by
normal form (see expressions.parse), because arithmetic repeats: two of three expressions of the held-out problems occur in the others
as well. `heldout` returns the rest, which a table of the training stream could not answer; each form once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tacit.core.numbers import parse_number, write_number
from tacit.core.rollouts import Prompt
from tacit.tasks.base import first, stream_order
from tacit.tasks.data import DataError, locate, read_jsonl, text_field
from tacit.tasks.expressions import Expression, parse
from tacit.tasks.procedural import is_held_out

FILE = "gsm8k/train.jsonl.gz"
HELD_OUT = 10  # one problem in so many is held out
ANNOTATION = re.compile(r"<<([^<>]*)>>")
OPERATION = re.compile(r"[\d.)]\s*[-+*/]")
NO_OPERATOR = re.compile(r"[^-+*/]+")


class Step(NamedTuple):
    """One annotation: the expression as written, without spaces; its value as we write it; its normal form."""

    id: str
    text: str
    answer: str
    form: str


class Gsm8kSteps:
    """Reads $TACIT_DATA/gsm8k/train.jsonl.gz, or `path`. `counts` says what became of the annotations.

    Raises DataError when the file is missing, broken, or leaves nothing to train on or to hold out.
    """

    name = "gsm8k_steps"
    alphabet = "0123456789.+-*/()="

    def __init__(self, path: str | None = None):
        source = Path(path) if path else locate(FILE)
        self.counts: Counter[str] = Counter()
        self.train: list[Step] = []
        others: dict[str, Step] = {}
        for number, row in read_jsonl(source):
            question, solution = (text_field(row, name, source, number) for name in ("question", "answer"))
            steps = self._steps(str(row.get("id", number)), solution)
            if is_held_out(question, HELD_OUT):
                for step in steps:
                    others.setdefault(step.form, step)
            else:
                self.train.extend(steps)
        forms = {step.form for step in self.train}
        self.unseen = [step for step in others.values() if step.form not in forms]
        self.seen = [step for step in others.values() if step.form in forms]
        if not self.train or not self.unseen:
            raise DataError(
                f"{source} gives {len(self.train)} steps to train on and {len(self.unseen)} unseen ones to hold out: it needs some of both"
            )

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return _prompt(self.train[stream_order(ordinal, len(self.train), seed)])

    def heldout(self, count: int, unseen: bool = True) -> list[Prompt]:
        """Expressions of held-out problems: those whose form the stream never shows, or with unseen=False those that it does."""
        return [_prompt(step) for step in first(self.unseen if unseen else self.seen, count, self.name)]

    def solve(self, prompt: Prompt) -> str:
        return str(prompt.answer)

    def verify(self, prompt: Prompt, completion: str) -> float:
        """1 when the completion is the number, however written (24.0, 024), and nothing else."""
        return float(parse_number(completion) == Fraction(prompt.answer))

    def baselines(self) -> dict[str, float]:
        """Accuracy on the unseen expressions of three rules that do no arithmetic.

        lookup: the most frequent training answer of the same form, which is 0 by construction; majority: the most frequent training
        answer; nearest: the answer of the training expression with the same operators at the smallest edit distance.
        """
        table: dict[str, str] = {step.form: step.answer for step in self.train}
        majority = Counter(step.answer for step in self.train).most_common(1)[0][0]
        nearest = Nearest(self.train)
        guesses = {
            "lookup": [table.get(step.form) for step in self.unseen],
            "majority": [majority for _ in self.unseen],
            "nearest": [nearest.answer(step.text) or majority for step in self.unseen],
        }
        return {rule: float(np.mean([g == s.answer for g, s in zip(gs, self.unseen, strict=True)])) for rule, gs in guesses.items()}

    def _steps(self, problem: str, solution: str) -> Iterator[Step]:
        for number, annotation in enumerate(ANNOTATION.findall(solution)):
            text, _, value = "".join(annotation.split()).partition("=")
            self.counts["annotations"] += 1
            if not OPERATION.search(text):
                self.counts["no operator"] += 1
            elif (expression := _read(text)) is None:
                self.counts["unreadable"] += 1
            elif (answer := write_number(expression.value)) is None or parse_number(value) != expression.value:
                self.counts["wrong value"] += 1
            else:
                yield Step(f"{problem}.{number}", text, answer, expression.form)


class Nearest:
    """The training expression nearest to another by edit distance, among those with the same operators in the same order."""

    def __init__(self, steps: list[Step]):
        common = dict(Counter((step.text, step.answer) for step in steps).most_common())  # the more frequent first: it wins ties
        groups: dict[str, list[tuple[str, str]]] = {}
        for text, answer in common:
            groups.setdefault(NO_OPERATOR.sub("", text), []).append((text, answer))
        self.groups = {operators: (np.array([text for text, _ in group]), [answer for _, answer in group]) for operators, group in groups.items()}

    def answer(self, text: str) -> str | None:
        """Its answer; None when no training expression has these operators."""
        group = self.groups.get(NO_OPERATOR.sub("", text))
        return group[1][int(edit_distances(text, group[0]).argmin())] if group else None


def edit_distances(text: str, others: NDArray[np.str_]) -> NDArray[np.int16]:
    """(N,) Levenshtein distances of `text` to each of `others`, row by row for all of them at once."""
    table = others.view(np.uint32).reshape(len(others), -1)  # code points, 0 behind the end
    columns = np.arange(table.shape[1] + 1, dtype=np.int16)
    distances = np.tile(columns, (len(others), 1))
    for row, character in enumerate(text, start=1):
        changed = np.full_like(distances, row)
        changed[:, 1:] = np.minimum(distances[:, :-1] + (table != ord(character)), distances[:, 1:] + 1)
        distances = np.minimum.accumulate(changed - columns, axis=1) + columns  # insertions, from left to right
    return distances[np.arange(len(others)), np.char.str_len(others)]


def _read(text: str) -> Expression | None:
    try:
        return parse(text)
    except (ValueError, ZeroDivisionError):
        return None


def _prompt(step: Step) -> Prompt:
    return Prompt(id=f"gsm8k_steps/{step.id}", text=f"{step.text}=", answer=step.answer, info={"form": step.form})
