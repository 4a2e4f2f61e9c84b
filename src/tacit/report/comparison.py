"""Several runs side by side: a row for each arm, with intervals, and its distance from the first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tacit.core.progress import duration
from tacit.report.arms import Arm, difference, mean, over_seeds
from tacit.report.html import ABSENT, table
from tacit.report.runs import Run
from tacit.report.summary import seconds_of, task
from tacit.report.verdict import Estimate, certain, shower, signed


def comparison(compared: Sequence[Arm]) -> str:
    """A row for each arm, the others against the first."""
    first, several = compared[0], len(compared) > 1
    head = [
        "Run",
        "Task",
        "Seeds",
        "Steps",
        "Before",
        "After",
        "Gain",
        *([f"Against {escape(first.name)}"] if several else []),
        "Last reward",
        "Time",
    ]
    rows = []
    for n, arm in enumerate(compared):
        run, reward = arm.runs[0], arm.last("reward/mean")
        steps = sorted({r.trained for r in arm.runs})
        seconds = mean([seconds_of(run) for run in arm.runs])
        cells = [
            escape(task(run)),
            seeds_cell(arm),
            "–".join(f"{count:,}" for count in dict.fromkeys((steps[0], steps[-1]))),
            *(estimate_cell(run, over_seeds(arm, name)) for name in ("before", "after")),
            difference_cell(run, over_seeds(arm, "gain")),
            *([difference_cell(run, *(difference(arm, first) if n else None) or (None, ""))] if several else []),
            "" if reward is None else f"{reward:.3f}",
            "" if seconds is None else duration(seconds),
        ]
        name = f"<th scope='row'><i class='swatch run{n % 8}'></i>{escape(arm.name)}</th>"
        named = [f"<td data-label='{label}'>{cell or ABSENT}</td>" for label, cell in zip(head[1:], cells, strict=True)]
        rows.append(f"<tr>{name}{''.join(named)}</tr>")
    return table(head, rows, "comparison") + f"<p class='soft'>{about_intervals(compared)}</p>"


def about_intervals(compared: Sequence[Arm]) -> str:
    """What the intervals of the comparison mean."""
    words = ["Intervals are 95%. 'Against' compares what the runs reached after training."]
    if any(len(arm.runs) > 1 for arm in compared):
        words.append("Over several seeds: the mean of the seeds with Student's interval; two arms with seeds in common are paired by seed.")
    if any(len(arm.runs) == 1 for arm in compared):
        words.append("Of a single run: over its held-out problems; how far another seed would be from it is not in them.")
    return " ".join(words)


def seeds_cell(arm: Arm) -> str:
    """How many seeds there are, and how many of them have a result."""
    done = len([run for run in arm.runs if run.result])
    return f"{len(arm.runs)}" + (f" <small>{done} with a result</small>" if done < len(arm.runs) else "")


def estimate_cell(run: Run, found: Estimate | None) -> str:
    if found is None:
        return ""
    show = shower(run)
    return show(found.mean) + (" <small>{} to {}</small>".format(*map(show, found.interval)) if found.interval else "")


def difference_cell(run: Run, found: Estimate | None, how: str = "") -> str:
    """A gain or a gap, coloured when its interval leaves no doubt about the direction."""
    if found is None:
        return ""
    span = "{} to {}".format(*(signed(run, x) for x in found.interval)) if found.interval else ""
    small = ", ".join(filter(None, (span, how)))
    return f"<span class='{certain(run, found)[0]}'>{signed(run, found.mean, unit=True)}</span>" + (f" <small>{small}</small>" if small else "")
