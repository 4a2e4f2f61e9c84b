"""Progress of a run as it is told: what a reporter is, which numbers make the headline, and the plain one that prints lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

Clock = Callable[[], float]

# Metric -> (name on the screen, format), in the order of the screen; whatever of these a run has is shown while it goes on.
HEADLINES: dict[str, tuple[str, str]] = {
    "reward/mean": ("reward", "{:.3f}"),
    "reward/accuracy": ("accuracy", "{:.3f}"),
    "loss/train": ("loss", "{:.4f}"),
    "eval/loss": ("held-out loss", "{:.4f}"),
    "eval/pass@1": ("held-out", "{:.3f}"),
    "length/mean": ("length", "{:.1f}"),
    "health/entropy": ("entropy", "{:.3f}"),
    "health/logp_gap": ("|Δlogp|", "{:.1e}"),
    "throughput/tokens_per_second": ("tokens/s", "{:,.0f}"),
    "throughput/trained_tokens_per_second": ("tokens/s", "{:,.0f}"),
    "time/step": ("s/step", "{:.2f}"),
}


class Reporter(Protocol):
    """Whom a run tells what it is doing. Phases follow one another; steps belong to the phase begun last."""

    def phase(self, name: str, total: int | None) -> None:
        """A phase begins; `total` is its number of steps, or None when nobody knows."""
        ...

    def step(self, index: int, metrics: Mapping[str, float]) -> None:
        """Step `index`, counted from 0, is done. A resumed phase starts at a later index."""
        ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def close(self) -> None:
        """Nothing follows. May be called twice."""
        ...


class SilentReporter:
    """Says nothing: the default in Python, and every rank but the first."""

    def phase(self, name: str, total: int | None) -> None: ...

    def step(self, index: int, metrics: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def close(self) -> None: ...


class PlainReporter:
    """Lines of text, for logs: the first and the last step of a phase, and in between one line every `interval` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0, clock: Clock = time.perf_counter):
        self.stream = stream or sys.stdout
        self.interval, self.clock = interval, clock
        self.pace = Pace("", None, clock)
        self.unsaid: dict[str, float] = {}  # since the last line, so that an evaluation is not passed over
        self.index = self.last_line = -math.inf

    def phase(self, name: str, total: int | None) -> None:
        self._flush()
        self.pace = Pace(name, total, self.clock)
        self.last_line = -math.inf
        self.message(f"{name}: {total} steps" if total is not None else name)

    def step(self, index: int, metrics: Mapping[str, float]) -> None:
        self.pace.step(index)
        self.unsaid |= metrics
        if self.clock() - self.last_line >= self.interval or self.pace.done == self.pace.total:
            self._flush()

    def message(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def warning(self, text: str) -> None:
        self.message(f"warning: {text}")

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        """The line of the latest step, if it has not been printed."""
        if self.unsaid:
            total = f"/{self.pace.total}" if self.pace.total is not None else ""
            left = self.pace.left()
            time_left = [f"{duration(left)} left"] if left else []
            self.message(" · ".join([f"{self.pace.name} {self.pace.done}{total}", *headlines(self.unsaid), *time_left]))
            self.unsaid, self.last_line = {}, self.clock()


class Pace:
    """How far a phase is and how long the rest will take, from the steps seen since it began."""

    def __init__(self, name: str, total: int | None, clock: Clock = time.perf_counter):
        self.name, self.total, self.clock = name, total, clock
        self.start = clock()
        self.done = 0  # steps, those before a resume included
        self.seen = 0  # steps of this process

    def step(self, index: int) -> None:
        self.done = index + 1
        self.seen += 1

    def left(self) -> float | None:
        """Seconds, or None when it cannot be known."""
        if self.total is None or not self.seen:
            return None
        return (self.clock() - self.start) / self.seen * max(0, self.total - self.done)


def headlines(metrics: Mapping[str, float]) -> list[str]:
    """['reward 0.412', 'length 31.0', ...] of what is there."""
    return [f"{name} {shown(metrics[metric], form)}" for metric, (name, form) in HEADLINES.items() if metric in metrics]


def shown(value: float, form: str) -> str:
    """A metric as text; – for NaN."""
    return "–" if math.isnan(value) else form.format(value)


def duration(seconds: float) -> str:
    """'8 s', '3 min', '1 h 20 min'."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
