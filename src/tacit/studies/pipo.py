"""Study: does it pay to check an update, or only to take the second one that PIPO takes?

Sorting from a warm start at about 0.45. Calm: 32 x 8 rollouts, two mini-batches, the learning rate that suits the base. Stressed: 16 x 4, 5e-4, and a
verifier that is wrong one time in ten, to everybody: the recipe that makes a small policy collapse. PIPO replays the last batch and so takes up to
twice the optimiser steps. The arms that answer are those that take as many without looking: two epochs a batch, replay with the mean coefficient of
PIPO's own run of that seed, and PIPO with its ξ in random order. In the stressed regime the guard that rolls back is judged as well.

Numbers of an arm, beside those of every recipe: `last5` and `auc`, means over the last five and over all held-out evaluations (every fifth step);
`drawdown`, the deepest fall of an evaluation below the best before it; `kept`, `last5` as a share of the best; `grad_p99`; optimiser steps; and for
PIPO the mean coefficient, how often its guards bound, and how often ξ had the sign of the gain on a fixed set of probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tacit.config import load
from tacit.core.rundir import JsonLines
from tacit.studies.grpo import MODEL, RUNTIME
from tacit.studies.recipes import curve, measure_recipe
from tacit.studies.study import CALIBRATION, Arm, Claim, Measured, Plan, Property, Study

COLLAPSED, KEPT, OFTEN = 0.2, 0.8, 7 / 8
MATCHED = "mean of the PIPO run"  # instead of a number: the run of that seed, which the arm then comes after
GSPO = {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean"}
RATES = (1e-4, 2e-4, 4e-4)  # tried for the calm base in the preset `calibrate`

Settings = dict[str, Any]
Variants = dict[str, Settings]
Measurements = Mapping[str, Mapping[int, Mapping[str, Any]]]

REGIMES: dict[str, Settings] = {
    "calm": {
        "steps": 60,
        "sampling": {"prompts": 32, "group_size": 8, "max_new_tokens": 12},
        "algorithm": {"advantage": "grpo", "minibatch_rows": 128},
        "optimiser": {"lr": 2e-4, "warmup": 5},
    },
    "stressed": {
        "steps": 100,
        "sampling": {"prompts": 16, "group_size": 4, "max_new_tokens": 12},
        "algorithm": {"advantage": "grpo"},
        "optimiser": {"lr": 5e-4, "warmup": 5},
        "components": [{"name": "tacit.studies.noise:FlippedRewards", "options": {"rate": 0.1, "raw": True}}],
    },
}


# --- arms ---


def controls(window: int = 8, probes: int = 256) -> Variants:
    """PIPO and what it must be compared with."""

    def pipo(**options: Any) -> Settings:
        return {"components": [{"name": "pipo", "options": {"window": window, **options}}]}

    return {
        "base": {},
        "pipo": pipo(probes=probes),
        "equal_steps": {"algorithm": {"epochs": 2}},
        "constant": pipo(constant=MATCHED),
        "shuffled": pipo(xi="shuffled"),
    }


def guarded(probes: int = 512, **options: Any) -> Variants:
    return {"rollback": {"components": [{"name": "rollback", "options": {"probes": probes, "every": 5, **options}}]}}


def ablations() -> Variants:
    one = lambda **options: {"components": [{"name": "pipo", "options": options}]}  # noqa: E731
    return {
        "flipped": one(xi="flipped"),
        "lam_0": one(lam=0.0),
        "lam_1": one(lam=1.0),
        "window_2": one(window=2),
        "window_32": one(window=32),
        "current": one(target="current"),
        "pipo_rollback": {"components": [*one()["components"], *guarded()["rollback"]["components"]]},
        "gspo": {"algorithm": GSPO},
        "gspo_pipo": {"algorithm": GSPO, **one()},
    }


def arms(regimes: Mapping[str, Variants], *, warm: int = 115, prompts: int = 512, small: Settings | None = None) -> Iterator[Arm]:
    """The warm start, then the variants of every regime. `small` takes the place of settings of the regimes."""
    shared: Settings = {
        "task": {"name": "sorting"},
        "runtime": RUNTIME,
        "evaluation": {"prompts": prompts},
        "checkpoint": {"every": 1000},
    }
    start = {"kind": "sft", "model": MODEL, "steps": warm, "batch_size": 128, "max_new_tokens": 12, "optimiser": {"lr": 2e-3, "warmup": 20}}
    yield Arm("start", shared | start)
    for regime, variants in regimes.items():
        base = REGIMES[regime] | (small or {})
        for name, variant in variants.items():
            components = [*base.get("components", []), *variant.get("components", [])]
            settings = shared | base | variant | {"algorithm": base["algorithm"] | variant.get("algorithm", {}), "components": components}
            settings |= {"kind": "rl", "evaluation": shared["evaluation"] | {"every": 5 if base["steps"] >= 10 else 1}}
            matched = any(component["options"].get("constant") == MATCHED for component in components)
            yield Arm(f"{regime}/{name}", settings, after=f"{regime}/pipo" if matched else "start")


# --- what is claimed ---


def claims(regime: str, variants: Mapping[str, Settings]) -> Iterator[Claim]:
    def about(name: str, statement: str, metric: str, a: str, b: str, expected: Any = "a > b", higher: bool = True) -> Iterator[Claim]:
        if a in variants and b in variants:
            yield Claim(f"{regime}-{name}", statement, metric, f"{regime}/{a}", f"{regime}/{b}", expected, higher_is_better=higher)

    yield from about("base", "PIPO ends higher than its base", "last5", "pipo", "base")
    yield from about("equal-steps", "PIPO ends higher than its base with as many optimiser steps", "last5", "pipo", "equal_steps")
    yield from about("constant", "PIPO ends higher than replay with its own mean coefficient", "last5", "pipo", "constant")
    yield from about("shuffled", "PIPO ends higher than PIPO with ξ out of order", "last5", "pipo", "shuffled")
    yield from about("auc", "PIPO is higher than its base over the whole run", "auc", "pipo", "base")
    yield from about("drawdown", "PIPO falls less far on the way than its base", "drawdown", "pipo", "base", "a < b", False)
    yield from about("rollback", "the guarded base ends higher than the base", "last5", "rollback", "base")
    yield from about("rollback-drawdown", "the guarded base falls less far on the way", "drawdown", "rollback", "base", "a < b", False)


def all_claims(regimes: Mapping[str, Variants]) -> tuple[Claim, ...]:
    return tuple(claim for regime, variants in regimes.items() for claim in claims(regime, variants))


def agreement(regime: str) -> Callable[[Measurements], tuple[float, bool] | None]:
    """Mean over seeds of how often ξ had the sign of the gain, and whether that is more often than not."""

    def test(measured: Measurements) -> tuple[float, bool] | None:
        rates = [found["agreement"] for found in measured.get(f"{regime}/pipo", {}).values() if "agreement" in found]
        return (float(np.mean(rates)), bool(np.mean(rates) > 0.5)) if rates else None

    return test


def rescued(measured: Measurements) -> tuple[float, bool] | None:
    """Of the seeds with which the stressed base ends below 0.2, the share in which the guarded run keeps 80 % of its best accuracy."""
    base, guard = measured.get("stressed/base", {}), measured.get("stressed/rollback", {})
    kept = [guard[seed]["kept"] >= KEPT for seed, found in base.items() if seed in guard and found["pass@1"] < COLLAPSED]
    return (float(np.mean(kept)), bool(np.mean(kept) >= OFTEN)) if kept else None


def no_rollouts_of_its_own(measured: Measurements) -> tuple[float, bool] | None:
    """Training rollouts of PIPO over those of its base."""
    pairs = [
        (found["rollouts"], measured[f"{regime}/base"][seed]["rollouts"])
        for regime in REGIMES
        for seed, found in measured.get(f"{regime}/pipo", {}).items()
        if seed in measured.get(f"{regime}/base", {})
    ]
    ratios = [one / other for one, other in pairs]
    return (float(np.mean(ratios)), all(one == other for one, other in pairs)) if pairs else None


PROPERTIES = (
    *(Property(f"agreement-{r}", f"{r}: ξ has the sign of the gain measured on the probes more often than not", agreement(r)) for r in REGIMES),
    Property("rescued", "where the stressed base ends below 0.2, the guarded run keeps 80 % of its best in 7 of 8 seeds", rescued),
    Property("no-rollouts", "PIPO trains on no more rollouts than its base draws", no_rollouts_of_its_own),
)


def plan(preset: str) -> Plan:
    core = {"calm": controls(), "stressed": controls() | guarded()}
    if preset == "tiny":
        few = controls(window=2, probes=8)
        regimes = {"stressed": {name: few[name] for name in ("base", "pipo", "constant")} | guarded(probes=8, every=1)}
        small = {"steps": 4, "sampling": {"prompts": 4, "group_size": 2, "max_new_tokens": 12}}
        return Plan(tuple(arms(regimes, warm=2, prompts=8, small=small)), (0, 1), all_claims(regimes))
    if preset == "smoke":
        return Plan(tuple(arms(core, warm=10, prompts=32, small={"steps": 10})), (0,), all_claims(core), PROPERTIES)
    if preset == "calibrate":
        tried = {f"base {rate:g}": {"optimiser": {"lr": rate, "warmup": 5}} for rate in RATES}
        return Plan(tuple(arms({"calm": tried, "stressed": {"base": {}} | guarded()})), tuple(range(CALIBRATION, CALIBRATION + 4)))
    if preset == "full":
        core = {regime: controls() | guarded() | ablations() for regime in REGIMES}
    return Plan(tuple(arms(core)), tuple(range(8 if preset == "core" else 20)), all_claims(core), PROPERTIES)


# --- how an arm is measured ---


def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    """As any recipe, and what its evaluations and its metrics say of stability."""
    settings = dict(arm.settings)
    if start is not None and arm.after != "start":
        settings["components"] = [with_constant(component, mean_coefficient(start)) for component in settings["components"]]
        start = Path(str(load(start / "config.yaml").init))
    found = measure_recipe(replace(arm, settings=settings), seed, folder, start)
    lines = list(JsonLines(folder / "metrics.jsonl").records())
    return Measured({**found.numbers, **stability(found.curves["eval/pass@1"][1]), **told(lines)}, found.curves)


def with_constant(component: Mapping[str, Any], value: float) -> Settings:
    options = component["options"]
    return {**component, "options": {**options, "constant": value} if options.get("constant") == MATCHED else options}


def mean_coefficient(folder: Path) -> float:
    """Of a PIPO run, over the steps in which it could have replayed."""
    values = [value for value in curve(list(JsonLines(folder / "metrics.jsonl").records()), "pipo/coefficient")[1] if value is not None]
    return float(np.mean(values)) if values else 0.0


def stability(evaluations: Sequence[float | None]) -> dict[str, float]:
    """Of accuracies in the order of the run, the first before training."""
    x = np.array([value for value in evaluations if value is not None], np.float64)
    fall = np.maximum.accumulate(x) - x
    last5, best = float(x[-5:].mean()), max(float(x.max()), 1e-9)
    return {"last5": last5, "auc": float(x[1:].mean()), "drawdown": float(fall.max()), "kept": last5 / best}


MEANS = {
    "agreement": "pipo/agreement",
    "coefficient": "pipo/coefficient",
    "xi_clipped": "pipo/xi_clipped",
    "flat_window": "pipo/flat_window",
}


def told(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the metrics of a run's steps come to."""

    def values(name: str) -> np.ndarray:
        return np.array([line[name] for line in lines if line.get(name) is not None], np.float64)

    numbers = {name: float(found.mean()) for name, metric in MEANS.items() if len(found := values(metric))}
    if len(norms := values("optimiser/grad_norm")):
        numbers["grad_p99"] = float(np.percentile(norms, 99))
        numbers["optimiser_steps"] = float(values("optimiser/steps").sum() + values("agent0/replay/optimiser/steps").sum())
        numbers["rollouts"] = float(values("data/kept").sum())
    if len(count := values("rollback/count")):
        numbers["rollbacks"] = float(count.max())
    return numbers


STUDY = Study("pipo", "PIPO: verify each update, and what a second update does without looking", (__doc__ or "").strip(), plan, measure)
