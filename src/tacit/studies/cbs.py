"""Study: does a scheduler learn which rollouts are worth training on, from one number a step, and does it pay?

Three levels. `world`: contexts whose value is known, where regret can be counted. `clean`: sorting from a warm start at about 0.45, 32 x 8 rollouts,
of which 4 of each group are trained on; every few steps the true value of every rollout, <its gradient, that of the expected reward on other
prompts>, is computed beside it. `guessed` and `flipped`: the same with a verifier that takes 1 in 5 wrong answers for right, or errs 1 time in 10, to
everybody but the evaluation. All arms draw the same number of rollouts, and all but `full` train on as many of them.

Controls: random choices of the same size; |advantage|; labels shuffled over rounds; and as a ceiling the oracle that chooses by the true value.
`probes` is CBS whose label comes from 256 fixed prompts with the same random numbers instead of the training batch.

Numbers of an arm beside those of every recipe: `auc`, the mean of all held-out evaluations; `spearman`, of scores and true values over the second
half; `snr`, the mean gain of a step over the noise of its label; `guessed_excess`, what is chosen of guessed answers less their share of what was
drawn, and `zero_excess` the same of rollouts without an advantage, which is 0 unless there is a buffer: half of a group that agrees is half of it,
whichever; of `world`, `regret` per slot, and `slope`, the exponent with which regret grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tacit.core.rundir import JsonLines
from tacit.rl.scheduler import FEATURES
from tacit.studies.bandit_world import play, slope
from tacit.studies.grpo import MODEL, RUNTIME
from tacit.studies.recipes import curve, measure_recipe
from tacit.studies.study import CALIBRATION, Arm, Claim, Measured, Plan, Property, Study

Settings = dict[str, Any]
Measurements = Mapping[str, Mapping[int, Mapping[str, Any]]]

GSPO = {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean"}
DAPO = {"clip_high": 0.28, "filter": {"drop_constant": True, "max_rounds": 3}}
NOISE: dict[str, list[Settings]] = {
    "clean": [],
    "guessed": [{"name": "tacit.studies.noise:GuessedCorrect", "options": {"answers": 5}}],
    "flipped": [{"name": "tacit.studies.noise:FlippedRewards", "options": {"rate": 0.1, "raw": True}}],
}
LOW, SUBLINEAR = 0.2, 0.7
MARGIN = 0.02  # pass@1 within which two arms count as equal: at 8 seeds less is not seen


# --- arms ---


def worlds(rounds: int) -> Iterator[Arm]:
    """Level 0, of 32 out of 64 contexts, whose means drift from round to round."""
    shared = {"kind": "world", "rounds": rounds, "size": 64, "keep": 32, "drift": 0.3}
    for world in ("linear", "mlp"):
        yield Arm(f"world/{world} random", shared | {"world": world, "policy": "random"}, cost=0.02)
        yield Arm(f"world/{world} sample", shared | {"world": world, "kind_of_label": "sample"}, cost=0.3)
    yield Arm("world/linear set", shared | {"world": "linear", "kind_of_label": "set"}, cost=0.3)
    yield Arm("world/linear shuffled", shared | {"world": "linear", "kind_of_label": "sample", "shuffled": True}, cost=0.3)


def truth(every: int, prompts: int = 64) -> Settings:
    return {"name": "true_value", "options": {"prompts": prompts, "group": 4, "every": every}}


def selector(rule: str, **options: Any) -> Settings:
    return {"components": [{"name": "selector", "options": {"rule": rule, **options}}]}


def cbs(every: int = 5, **options: Any) -> Settings:
    return {"components": [truth(every), {"name": "cbs", "options": options}]}


def primary() -> dict[str, Settings]:
    return {
        "full": {},
        "random": selector("random"),
        "top_advantage": selector("top_advantage"),
        "cbs": cbs(),
        "shuffled": cbs(labels="shuffled"),
        "probes": cbs(probes=256),
        "oracle": {"components": [truth(1), *selector("oracle")["components"]]},
    }


def noisy() -> dict[str, Settings]:
    return {name: arm for name, arm in primary().items() if name in ("full", "random", "cbs")}


def further() -> dict[str, Settings]:
    """The other rows of the specification: rules, labels, buffers, the price of entropy, other losses."""
    replay = {"mode": "global", "count": 1.0}
    return {
        "positives": selector("positives"),
        "max_variance": selector("max_variance"),
        "set": cbs(label="set"),
        "control": cbs(control="difficulty"),
        "window": cbs(window=8),
        "no_price": cbs(w_e=0.0),
        "fifo_random": selector("random", rounds=4, **replay),
        "reward_priority": selector("reward_priority", rounds=4, **replay),
        **{f"global_{rounds}": cbs(rounds=rounds, **replay) for rounds in (1, 2, 4, 8)},
        "global_4_blind": cbs(rounds=4, without=["age", "usage"], **replay),
        "nested": cbs(mode="nested"),
        **{
            f"{name}_{arm}": {"algorithm": how, **primary()[arm]}
            for name, how in (("gspo", GSPO), ("dapo", DAPO))
            for arm in ("full", "random", "cbs")
        },
    }


def arms(
    regimes: Mapping[str, Mapping[str, Settings]], *, warm: int = 115, prompts: int = 512, steps: int = 100, sampling: Settings | None = None
) -> Iterator[Arm]:
    """The warm start, then what is asked for of every regime. Noise comes first: it deceives all."""
    shared: Settings = {"task": {"name": "sorting"}, "runtime": RUNTIME, "evaluation": {"prompts": prompts}, "checkpoint": {"every": 1000}}
    start = {"kind": "sft", "model": MODEL, "steps": warm, "batch_size": 128, "max_new_tokens": 12, "optimiser": {"lr": 2e-3, "warmup": 20}}
    yield Arm("start", shared | start, cost=0.4)
    base = {
        "kind": "rl",
        "steps": steps,
        "sampling": sampling or {"prompts": 32, "group_size": 8, "max_new_tokens": 12},
        "optimiser": {"lr": 2e-4, "warmup": min(5, steps - 1)},
        "evaluation": shared["evaluation"] | {"every": max(1, steps // 10)},
    }
    for regime, variants in regimes.items():
        for name, variant in variants.items():
            components = [*NOISE[regime], *variant.get("components", [])]
            settings = shared | base | {"components": components, "algorithm": {"advantage": "grpo"} | variant.get("algorithm", {})}
            yield Arm(f"{regime}/{name}", settings, after="start", cost=2.0 if name == "oracle" else 1.0)


# --- what is claimed ---

STATED = (
    Claim("ceiling", "choosing by the true value beats a random half", "pass@1", "clean/oracle", "clean/random"),
    Claim("random", "CBS beats a random half", "pass@1", "clean/cbs", "clean/random"),
    Claim("random-auc", "CBS is higher than a random half over the whole run", "auc", "clean/cbs", "clean/random"),
    Claim("top-advantage", "CBS beats the half with the largest |advantage|", "pass@1", "clean/cbs", "clean/top_advantage"),
    Claim("shuffled", "it is the labels: CBS beats CBS with labels out of order", "pass@1", "clean/cbs", "clean/shuffled"),
    Claim("full", "half of the rollouts, chosen by CBS, do what all of them do", "pass@1", "clean/cbs", "clean/full", "a = b", MARGIN),
    Claim(
        "credit", "the scores of CBS rank rollouts by their true value better than with shuffled labels", "spearman", "clean/cbs", "clean/shuffled"
    ),
    Claim("less-noise", "labels from probes make the scores rank better", "spearman", "clean/probes", "clean/cbs"),
    Claim("less-noise-accuracy", "labels from probes make CBS end higher", "pass@1", "clean/probes", "clean/cbs"),
    Claim("guessed", "CBS chooses fewer guessed answers than chance", "guessed_excess", "guessed/cbs", "guessed/random", "a < b", 0.0, False),
    Claim("guessed-accuracy", "where a fifth of wrong answers pass, CBS beats a random half", "pass@1", "guessed/cbs", "guessed/random"),
    Claim("flipped-accuracy", "where a tenth of the verdicts are wrong, CBS beats a random half", "pass@1", "flipped/cbs", "flipped/random"),
    Claim(
        "world-linear",
        "in a linear world regret grows slower than with random choices",
        "slope",
        "world/linear sample",
        "world/linear random",
        "a < b",
    ),
    Claim("world-mlp", "in a non-linear world too", "slope", "world/mlp sample", "world/mlp random", "a < b", 0.0, False),
    Claim("world-shuffled", "of shuffled labels nothing is learnt", "spearman", "world/linear sample", "world/linear shuffled"),
    Claim("world-label", "one target for a set teaches as well as one for each rollout", "spearman", "world/linear set", "world/linear sample"),
    Claim("replay", "CBS with a buffer of four rounds beats random replay from it", "pass@1", "clean/global_4", "clean/fifo_random"),
    Claim(
        "zero",
        "from a buffer it takes fewer rollouts without an advantage",
        "zero_excess",
        "clean/global_4",
        "clean/fifo_random",
        "a < b",
        0.0,
        False,
    ),
    Claim("freshness", "age and usage help a buffer", "pass@1", "clean/global_4", "clean/global_4_blind"),
    Claim("price", "the price of entropy lowers it in the last quarter", "late_entropy", "clean/cbs", "clean/no_price", "a < b", 0.0, False),
    Claim("gspo", "with GSPO too CBS beats a random half", "pass@1", "clean/gspo_cbs", "clean/gspo_random"),
    Claim("dapo", "and with DAPO", "pass@1", "clean/dapo_cbs", "clean/dapo_random"),
)
CLAIMS = tuple(replace(claim, beside=("snr",)) if claim.metric in ("pass@1", "auc") else claim for claim in STATED)  # no accuracy without it


def mean_of(arm: str, number: str, holds: Callable[[float], bool]) -> Callable[[Measurements], tuple[float, bool] | None]:
    def test(measured: Measurements) -> tuple[float, bool] | None:
        values = [found[number] for found in measured.get(arm, {}).values() if number in found]
        return (float(np.mean(values)), bool(holds(float(np.mean(values))))) if values else None

    return test


PROPERTIES = (
    Property("snr", f"the mean gain of a step is below {LOW} of the noise of its label", mean_of("clean/cbs", "snr", lambda x: x < LOW)),
    Property("snr-probes", "with probes it is above that of the training batch's label", lambda measured: snr_of_probes(measured)),
    Property("explained", "the ten features say something of the true value", mean_of("clean/cbs", "explained", lambda x: x > 0)),
    *(
        Property(
            f"sublinear-{world}", f"regret grows slower than rounds^{SUBLINEAR}", mean_of(f"world/{world} sample", "slope", lambda x: x < SUBLINEAR)
        )
        for world in ("linear", "mlp")
    ),
)


def snr_of_probes(measured: Measurements) -> tuple[float, bool] | None:
    """Of probes, and whether it is higher than that of the batch."""
    one, other = (mean_of(f"clean/{arm}", "snr", lambda x: True)(measured) for arm in ("probes", "cbs"))
    return (one[0], one[0] > other[0]) if one and other else None


def planned(found: Sequence[Arm], seeds: Sequence[int], *, judged: bool = True) -> Plan:
    """With the claims about arms that are there."""
    names = {arm.name for arm in found}
    claims = tuple(claim for claim in CLAIMS if {claim.a, claim.b} <= names) if judged else ()
    return Plan(tuple(found), tuple(seeds), claims, PROPERTIES if judged else ())


def plan(preset: str) -> Plan:
    core = {"clean": primary(), "guessed": noisy()}
    if preset == "tiny":
        few = {name: primary()[name] for name in ("random", "oracle")} | {"cbs": cbs(every=1, warmup=1)}
        small = {"prompts": 4, "group_size": 4, "max_new_tokens": 12}
        short = [arm for arm in worlds(14) if arm.name.startswith("world/linear") and "set" not in arm.name]
        found = planned([*short, *arms({"clean": few}, warm=2, prompts=8, steps=4, sampling=small)], (0, 1))
        return Plan(found.arms, found.seeds, tuple(c for c in found.claims if c.metric in ("pass@1", "slope")))
    if preset == "smoke":
        return planned([*worlds(60), *arms(core, warm=10, prompts=32, steps=12)], (0,))
    if preset == "calibrate":
        return planned([*worlds(200), *arms({"clean": primary() | further()})], (CALIBRATION, CALIBRATION + 1), judged=False)
    if preset == "full":
        core = {"clean": primary() | further(), "guessed": noisy(), "flipped": noisy()}
        return planned([*worlds(800), *arms(core)], range(20))
    return planned([*worlds(120), *arms(core)], range(8))


# --- how an arm is measured ---


def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    """A world is played; the others are recipes, with what their metrics say of the choice."""
    if arm.settings["kind"] == "world":
        return played(arm.settings, seed)
    found = measure_recipe(arm, seed, folder, start)
    lines = list(JsonLines(folder / "metrics.jsonl").records())
    extra = {name: curve(lines, name) for name in ("cbs/spearman", "select/zero_advantage") if any(name in line for line in lines)}
    evaluations = [value for value in found.curves["eval/pass@1"][1] if value is not None]
    return Measured({**found.numbers, "auc": float(np.mean(evaluations[1:])), **told(lines)}, {**found.curves, **extra})


def played(settings: Mapping[str, Any], seed: int) -> Measured:
    options = {name: value for name, value in settings.items() if name not in ("kind", "kind_of_label", "world", "rounds")}
    if "kind_of_label" in settings:
        options["kind"] = settings["kind_of_label"]
    course = play(settings["world"], seed, settings["rounds"], **options)
    later = course.spearman[len(course.spearman) // 2 :]
    numbers = {"regret": float(course.regret.mean()), "lift": float(course.lift), "slope": slope(course.regret, settings["rounds"] // 3)}
    if np.isfinite(later).all():
        numbers["spearman"] = float(later.mean())
    steps = list(range(settings["rounds"]))
    return Measured(numbers, {"world/regret": (steps, np.cumsum(course.regret).tolist())})


def told(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the metrics of a run's steps come to; what was not logged is left out."""

    def values(name: str, since: float = 0.0) -> np.ndarray:
        found = [line[name] for line in lines if line.get(name) is not None]
        return np.array(found[int(since * len(found)) :], np.float64)

    numbers: dict[str, float] = {}
    late = {"late_entropy": ("health/entropy", 0.75), "spearman": ("cbs/spearman", 0.5), "explained": ("cbs/explained", 0.0)}
    late |= {"label_noise": ("cbs/label_noise", 0.0), "age": ("select/age", 0.0), "rows": ("select/rows", 0.0)}
    late |= {f"spearman_{name}": (f"cbs/spearman_{name}", 0.0) for name in FEATURES}
    for name, (metric, since) in late.items():
        if len(found := values(metric, since)):
            numbers[name] = float(found.mean())
    if len(gains := values("cbs/gain")) and numbers.get("label_noise"):
        numbers["snr"] = float(gains.mean()) / numbers["label_noise"]
    for name, metric in {"zero_excess": "select/zero_advantage", "guessed_excess": "select/guessed", "flipped_excess": "select/flipped"}.items():
        if len(chosen := values(metric)):
            numbers[name] = float((chosen - values(f"{metric}_drawn")).mean())
    return numbers


STUDY = Study("cbs", "CBS: which rollouts are worth training on, and can one number a step tell?", (__doc__ or "").strip(), plan, measure)
