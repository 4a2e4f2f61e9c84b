"""Live progress on a terminal: a bar with the time left, the headline numbers with their course, and where the time of a step goes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tacit.core.progress import HEADLINES, Clock, Pace, duration, shown

BLOCKS = "▁▂▃▄▅▆▇█"
TREND = 24  # characters of a sparkline


class LiveReporter:
    """A rich display that stays at the bottom of the terminal while messages scroll by above it."""

    def __init__(self, console: Console | None = None, clock: Clock = time.perf_counter):
        self.console, self.clock = console or Console(), clock
        self.history: dict[str, list[float]] = {}
        self.stages: dict[str, float] = {}
        self.pace = Pace("", None, clock)
        self.live: Live | None = None

    def phase(self, name: str, total: int | None) -> None:
        self.close()  # leaves the last picture of the phase before on the screen
        self.pace, self.history, self.stages = Pace(name, total, self.clock), {}, {}
        self.live = Live(console=self.console, get_renderable=self._picture, refresh_per_second=4)
        self.live.start()

    def step(self, index: int, metrics: Mapping[str, float]) -> None:
        self.pace.step(index)
        for metric in HEADLINES:
            if metric in metrics:
                self.history.setdefault(metric, []).append(metrics[metric])
        self.stages = {name.removeprefix("time/"): seconds for name, seconds in metrics.items() if name.startswith("time/") and name != "time/step"}

    def message(self, text: str) -> None:
        self.console.print(Text(text))

    def warning(self, text: str) -> None:
        self.console.print(Text(f"warning: {text}", style="yellow"))

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _picture(self) -> RenderableType:
        return Group(self._bar(), *([self._numbers()] if self.history else []), *([self._times()] if any(self.stages.values()) else []))

    def _bar(self) -> RenderableType:
        left = self.pace.left()
        row = Table.grid(padding=(0, 2))
        steps = f"{self.pace.done}/{self.pace.total}" if self.pace.total is not None else str(self.pace.done)
        bar = ProgressBar(total=self.pace.total, completed=self.pace.done, width=32, pulse=self.pace.total is None)
        spent = duration(self.clock() - self.pace.start)
        row.add_row(Text(self.pace.name, style="bold"), bar, steps, Text(spent if left is None else f"{spent}, {duration(left)} left", style="dim"))
        return row

    def _numbers(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for column in ("left", "right", "left", "right"):
            table.add_column(justify=column)
        for metric, (name, form) in HEADLINES.items():
            if values := self.history.get(metric):
                first = Text(f"from {shown(values[0], form)}" if len(values) > 1 else "", style="dim")
                table.add_row(Text(name, style="dim"), Text(shown(values[-1], form), style="bold"), Text(sparkline(values), style="cyan"), first)
        return table

    def _times(self) -> RenderableType:
        total = sum(self.stages.values())
        parts = sorted(self.stages.items(), key=lambda item: -item[1])
        shares = [f"{name} {seconds:.2f} s ({seconds / total:.0%})" for name, seconds in parts if seconds >= 0.01 * total]
        return Text(" · ".join(shares), style="dim")


def sparkline(values: Sequence[float], width: int = TREND) -> str:
    """The course of a metric in `width` characters, each the mean of its share of the steps; a gap where there is no number."""
    width = min(width, len(values))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [_mean(values[a:b]) for a, b in pairwise(edges)]
    finite = [m for m in means if math.isfinite(m)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    return "".join(" " if not math.isfinite(m) else BLOCKS[int((m - low) / span * (len(BLOCKS) - 1) + 0.5) if span else 0] for m in means)


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan
