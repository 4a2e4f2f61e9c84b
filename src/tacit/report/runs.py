"""A run folder as a report reads it. Whatever is missing or broken leaves a gap and a note, never an error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tacit.recipe import Loader

FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "result.json")
MOST_TEXT = 2_400_000  # characters of samples on a page, over all its runs
LONGEST_TEXT = 6000  # characters of a prompt or completion


class ReportError(ValueError):
    """No report can be written; why, and what to do, in one sentence."""


@dataclass
class Run:
    """`metrics` has one column per name, aligned with `steps`; None where a step has no such number, or one that is not finite."""

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    steps: list[int] = field(default_factory=list)
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    samples_recorded: int = 0
    result: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> int:
        """Steps that did more than evaluate."""
        columns = [column for name, column in self.metrics.items() if not name.startswith("eval/")]
        return sum(any(value is not None for value in row) for row in zip(*columns, strict=True))

    def last(self, metric: str) -> float | None:
        """The latest number of a metric."""
        return next((value for value in reversed(self.metrics.get(metric, [])) if value is not None), None)

    def mean(self, metric: str) -> float | None:
        values = [value for value in self.metrics.get(metric, []) if value is not None]
        return sum(values) / len(values) if values else None

    def setting(self, *keys: str) -> Any:
        """A value of the config, None where a section on the way is missing."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_runs(paths: Sequence[Path], most_text: int = MOST_TEXT) -> list[Run]:
    """The runs under names that tell them apart, with samples of `most_text` characters between them. Raises ReportError for a folder of no run."""
    if not paths:
        raise ReportError("a report needs at least one run folder")
    for path in paths:
        if not path.is_dir():
            raise ReportError(f"{path}: there is no such folder; give the output folder of a run")
        if not any((path / name).exists() for name in FILES):
            raise ReportError(f"{path}: this is not a run, it holds none of {', '.join(FILES)}")
    return [read_run(path, name, most_text // len(paths)) for path, name in zip(paths, _names(paths), strict=True)]


def read_run(path: Path, name: str, most_text: int = MOST_TEXT) -> Run:
    run = Run(path, name)
    _read_config(run)
    _read_metrics(run)
    if most_text:
        _read_samples(run, most_text)
    _read_result(run)
    if most_text:
        run.samples = [_sample(entry | {"step": max(run.steps, default=0), "role": "held out"}) for entry in examples(run)] + run.samples
    return run


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest tails of the paths that differ from one another."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({n})" for n, path in enumerate(paths, 1)]  # the same folder given twice


def _read_config(run: Run) -> None:
    try:
        run.config_text = (run.path / "config.yaml").read_text(encoding="utf-8", errors="replace")
        config = yaml.load(run.config_text, Loader)
    except FileNotFoundError:
        run.notes.append("config.yaml is missing, so the settings of this run are not known")
        return
    except yaml.YAMLError:
        config = None
    if isinstance(config, dict):
        run.config = config
    else:
        run.notes.append("config.yaml is not readable as settings; it is shown as it is")


def _read_metrics(run: Run) -> None:
    rows: dict[int, dict[str, float | None]] = {}
    for _, record in _records(run, "metrics.jsonl"):
        row = rows.setdefault(record["step"], {})
        row |= {name: finite(value) for name, value in record.items() if name != "step" and isinstance(value, int | float | None)}
    run.steps = sorted(rows)
    names = dict.fromkeys(name for step in run.steps for name in rows[step])
    run.metrics = {name: [rows[step].get(name) for step in run.steps] for name in names}
    run.metrics = {name: column for name, column in run.metrics.items() if any(value is not None for value in column)}


def _read_samples(run: Run, most_text: int) -> None:
    """Whole groups, evenly spread over the run, the first and the last among them."""
    groups: list[list[int]] = []  # line numbers of each group, which stand together
    sizes: dict[int, int] = {}  # characters of a line, as far as the page shows them
    before: object = None
    for number, record in _records(run, "samples.jsonl"):
        here = (record["step"], record.get("group"))
        if here != before or record.get("group") is None:
            groups.append([])
        groups[-1].append(number)
        sizes[number] = len(json.dumps(_sample(record)))
        before = here
    run.samples_recorded = len(sizes)
    chosen = set(_spread(groups, sizes, most_text))
    if chosen:
        run.samples = [_sample(record) for number, record in _records(run, "samples.jsonl", tell=False) if number in chosen]


def _spread(groups: Sequence[Sequence[int]], sizes: Mapping[int, int], most: int) -> list[int]:
    """The members of as many groups, evenly spaced, as stay within `most` by their sizes; at least one group, cut if need be."""
    total = sum(sizes[number] for group in groups for number in group)
    count = len(groups) if total <= most else max(1, len(groups) * most // total)
    while True:
        picks = [groups[round(i * (len(groups) - 1) / max(1, count - 1))] for i in range(count)] if count > 1 else list(groups[-1:])
        members = [number for group in picks for number in group]
        if sum(sizes[number] for number in members) <= most:
            return members
        if count == 1:
            until = [sum(sizes[number] for number in members[: n + 1]) for n in range(len(members))]
            return members[: max(1, sum(size <= most for size in until))]
        count -= 1


def _sample(record: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a sample, long texts cut in the middle."""
    reward, advantage = (finite(record.get(name)) for name in ("reward", "advantage"))
    given, answer = record.get("parts"), record.get("answer")
    parts = {str(name): finite(value) for name, value in given.items()} if isinstance(given, dict) else {}
    word = parts.get("raw") if parts.get("raw") is not None else reward  # the verifier's own, before any shaping
    return {
        "step": record["step"],
        "group": "" if record.get("group") is None else str(record["group"]),
        "role": str(record.get("role") or "training"),
        "prompt": _cut(record.get("prompt")),
        "completion": _cut(record.get("completion")),
        "answer": None if answer is None else _cut(answer),
        "reward": reward,
        "verdict": "unscored" if reward is None else "right" if word is not None and word > 0.5 else "wrong",
        "parts": parts,
        "advantage": advantage,
        "failure": str(record.get("failure") or ""),
        "finished": record.get("finished") is not False,
    } | _drawn(record)


def _drawn(record: dict[str, Any]) -> dict[str, Any]:
    """`logps` of the tokens as drawn and the `lengths` of their texts; `drawn` is the whole of them where it is not the completion."""
    tokens, logps, completion = record.get("tokens"), record.get("logps"), record.get("completion")
    if not (isinstance(tokens, list) and isinstance(logps, list) and isinstance(completion, str) and 0 < len(tokens) == len(logps)):
        return {}
    texts, logps = [text if isinstance(text, str) else "" for text in tokens], [finite(logp) for logp in logps]
    drawn = "".join(texts)
    if len(drawn) > LONGEST_TEXT:
        return {}
    lengths = [len(text.encode("utf-16-le", "surrogatepass")) // 2 for text in texts]  # as JavaScript counts
    return {"lengths": lengths, "logps": [None if logp is None else round(logp, 2) for logp in logps]} | (
        {} if drawn == completion else {"drawn": drawn}
    )


def _cut(text: Any) -> str:
    text = text if isinstance(text, str) else "" if text is None else json.dumps(text, ensure_ascii=False)
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _read_result(run: Run) -> None:
    try:
        result = json.loads((run.path / "result.json").read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return
    except ValueError:
        result = None
    if isinstance(result, dict):
        run.result = result
    else:
        run.notes.append("result.json is not readable and is left out")


def examples(run: Run) -> list[dict[str, Any]]:
    """Held-out completions that the result names."""
    given = (run.result or {}).get("examples")
    return [entry for entry in given if isinstance(entry, dict) and "completion" in entry] if isinstance(given, list) else []


def _records(run: Run, name: str, *, tell: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is an object with a step; others are counted in a note."""
    broken: list[int] = []
    path = run.path / name
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            record = _parsed(line)
            if record is not None:
                yield number, record
            elif line.strip():
                broken.append(number)
    if broken and tell:
        lines = f"line {broken[0]} is" if len(broken) == 1 else f"{len(broken)} lines are (the first is line {broken[0]})"
        run.notes.append(f"{name}: {lines} not a whole JSON object with a step, and left out")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def finite(value: Any) -> float | None:
    """The number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
