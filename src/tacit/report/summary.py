"""The top of the page: what the runs are and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tacit.core.progress import duration
from tacit.report import health
from tacit.report.arms import Arm, arms, over_seeds
from tacit.report.runs import Run, finite
from tacit.report.verdict import Estimate, baselines, is_fraction, shower, verdict

KINDS = {
    "rl": "reinforcement learning",
    "sft": "supervised fine-tuning",
    "wmss": "supervised fine-tuning with a weak past self",
    "retrieval": "an encoder of papers",
}


def header(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        title, facts = f"{len(runs)} runs", [run.name for run in runs]
    else:
        [run] = runs
        seed = run.setting("seed")
        title, facts = run.name, [kind(run), task(run), model(run), "" if seed is None else f"seed {seed}"]
    return f"<h1>{escape(title)}</h1><p class='about'>{escape(' · '.join(filter(None, facts)))}</p>"


def kind(run: Run) -> str:
    return KINDS.get(str(run.setting("kind")), "")


def task(run: Run) -> str:
    return str(run.setting("task", "name") or (run.result or {}).get("task") or "")


def model(run: Run) -> str:
    path, tiny, init = run.setting("model", "path"), run.setting("model", "tiny"), run.setting("init")
    if init:
        return f"starting from {init}"
    if isinstance(tiny, dict):
        size = [f"{tiny[key]} {unit}" for key, unit in (("layers", "layers"), ("hidden", "wide")) if key in tiny]
        return " ".join(["tiny", str(tiny.get("family", "")), *([f"({', '.join(size)})"] if size else [])])
    return str(path or "")


def verdict_card(run: Run) -> str:
    said = verdict(run)
    word = {"good": "improved", "bad": "got worse", "open": "inconclusive", "none": ""}[said.tone]
    pill = f"<span class='pill {said.tone}'>{word}</span>" if word else ""
    words = f"{pill}<p class='headline'>{escape(said.headline)}</p><p class='sentence'>{escape(said.sentence)}</p>"
    return f"<div class='card verdict {said.tone}'><div>{words}</div>{intervals(arms([run]))}</div>"


def tiles(run: Run) -> str:
    """The run in a row of numbers."""
    found = health.findings(run)
    troubled = sum(f.beyond > 0 for f in found)
    planned, seconds = run.setting("steps"), seconds_of(run)
    facts = {
        "Steps": f"{run.trained:,}" + (f" <small>of {planned:,}</small>" if isinstance(planned, int) else ""),
        "Last reward": number(run.last("reward/mean"), ".3f"),
        "Last loss": number(run.last("loss/train"), ".4f"),
        "Mean length": number(run.last("length/mean"), ".1f", "tokens"),
        "Speed": number(run.last("throughput/tokens_per_second") or run.last("throughput/trained_tokens_per_second"), ",.0f", "tokens/s"),
        "Time": "" if seconds is None else duration(seconds),
        "Health": f"{troubled} <small>need{'s' * (troubled == 1)} attention</small>" if troubled else "in order" if found else "",
    }
    cards = [f"<div class='card'><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value]
    return f"<dl class='tiles'>{''.join(cards)}</dl>"


def number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else format(value, form) + (f" <small>{unit}</small>" if unit else "")


def seconds_of(run: Run) -> float | None:
    """Wall time of the run: as the result states it, else the sum of its steps."""
    stated = finite((run.result or {}).get("seconds"))
    if stated is not None:
        return stated
    steps = [value for value in run.metrics.get("time/step", []) if value is not None]
    return sum(steps) if steps else None


def intervals(compared: Sequence[Arm]) -> str:
    """Estimates with their intervals on one common axis: before, after, baselines."""
    rows: dict[str, tuple[Estimate, str, str]] = {}  # label -> (estimate, its text, style)
    runs = [run for arm in compared for run in arm.runs]
    shares = all(map(is_fraction, runs))
    for n, arm in enumerate(compared):
        show, place, style = shower(arm.runs[0]), f"{arm.name}, " if len(compared) > 1 else "", f"run{n % 8} " if len(compared) > 1 else ""
        for name in ("before", "after"):
            if (found := over_seeds(arm, name)) is not None:
                rows[place + name] = (clipped(found) if shares else found, show(found.mean), style + name)
    for run in runs:
        rows |= {f"{name} baseline": (Estimate(value), shower(run)(value), "baseline") for name, value in baselines(run).items()}
    if not rows:
        return ""
    ends = [x for found, _, _ in rows.values() for x in (found.mean, *(found.interval or ()))]
    low, high = min(0.0, *ends) if shares else min(ends), max(ends)
    span = 1.04 * (high - low) or 1.0

    def track(found: Estimate) -> str:
        dot = f"<i class='dot' style='left:{100 * (found.mean - low) / span:.2f}%'></i>"
        if found.interval is None:
            return dot
        left, right = (100 * (x - low) / span for x in found.interval)
        return f"<i class='whisker' style='left:{left:.2f}%;width:{right - left:.2f}%'></i>{dot}"

    items = [
        f"<li class='{style}'><span>{escape(label)}</span><span class='track'>{track(found)}</span><b>{shown}</b></li>"
        for label, (found, shown, style) in rows.items()
    ]
    return f"<ul class='intervals{' card' * (len(runs) > 1)}' aria-label='Estimates with 95% intervals'>{''.join(items)}</ul>"


def clipped(found: Estimate) -> Estimate:
    """The interval of a share over a few seeds can reach beyond what a share can be."""
    return found if found.interval is None else Estimate(found.mean, (max(0.0, found.interval[0]), min(1.0, found.interval[1])))
