"""Curves: which metrics share a chart, and their points. Plain data; the page's script draws it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tacit.report.arms import Arm, mean

MOST_POINTS = 500  # of a line; longer ones are shown as means of equally many steps
MOST_BARS = 60
BAR_COLOURS, OTHER_COLOUR = (0, 6, 2, 7, 1, 3, 4), 5  # neighbours in a stack differ, without shouting
SMALL_STAGE = 0.01  # of the time of a step
MOST_OTHER = 60  # charts of metrics that have no place of their own
SMOOTH_FROM = 30  # points from which a noisy line gets a running mean


@dataclass(frozen=True)
class Plot:
    """One chart: metrics by label, the first being the main one. `smooth`: its steps are noisy, so a running mean is drawn as well."""

    title: str
    metrics: dict[str, str]
    note: str = ""
    points: tuple[str, ...] = ()  # measured now and then: drawn with markers, and with the interval METRIC_low to METRIC_high if recorded
    smooth: bool = False
    log: bool = False
    limit: str = ""  # the metric whose threshold is drawn
    form: str = ".3g"


PLOTS = (
    Plot(
        "Reward and accuracy",
        {"reward/mean": "reward, training", "reward/accuracy": "accuracy, training", "eval/pass@1": "pass@1, held out"},
        points=("eval/pass@1",),
        smooth=True,
        form=".3f",
    ),
    Plot(
        "Held-out MAP",
        {"eval/map": "mean", "eval/documents_map": "papers like a paper", "eval/questions_map": "papers for a question"},
        points=("eval/map", "eval/documents_map", "eval/questions_map"),
        form=".3f",
    ),
    Plot("Loss", {"loss/train": "training", "eval/loss": "held out"}, points=("eval/loss",), smooth=True, form=".4f"),
    Plot(
        "Completion length",
        {"length/mean": "mean", "length/max": "longest", "eval/length": "mean, held out"},
        "tokens",
        points=("eval/length",),
        form=".1f",
    ),
    Plot("Entropy", {"health/entropy": "entropy"}, "nats a token, as the sampler saw it", limit="health/entropy", form=".3f"),
    Plot("Divergence from the reference", {"loss/kl": "KL", "reward/kl": "KL"}, "nats a token"),
    Plot("Policy loss", {"loss/policy": "loss"}, smooth=True),
    Plot("Gradient norm", {"optimiser/grad_norm": "norm"}, "before clipping", smooth=True),
    Plot("Learning rate", {"optimiser/lr": "rate"}, form=".2e"),
    Plot(
        "|Δ log-prob|, trainer and sampler",
        {"health/logp_gap": "mean gap"},
        "right after the weights were handed over",
        log=True,
        limit="health/logp_gap",
        form=".1e",
    ),
    Plot(
        "Rollouts without signal",
        {"health/constant_groups": "constant groups", "health/truncated": "truncated", "health/unscored": "unscored"},
        "shares of what was drawn",
    ),
    Plot("Clipped tokens", {"health/clip_fraction": "share"}, limit="health/clip_fraction"),
    Plot("Effective sample size", {"health/effective_sample_size": "share"}, limit="health/effective_sample_size"),
    Plot(
        "Speed",
        {
            "throughput/tokens_per_second": "whole step",
            "throughput/sampled_tokens_per_second": "sampling alone",
            "throughput/trained_tokens_per_second": "training",
        },
        "tokens a second",
        form=",.0f",
    ),
)

MARKS = {"line": "—", "dashed": "┄", "points": "●"}  # how a style is named in a note


@dataclass
class Chart:
    """What the script draws. A line: name, x, y, colour (index), style (line, faint, points, dashed), key (its entry in the legend)."""

    title: str
    note: str = ""
    value: str = ""  # the latest number of the main line,
    main: str = ""  # and its name, where there are several
    lines: list[dict[str, Any]] = field(default_factory=list)
    limits: list[dict[str, Any]] = field(default_factory=list)  # {"y", "label"}
    log: bool = False
    described: str = ""  # for those who cannot see it


def charts(arms: Sequence[Arm], thresholds: dict[str, tuple[float, float]]) -> list[Chart]:
    """The charts of whatever these arms recorded. `thresholds`: metric -> (low, high)."""
    return [chart(plot, arms, thresholds) for plot in PLOTS if any(metric in arm.metrics for arm in arms for metric in plot.metrics)]


def other_charts(arms: Sequence[Arm]) -> tuple[list[Chart], int]:
    """Charts of metrics without a place in PLOTS, and how many were left out."""
    placed = {name for plot in PLOTS for metric in plot.metrics for name in (metric, f"{metric}_low", f"{metric}_high")}
    names = sorted({name for arm in arms for name in arm.metrics} - placed)
    names = [name for name in names if not name.startswith("time/")]
    return [chart(Plot(name, {name: name}), arms, {}) for name in names[:MOST_OTHER]], max(0, len(names) - MOST_OTHER)


def chart(plot: Plot, arms: Sequence[Arm], thresholds: dict[str, tuple[float, float]]) -> Chart:
    """One arm: a colour per metric. Several: a colour per arm, the metrics told apart by style."""
    drawn = Chart(plot.title, plot.note, log=plot.log)
    here = [metric for metric in plot.metrics if any(metric in arm.metrics for arm in arms)]
    styles = ["points" if metric in plot.points else "line" if n == 0 or len(arms) == 1 else "dashed" for n, metric in enumerate(here)]
    for a, arm in enumerate(arms):
        for m, (metric, style) in enumerate(zip(here, styles, strict=True)):
            if metric in arm.metrics:
                label = plot.metrics[metric]
                key, colour = (label, m) if len(arms) == 1 else (arm.name, a)
                name = label if len(arms) == 1 else f"{arm.name}, {label}" if len(here) > 1 else arm.name
                drawn.lines += lines(
                    arm, metric, {"name": name, "key": key, "colour": colour, "style": style}, smooth=plot.smooth and style != "points"
                )
    if len(arms) == 1:
        drawn.value = format(arms[0].last(here[0]), plot.form)
        drawn.main = plot.metrics[here[0]] if len(here) > 1 else ""
    elif len(here) > 1:
        drawn.note = " · ".join(f"{MARKS[style]} {plot.metrics[metric]}" for metric, style in zip(here, styles, strict=True))
    drawn.limits = limits(thresholds.get(plot.limit))
    drawn.described = describe(drawn, plot.form)
    return drawn


def lines(arm: Arm, metric: str, line: dict[str, Any], *, smooth: bool) -> list[dict[str, Any]]:
    """The line of a metric, over several seeds in a band from the lowest to the highest. A noisy one of one run is drawn twice: faint as it is, and
    strong as its running mean.
    """
    steps, columns = arm.course(metric)
    if line["style"] != "points" and len(arm.runs) == 1:
        columns = {"y": columns["y"]}
    at = [n for n, value in enumerate(columns["y"]) if line["style"] != "points" or value is not None]
    for part, column in columns.items():
        line["x"], line[part] = thin([steps[n] for n in at], [column[n] for n in at])
    if len(arm.runs) > 1:
        line["band"] = True
    if not smooth or len(line["x"]) < SMOOTH_FROM:
        return [rounded(line, columns)]
    width = max(3, len(line["x"]) // 15)
    strong = line | {part: running_mean(line[part], width) for part in columns}
    return [rounded(made, columns) for made in ([strong] if len(arm.runs) > 1 else [line | {"style": "faint"}, strong])]


def rounded(line: dict[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """To six digits: more cannot be seen, and fill the page."""
    return line | {part: [None if value is None else float(f"{value:.6g}") for value in line[part]] for part in parts}


def thin(x: Sequence[int], y: Sequence[float | None], most: int = MOST_POINTS) -> tuple[list[int], list[float | None]]:
    """At most `most` points: means over equally many neighbours, gaps left out of them, at the last step of each."""
    size = math.ceil(len(x) / most) if x else 1
    if size == 1:
        return list(x), list(y)
    ends = range(size, len(x) + size, size)
    return [x[min(end, len(x)) - 1] for end in ends], [mean(y[end - size : end]) for end in ends]


def running_mean(y: Sequence[float | None], width: int) -> list[float | None]:
    """Centred means over `width` neighbours, fewer at the ends; a gap stays a gap."""
    half = width // 2
    return [None if value is None else mean(y[max(0, i - half) : i + half + 1]) for i, value in enumerate(y)]


def limits(threshold: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Lines at the bounds of a threshold that a curve could cross."""
    low, high = threshold or (0.0, math.inf)
    return [{"y": low, "label": f"at least {low:g}"}] * (low > 0) + [{"y": high, "label": f"at most {high:g}"}] * math.isfinite(high)


