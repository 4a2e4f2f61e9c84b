"""What a study is: arms, seeds, claims that were fixed beforehand, and how one arm is measured with one seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from tacit.mistakes import choice

PRESETS = ("tiny", "smoke", "core", "full", "calibrate")
REPORTED, CALIBRATION = 0, 1000  # first seeds: nothing is tuned on the reported ones
MINUTE = 60.0
LIMITS = {"tiny": 5.0, "smoke": 90.0, "core": 60 * MINUTE, "full": float("inf"), "calibrate": 60 * MINUTE}  # seconds on two cores
NAMES = ("cbs", "combine", "grpo", "pipo", "preroute", "stability", "unifar", "wmss")  # of the modules beside this one that hold a `STUDY`

Expected = Literal["a > b", "a < b", "a = b"]
Unit = Literal["seed", "document", "user", "query"]


class StudyError(ValueError):
    """The study cannot go on; why, and what to do, in one sentence."""


@dataclass(frozen=True)
class Arm:
    """`settings` is what `Study.measure` needs: plain data, kept in every record, so that a changed arm is measured anew.

    `after` names an arm whose folder, of the same seed, this one starts from. `cost` is its expected time relative to the other arms.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    cost: float = 1.0


@dataclass(frozen=True)
class Claim:
    """What arms `a` and `b` should show in `metric`: fixed before the run. A verdict needs the interval of mean(a - b) to clear `margin`.

    With the unit "seed" each record gives one number; with another one a record gives a list over items, the same ones for both arms.
    `beside` names metrics without which the difference should not be read: they are told with it, for the arms that have them.
    """

    id: str
    statement: str
    metric: str
    a: str
    b: str
    expected: Expected = "a > b"
    margin: float = 0.0
    higher_is_better: bool = True
    unit: Unit = "seed"
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Property:
    """A statement about what was measured that is no contrast of two arms: `test` takes {arm: {seed: measurements}} to (value, holds)."""

    id: str
    statement: str
    test: Callable[[Mapping[str, Mapping[int, Mapping[str, Any]]]], tuple[float, bool] | None]
    tolerance: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A preset of a study: every arm with every seed. Arms stand after the ones that they start from."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...] = ()
    properties: tuple[Property, ...] = ()

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        assert len(set(names)) == len(names), "two arms have one name"
        for n, arm in enumerate(self.arms):
            assert arm.after is None or arm.after in names[:n], f"{arm.name} starts from {arm.after}, which does not stand before it"
        for claim in self.claims:
            assert claim.a in names and claim.b in names, f"claim {claim.id} is about an arm that is not there"


@dataclass(frozen=True)
class Measured:
    """What one (arm, seed) gave: numbers by metric (lists over items for units other than seeds, with `clusters` naming what each belongs to, and
    None for an item that a metric does not count), and curves, (steps, values) by metric."""

    numbers: Mapping[str, float | list[float] | list[float | None]]
    curves: Mapping[str, tuple[list[int], list[float | None]]] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """`plan` makes a preset; `measure(arm, seed, folder, start)` runs in `folder`, goes on with what it finds there, and leaves there what arms
    after it start from; `start` is the folder of the arm it comes after. `tells` says which metrics result.json lists; records hold all."""

    name: str
    title: str
    about: str
    plan: Callable[[str], Plan]
    measure: Callable[[Arm, int, Path, Path | None], Measured]
    tells: Callable[[str], bool] = lambda metric: True


def find_study(name: str) -> Study:
    if name not in NAMES:
        raise StudyError(choice("study", name, list(NAMES)))
    return import_module(f"tacit.studies.{name}").STUDY


def plan_of(study: Study, preset: str) -> Plan:
    if preset not in PRESETS:
        raise StudyError(choice("--preset", preset, list(PRESETS)))
    return study.plan(preset)
