"""The user's own prompts: a file of JSON lines or Parquet, or a data set of the hub, with a mapping of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tacit.core.rollouts import TURNS, Prompt
from tacit.tasks.data import DataError
from tacit.tasks.finite import Finite
from tacit.tasks.tables import HUB, Row, hub_rows, rows

ROLES = ("prompt", "answer", "id", "messages")


class Records(Finite):
    """`columns` says which column is prompt, answer and id where they are named otherwise; all others reach the reward by name.

    A row without a prompt may hold a conversation instead, `messages`, a list of {role, content}: each turn of the assistant is an answer, and all
    before it its prompt.

    Held out are the records of the file `heldout`, or else the last `heldout_share` of this one; a record whose prompt is held out word
    for word is not trained on. The answer may be missing where the reward does not need it.

    Raises DataError, naming file and line: nothing in the file, a broken line, a missing column, an id that occurs twice, nothing to train on.
    """

    def __init__(self, path: str, columns: Mapping[str, str] | None = None, heldout: str | None = None, heldout_share: float = 0.1):
        self.name = Path(path).name
        self._divide(columns, heldout_share, path, rows(path), None if heldout is None else (heldout, rows(heldout)))

    def _divide(
        self, columns: Mapping[str, str] | None, share: float, source: str, found: Sequence[Row], held: tuple[str, Sequence[Row]] | None
    ) -> None:
        if unknown := sorted(set(columns or ()) - set(ROLES)):
            raise DataError(f"task.columns maps {', '.join(ROLES)} to columns of the file; there is no {unknown[0]!r}")
        if not 0 < share < 1:
            raise DataError(f"heldout_share must lie between 0 and 1, not at {share}")
        self.columns = {role: role for role in ROLES} | dict(columns or {})
        if held is not None:
            records, test = self._prompts(source, found), self._prompts(*held)
        else:
            kept = len(found) - max(1, round(share * len(found)))
            seen = dict[str, str]()
            records, test = self._prompts(source, found[:kept], seen), self._prompts(source, found[kept:], seen)
        super().__init__(records, test)
        if not self.train:
            raise DataError(f"{source} leaves nothing to train on: all its prompts are held out; add more, or others as task.options.heldout")

    def solve(self, prompt: Prompt) -> str | None:
        return None if prompt.answer is None else str(prompt.answer)

    def verify(self, prompt: Prompt, completion: str) -> float | None:
        """1 when the completion is the answer, spaces around it aside; None without an answer."""
        return None if prompt.answer is None else float(completion.strip() == str(prompt.answer).strip())

    def baselines(self) -> dict[str, float]:
        return {}

    def _prompts(self, source: str, found: Sequence[Row], seen: dict[str, str] | None = None) -> list[Prompt]:
        """`seen`: ids, and where they stand."""
        names, seen, prompts = self.columns, {} if seen is None else seen, list[Prompt]()
        renamed = [column for role, column in names.items() if column != role]  # asked for by name: they must be there
        for place, row in found:
            talk = names["messages"] in row and names["prompt"] not in row
            if missing := [column for column in ([] if talk else [names["prompt"]]) + renamed if column not in row]:
                raise DataError(f"{source}, {place}: there is no column {missing[0]!r}, only {', '.join(row)}")
            if talk:
                prompts += self._turns(source, place, row, seen)
                continue
            text = row[names["prompt"]]
            if not isinstance(text, str):
                raise DataError(f"{source}, {place}: column {names['prompt']!r} is {type(text).__name__}, not text")
            key = self._key(source, place, row, seen)
            prompts.append(Prompt(key, text, row.get(names["answer"]), self._others(row, "prompt", "answer", "id")))
        return prompts

    def _turns(self, source: str, place: str, row: Mapping[str, Any], seen: dict[str, str]) -> list[Prompt]:
        """A prompt for each turn of the assistant in a conversation."""
        turns, column = row[self.columns["messages"]], self.columns["messages"]
        if not isinstance(turns, list | tuple) or not all(isinstance(t, Mapping) and isinstance(t.get("role"), str) for t in turns):
            raise DataError(f"{source}, {place}: column {column!r} must be a list of messages with role and content")
        if bad := next((n for n, turn in enumerate(turns, 1) if not isinstance(turn.get("content"), str)), None):
            raise DataError(f"{source}, {place}: the content of message {bad} in column {column!r} is not text")
        answers = [n for n, turn in enumerate(turns) if n and turn["role"] == "assistant"]
        if not answers:
            raise DataError(f"{source}, {place}: the assistant answers nothing in column {column!r}, so there is nothing to learn from")
        key = self._key(source, place, row, seen)
        found = list[Prompt]()
        for n in answers:
            before = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:n]]
            text = before[0]["content"] if n == 1 else "\n".join(f"{turn['role']}: {turn['content']}" for turn in before)
            name = key if len(answers) == 1 else f"{key}/{n + 1}"
            found.append(Prompt(name, text, turns[n]["content"], self._others(row, *ROLES) | {TURNS: before}))
        return found

    def _key(self, source: str, place: str, row: Mapping[str, Any], seen: dict[str, str]) -> str:
        key = str(row.get(self.columns["id"], f"{Path(source).name}:{place.split()[1]}"))
        if key in seen:
            raise DataError(f"{source}, {place}: the id {key!r} stands on {seen[key]} already; ids name a record for good")
        seen[key] = place
        return key

    def _others(self, row: Mapping[str, Any], *roles: str) -> dict[str, Any]:
        """The columns that are none of these."""
        return {k: v for k, v in row.items() if k not in [self.columns[role] for role in roles]}


class HubRecords(Records):
    """The same over the data set owner/name of the hub: `split` of it, `subset` where it has several, `revision` to pin one.

    Held out are the records of the split `heldout`, or else the last `heldout_share` of `split`.
    """

    def __init__(
        self,
        path: str,
        columns: Mapping[str, str] | None = None,
        split: str = "train",
        heldout: str | None = None,
        heldout_share: float = 0.1,
        subset: str | None = None,
        revision: str | None = None,
    ):
        self.name = f"{HUB}{path}"
        held = None if heldout is None else (f"{self.name}/{heldout}", hub_rows(path, heldout, subset, revision))
        self._divide(columns, heldout_share, f"{self.name}/{split}", hub_rows(path, split, subset, revision), held)