def describe(drawn: Chart, form: str) -> str:
    """'Entropy: 0.91 at step 0, 0.42 at step 199.'"""
    parts = []
    for line in drawn.lines:
        found = [(x, y) for x, y in zip(line["x"], line["y"], strict=True) if y is not None]
        if line["style"] != "faint" and found:
            (x0, y0), (x1, y1) = found[0], found[-1]
            parts.append(f"{line['name']}: {y0:{form}} at step {x0}, {y1:{form}} at step {x1}")
    return f"{drawn.title}. {'; '.join(parts)}."


# --- where the time goes ---


def stages(arms: Sequence[Arm]) -> list[str]:
    """Stages that took any time, in the order they were recorded."""
    names = dict.fromkeys(name for arm in arms for name in arm.metrics if name.startswith("time/") and name != "time/step")
    return [name for name in names if any(arm.mean(name) for arm in arms)]


def time_bars(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Seconds of a step by stage: over the steps of one arm, or one bar for each of several. Stages that take next to nothing are summed."""
    names = stages(arms)
    if not names:
        return None
    means = {name: max(arm.mean(name) or 0.0 for arm in arms) for name in names}
    small = [name for name in names if means[name] < SMALL_STAGE * sum(means.values())]
    groups = {name.removeprefix("time/"): [name] for name in names if name not in small}
    groups |= {"other": small} if small else {}
    bars = []
    for n, (label, members) in enumerate(groups.items()):
        if len(arms) == 1:
            columns = [thin(steps, course["y"], MOST_BARS) for steps, course in map(arms[0].course, members)]
            x, y = columns[0][0], [sum(value or 0.0 for value in values) for values in zip(*(column for _, column in columns), strict=True)]
        else:
            x, y = [arm.name for arm in arms], [sum(arm.mean(name) or 0.0 for name in members) for arm in arms]
        bars.append({"name": label, "x": x, "y": y, "colour": BAR_COLOURS[n % len(BAR_COLOURS)] if label != "other" else OTHER_COLOUR})
    return {"bars": bars, "horizontal": len(arms) > 1}
