"""The user's own prompts: a file of JSON lines or Parquet, or a data set of the hub, with a mapping of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tacit.core.rollouts import Prompt
from tacit.tasks.data import DataError
from tacit.tasks.finite import Finite
from tacit.tasks.tables import HUB, Row, hub_rows, rows

ROLES = ("prompt", "answer", "id")


class Records(Finite):
    """`columns` says which column is prompt, answer and id where they are named otherwise; all others reach the reward by name.

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
        records = self._prompts(source, found)
        if held is not None:
            test = self._prompts(*held)
        else:
            kept = len(records) - max(1, round(share * len(records)))
            records, test = records[:kept], records[kept:]
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

    def _prompts(self, source: str, found: Sequence[Row]) -> list[Prompt]:
        names, seen, prompts = self.columns, dict[str, str](), list[Prompt]()
        renamed = [column for role, column in names.items() if column != role]  # asked for by name: they must be there
        for place, row in found:
            if missing := [column for column in (names["prompt"], *renamed) if column not in row]:
                raise DataError(f"{source}, {place}: there is no column {missing[0]!r}, only {', '.join(row)}")
            text = row[names["prompt"]]
            if not isinstance(text, str):
                raise DataError(f"{source}, {place}: column {names['prompt']!r} is {type(text).__name__}, not text")
            key = str(row.get(names["id"], f"{Path(source).name}:{place.split()[1]}"))
            if key in seen:
                raise DataError(f"{source}, {place}: the id {key!r} stands on {seen[key]} already; ids name a record for good")
            seen[key] = place
            info: dict[str, Any] = {k: v for k, v in row.items() if k not in names.values()}
            prompts.append(Prompt(key, text, row.get(names["answer"]), info))
        return prompts


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
