"""What a supervised run measured on held-out examples: accuracy by difficulty, loss, calibration, logits; of WMSS for both models."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tacit.report.arms import Arm, mean
from tacit.report.html import table, text
from tacit.report.runs import finite

WEAK = "weak_"  # begins the names of what was measured of the weak model
NOTE = "On held-out examples after training; over several seeds their mean. Names as in the metrics guide, docs/metrics.md."


def instruments(compared: Sequence[Arm]) -> str:
    """A row for each number, a column for each arm and one for its weak model; empty where no run measured any."""
    columns = {}
    for arm in compared:
        found = measured(arm)
        name = arm.name if len(compared) > 1 else "model"
        columns[name] = {metric: value for metric, value in found.items() if not metric.startswith(WEAK)}
        if weak := {metric.removeprefix(WEAK): value for metric, value in found.items() if metric.startswith(WEAK)}:
            columns[f"{name}, weak model" if len(compared) > 1 else "weak model"] = weak
    metrics = dict.fromkeys(metric for column in columns.values() for metric in column)
    if not metrics:
        return ""
    rows = [
        f"<tr><th scope='row'>{escape(metric)}</th>{''.join(f'<td>{shown(column.get(metric))}</td>' for column in columns.values())}</tr>"
        for metric in metrics
    ]
    return f"<p class='soft'>{NOTE}</p>" + table(["", *map(escape, columns)], rows)


def measured(arm: Arm) -> dict[str, float | None]:
    """By metric the mean over the arm's runs; bounds of intervals are left out."""
    given = [entry for run in arm.runs if isinstance(entry := (run.result or {}).get("measured"), dict)]
    names = dict.fromkeys(str(name) for entry in given for name in entry if not str(name).endswith(("_low", "_high")))
    return {name: mean([finite(entry.get(name)) for entry in given]) for name in names}


def shown(value: float | None) -> str:
    return text(None if value is None else f"{value:.4g}")
