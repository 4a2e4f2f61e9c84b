"""String edits: a word, and commands that change it one after another, "abcde;d3;r1x;v:" -> "edbx". Procedural, needs no data.

d3 deletes the third letter, i3x inserts x before it, r3x puts x in its place, s25 swaps the second with the fifth, v turns the word round.
"""

from __future__ import annotations

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range
from tacit.tasks.reversal import LETTERS

LONGEST = 9  # letters: a place is one digit


class StringEdits(Procedural):
    """Words of 4 to 7 letters and `min_edits` to `max_edits` commands. The difficulty is the number of commands."""

    name = "string_edits"
    alphabet = "".join(sorted({*LETTERS, *"dirsv0123456789;:"}))

    def __init__(self, min_edits: int = 1, max_edits: int = 3):
        check_range("string_edits", "edits", min_edits, max_edits, least=1)
        self.min_edits, self.max_edits = min_edits, max_edits

    def draw(self, rng: np.random.Generator) -> Prompt:
        count = int(rng.integers(self.min_edits, self.max_edits, endpoint=True))
        word = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=rng.integers(4, 7, endpoint=True)))
        text, result = word, word
        for _ in range(count):
            command = _command(rng, len(result))
            text, result = f"{text};{command}", edit(result, command)
        return Prompt(f"string_edits/{text}", f"{text}:", result, {"difficulty": f"{count} edits"})


def edit(word: str, command: str) -> str:
    """The word after one command; places count from 1."""
    kind, at = command[0], int(command[1]) - 1 if len(command) > 1 else 0
    match kind:
        case "d":
            return word[:at] + word[at + 1 :]
        case "i":
            return word[:at] + command[2] + word[at:]
        case "r":
            return word[:at] + command[2] + word[at + 1 :]
        case "s":
            letters, other = list(word), int(command[2]) - 1
            letters[at], letters[other] = letters[other], letters[at]
            return "".join(letters)
        case _:
            return word[::-1]


def _command(rng: np.random.Generator, length: int) -> str:
    kinds = ("d" if length > 2 else "") + ("i" if length < LONGEST else "") + "rsv"
    kind = kinds[rng.integers(len(kinds))]
    first, second = rng.choice(length, size=2, replace=False) + 1
    letter = LETTERS[rng.integers(len(LETTERS))]
    return {"d": f"d{first}", "i": f"i{first}{letter}", "r": f"r{first}{letter}", "s": f"s{first}{second}", "v": "v"}[kind]
