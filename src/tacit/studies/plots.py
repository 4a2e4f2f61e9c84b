"""Pictures of a study as SVG text: a row of dots for each arm, and curves with bands. Colours are those of the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from tacit.core.statistics import paired_t

WIDTH, ROW, LEFT, RIGHT = 520, 22, 170, 16
HEIGHT, BOTTOM, TOP = 260, 26, 10
COLOURS = 8  # --c0 to --c7 of the style
FONT = "font-size='11' fill='var(--soft)'"

Line = tuple[Sequence[int], Sequence[float | None]]


def dots(arms: Mapping[str, Sequence[float | None]]) -> str:
    """Arms from top to bottom: every seed, the mean and its 95 % interval over seeds."""
    found = {arm: [v for v in values if v is not None] for arm, values in arms.items()}
    low, high = span([v for values in found.values() for v in values])
    at = lambda v: LEFT + (v - low) / (high - low) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    height = ROW * len(found) + BOTTOM
    parts = [axis(low, high, at, height - BOTTOM)]
    for row, (arm, values) in enumerate(found.items()):
        y, colour = ROW * (row + 0.5), f"var(--c{row % COLOURS})"
        parts.append(f"<text x='{LEFT - 10}' y='{y + 4:.1f}' text-anchor='end' {FONT}>{escape(arm)}</text>")
        if not values:
            continue
        mean, left, right = paired_t(values, np.zeros(len(values)))
        if math.isfinite(left):
            left, right = max(low, left), min(high, right)
            parts.append(f"<line x1='{at(left):.1f}' x2='{at(right):.1f}' y1='{y}' y2='{y}' stroke='{colour}' stroke-width='5' opacity='.3'/>")
        parts += [f"<circle cx='{at(v):.1f}' cy='{y}' r='3' fill='{colour}' opacity='.7'><title>{v:.4g}</title></circle>" for v in values]
        parts.append(f"<line x1='{at(mean):.1f}' x2='{at(mean):.1f}' y1='{y - 7}' y2='{y + 7}' stroke='{colour}' stroke-width='2.5'/>")
    said = "; ".join(f"{arm} {np.mean(v):.3g}" for arm, v in found.items() if v)
    return svg(height, parts, f"Means: {said}")


def bands(arms: Mapping[str, Sequence[Line]]) -> str:
    """One line for each arm, the mean over its seeds at the steps that all of them have, in a band of one standard deviation."""
    curves = {arm: averaged(lines) for arm, lines in arms.items()}
    edges = [v for _, mean, spread in curves.values() for m, s in zip(mean, spread, strict=True) for v in (m - s, m + s)]
    low, high = span(edges)
    last = max(steps[-1] for steps, _, _ in curves.values())
    first = min(steps[0] for steps, _, _ in curves.values())
    left, bottom = 44, HEIGHT - BOTTOM
    x = lambda s: left + (s - first) / max(1, last - first) * (WIDTH - left - RIGHT)  # noqa: E731
    y = lambda v: bottom - (v - low) / (high - low) * (bottom - TOP)  # noqa: E731
    parts = []
    for tick in ticks(low, high):
        parts.append(f"<line x1='{left}' x2='{WIDTH - RIGHT}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' stroke='var(--line)'/>")
        parts.append(f"<text x='{left - 8}' y='{y(tick) + 4:.1f}' text-anchor='end' {FONT}>{tick:g}</text>")
    parts += [
        f"<text x='{x(step):.1f}' y='{HEIGHT - 6}' text-anchor='{anchor}' {FONT}>step {step}</text>"
        for step, anchor in ((first, "start"), (last, "end"))
    ]
    legend = []
    for n, (arm, (steps, mean, spread)) in enumerate(curves.items()):
        colour = f"var(--c{n % COLOURS})"
        dash = " stroke-dasharray='5 3'" if n >= COLOURS else ""
        upper = [f"{x(s):.1f},{y(m + d):.1f}" for s, m, d in zip(steps, mean, spread, strict=True)]
        lower = [f"{x(s):.1f},{y(m - d):.1f}" for s, m, d in zip(steps, mean, spread, strict=True)]
        parts.append(f"<polygon points='{' '.join([*upper, *reversed(lower)])}' fill='{colour}' opacity='.12'/>")
        line = " ".join(f"{x(s):.1f},{y(m):.1f}" for s, m in zip(steps, mean, strict=True))
        parts.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='1.8'{dash}><title>{escape(arm)}</title></polyline>")
        legend.append(f"<span style='color:{colour};margin-right:12px;white-space:nowrap'>&#9632; <small>{escape(arm)}</small></span>")
    said = "; ".join(f"{arm} {mean[0]:.3g} to {mean[-1]:.3g}" for arm, (_, mean, _) in curves.items())
    return svg(HEIGHT, parts, said) + f"<div>{''.join(legend)}</div>"


def averaged(lines: Sequence[Line]) -> tuple[list[int], list[float], list[float]]:
    """Steps that every line has, mean and standard deviation over the lines."""
    points = [{s: v for s, v in zip(*line, strict=True) if v is not None} for line in lines]
    steps = sorted(set[int].intersection(*(set(p) for p in points)))
    values = np.array([[p[s] for s in steps] for p in points])
    spread = values.std(0, ddof=1) if len(points) > 1 else np.zeros(len(steps))
    return steps, values.mean(0).tolist(), spread.tolist()


def span(values: Sequence[float]) -> tuple[float, float]:
    """Bounds with a little air; shares start at 0 and end at 1 at the most."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return (max(0.0, low - air) if low >= 0 else low - air), (min(1.0, high + air) if low >= 0 and high <= 1 and high + air > 1 else high + air)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between the bounds, four or so."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def axis(low: float, high: float, at: Callable[[float], float], bottom: float) -> str:
    lines = [f"<line x1='{at(t):.1f}' x2='{at(t):.1f}' y1='0' y2='{bottom}' stroke='var(--line)'/>" for t in ticks(low, high)]
    return "".join([*lines, *(f"<text x='{at(t):.1f}' y='{bottom + 16}' text-anchor='middle' {FONT}>{t:g}</text>" for t in ticks(low, high))])


def svg(height: float, parts: Sequence[str], described: str) -> str:
    style = "width:100%;height:auto;display:block"
    return f"<svg viewBox='0 0 {WIDTH} {height:g}' style='{style}' role='img' aria-label='{escape(described, quote=True)}'>{''.join(parts)}</svg>"
