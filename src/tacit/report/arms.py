"""Arms: runs that differ in their seed alone are one arm, whose course and results are told over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import hypot, isfinite
from typing import Any

from tacit.core.statistics import paired_t
from tacit.recipe import flat
from tacit.report.runs import Run
from tacit.report.verdict import Estimate, estimate

OWN = ("seed", "output")  # settings that each run of an arm has for itself


@dataclass(frozen=True)
class Arm:
    """One run, or several of the same settings with a seed each."""

    name: str
    runs: tuple[Run, ...]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    def mean(self, metric: str) -> float | None:
        """Over the steps of a run, and then over its runs."""
        return mean([run.mean(metric) for run in self.runs])

    def last(self, metric: str) -> float | None:
        """The latest number, the mean of its runs."""
        return mean([run.last(metric) for run in self.runs])

    def course(self, metric: str) -> tuple[list[int], dict[str, list[float | None]]]:
        """Steps, and `y` there. Over several seeds y is their mean, and `low` and `high` are the lowest and highest of them.

        Of a single run `low` and `high` are the interval METRIC_low to METRIC_high, where recorded.
        """
        if len(self.runs) == 1:
            [run] = self.runs
            names = {"y": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
            return run.steps, {part: run.metrics[name] for part, name in names.items() if name in run.metrics}
        found: dict[int, list[float]] = {step: [] for step in sorted({step for run in self.runs for step in run.steps})}
        for run in self.runs:
            for step, value in zip(run.steps, run.metrics.get(metric, [None] * len(run.steps)), strict=True):
                found[step] += [] if value is None else [value]
        columns = {"y": mean, "low": lambda values: min(values, default=None), "high": lambda values: max(values, default=None)}
        return list(found), {part: [column(values) for values in found.values()] for part, column in columns.items()}


def arms(runs: Sequence[Run]) -> list[Arm]:
    """The arms in order of their first run. A run without settings or seed, or with a seed that its arm has already, stands alone."""
    groups: list[list[Run]] = []
    for run in runs:
        mate = next((group for group in groups if alike(group[0], run) and run.setting("seed") not in [r.setting("seed") for r in group]), None)
        if mate is None:
            groups.append([run])
        else:
            mate.append(run)
    names = [common_name([run.name for run in group]) for group in groups]
    return [
        Arm(name if names.count(name) == 1 else ", ".join(run.name for run in group), tuple(group)) for name, group in zip(names, groups, strict=True)
    ]


def alike(a: Run, b: Run) -> bool:
    """Whether two runs differ in nothing but what is a run's own."""
    shared, other = ({name: value for name, value in run.config.items() if name not in OWN} for run in (a, b))
    return shared == other and all(run.config and run.setting("seed") is not None for run in (a, b))


def common_name(names: Sequence[str]) -> str:
    """What the names begin with: 'grpo' for 'grpo-seed-0' and 'grpo-seed-1'; all of them if they begin with nothing in common."""
    if len(names) == 1:
        return names[0]
    length = len(list(takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))))
    shared = names[0][:length].rstrip("0123456789-_./ ").removesuffix("seed").rstrip("-_./ ")
    return shared or ", ".join(names)


def over_seeds(arm: Arm, name: str) -> Estimate | None:
    """`before`, `after` or `gain`: of a single run as it states it, of several the mean over seeds with Student's interval."""
    if len(arm.runs) == 1:
        return estimate(arm.runs[0], name)
    values = list(by_seed(arm, name).values())
    return _student(values, [0.0] * len(values)) if values else None


def difference(arm: Arm, base: Arm) -> tuple[Estimate, str] | None:
    """(after of `arm` minus after of `base`, how its interval came about); None where either has no result.

    Two arms with seeds in common are paired by seed. Otherwise their two intervals are taken as those of independent means, which is too wide
    when both were measured on the same problems.
    """
    a, b = by_seed(arm, "after"), by_seed(base, "after")
    shared = [seed for seed in a if seed in b]
    if len(shared) > 1:
        return _student([a[seed] for seed in shared], [b[seed] for seed in shared]), f"paired over {len(shared)} seeds"
    first, second = over_seeds(arm, "after"), over_seeds(base, "after")
    if first is None or second is None:
        return None
    gap = first.mean - second.mean
    if first.interval is None or second.interval is None:
        return Estimate(gap), "no interval"
    half = hypot(*((high - low) / 2 for low, high in (first.interval, second.interval)))
    return Estimate(gap, (gap - half, gap + half)), "independent"


def by_seed(arm: Arm, name: str) -> dict[Any, float]:
    found = {run.setting("seed"): estimate(run, name) for run in arm.runs}
    return {seed: value.mean for seed, value in found.items() if value is not None}


def mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _student(a: Sequence[float], b: Sequence[float]) -> Estimate:
    found = paired_t(a, b)
    return Estimate(found.mean, (found.low, found.high) if isfinite(found.low) else None)


def settings_that_differ(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """Setting -> its value in each arm, for those in which the arms differ; what each run of an arm has for itself is left out."""
    own = OWN if any(len(arm.runs) > 1 for arm in arms) else ("output",)
    flattened = [{name: value for name, value in flat(arm.runs[0].config).items() if name not in own} for arm in arms]
    names = dict.fromkeys(name for settings in flattened for name in settings)
    table = {name: [settings.get(name) for settings in flattened] for name in names}
    return {name: values for name, values in table.items() if any(value != values[0] for value in values)}
