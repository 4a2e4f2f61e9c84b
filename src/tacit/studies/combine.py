"""Study: do PIPO and CBS together do more than either, over GSPO?

Sorting and brackets from the warm starts of the study `grpo`, 100 steps of 16 x 16. Arms: GSPO; with PIPO; with CBS, which trains on half of each
group; with both; and `blind`, which takes as many steps on as many rollouts and looks at nothing: a random half, replayed with ξ out of order.

`snr`, of arms with CBS: the mean gain of a step over the noise of its label, as in the study `cbs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tacit.core.rundir import JsonLines
from tacit.studies.cbs import told
from tacit.studies.grpo import BEST, METHODS, MODEL, RUNTIME, TASKS
from tacit.studies.recipes import measure_recipe
from tacit.studies.study import CALIBRATION, Arm, Claim, Measured, Plan, Study

NAMES = ("sorting", "brackets")


def variants(warmup: int = 8, window: int = 8) -> dict[str, list[dict[str, Any]]]:
    """Components by arm."""
    pipo = {"name": "pipo", "options": {"window": window}}
    cbs = {"name": "cbs", "options": {"warmup": warmup}}
    half = {"name": "selector", "options": {"rule": "random"}}
    return {
        "gspo": [],
        "pipo": [pipo],
        "cbs": [cbs],
        "both": [cbs, pipo],
        "blind": [half, {"name": "pipo", "options": {"window": window, "xi": "shuffled"}}],
    }


def arms(
    tasks: tuple[str, ...], chosen: dict[str, list[dict[str, Any]]], *, warm: float = 1.0, steps: int = 100, prompts: int = 512, group: int = 16
) -> Iterator[Arm]:
    for name in tasks:
        task, start = TASKS[name], f"{name}/start"
        shared = {"task": task["task"], "runtime": RUNTIME, "evaluation": {"prompts": prompts, "samples": 4}, "checkpoint": {"every": 1000}}
        sft = {"kind": "sft", "model": MODEL, "batch_size": 128, "max_new_tokens": task["limit"], "optimiser": {"lr": 2e-3, "warmup": 20}}
        yield Arm(start, shared | sft | {"steps": max(1, round(warm * task["warm"]))}, cost=0.5)
        rl = shared | {
            "kind": "rl",
            "steps": steps,
            "sampling": {"prompts": 16, "group_size": group, "max_new_tokens": task["limit"]},
            "algorithm": METHODS["gspo"],
            "optimiser": {"lr": BEST[name]["gspo"], "warmup": min(5, steps - 1)},
            "evaluation": shared["evaluation"] | {"every": max(1, steps // 5)},
        }
        for arm, components in chosen.items():
            yield Arm(f"{name}/{arm}", rl | {"components": components}, after=start)


def claims(tasks: tuple[str, ...], chosen: dict[str, Any]) -> Iterator[Claim]:
    wanted = {
        "gspo": "PIPO and CBS together end higher than GSPO",
        "pipo": "they end higher than PIPO alone",
        "cbs": "they end higher than CBS alone",
        "blind": "and higher than as many steps on as many rollouts, taken blindly",
    }
    for task in tasks:
        for arm, statement in wanted.items():
            if arm in chosen:
                yield Claim(f"{task}-{arm}", statement, "pass@1", f"{task}/both", f"{task}/{arm}", beside=("snr",))


def plan(preset: str) -> Plan:
    chosen = variants()
    if preset == "tiny":
        few = {name: parts for name, parts in variants(warmup=1, window=2).items() if name in ("gspo", "both")}
        return Plan(tuple(arms(("sorting",), few, warm=0.02, steps=4, prompts=8, group=2)), (0, 1), tuple(claims(("sorting",), few)))
    if preset == "smoke":
        return Plan(tuple(arms(NAMES, chosen, warm=0.1, steps=10, prompts=32)), (0,), tuple(claims(NAMES, chosen)))
    if preset == "calibrate":
        return Plan(tuple(arms(NAMES, chosen)), (CALIBRATION, CALIBRATION + 1))
    return Plan(tuple(arms(NAMES, chosen)), tuple(range(8 if preset == "core" else 20)), tuple(claims(NAMES, chosen)))


def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    """With what the metrics say of CBS's choices and labels."""
    found = measure_recipe(arm, seed, folder, start)
    return Measured({**found.numbers, **told(list(JsonLines(folder / "metrics.jsonl").records()))}, found.curves)


STUDY = Study("combine", "PIPO and CBS together, over GSPO", (__doc__ or "").strip(), plan, measure)
