"""Study: what makes a small policy collapse, and what holds it?

Sorting from a warm start at about 0.45, 100 updates: learning rate, group size, flipped rewards, KL to the start, clipping with stale rollouts.
The settings come from prototypes on other seeds and were fixed before the reported ones; they are meant to break, not to train well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tacit.studies.grpo import MODEL, RUNTIME
from tacit.studies.recipes import measure_recipe
from tacit.studies.study import Arm, Claim, Plan, Property, Study

COLLAPSED = 0.2  # pass@1 of a policy that has lost what it could
STALE = 9  # updates from the rollouts of one policy
CLIPPED, UNCLIPPED = (0.2, 0.2), (0.999999, 1e9)


def flipped(rate: float) -> dict[str, Any]:
    return {"components": [{"name": "tacit.studies.noise:FlippedRewards", "options": {"rate": rate}}]}


def updates(lr: float, *, group: int = 8, stale: int = 1, total: int = 100, kl: float = 0.0, clip: tuple[float, float] = CLIPPED) -> dict[str, Any]:
    """`total` updates of 16 prompts x `group`, the rollouts of `stale` updates drawn together."""
    algorithm: dict[str, Any] = {"advantage": "grpo", "kl": {"coefficient": kl}, "clip_low": clip[0], "clip_high": clip[1]}
    if stale > 1:
        algorithm |= {"minibatch_rows": 16 * group}
    return {
        "steps": max(1, round(total / stale)),
        "sampling": {"prompts": 16 * stale, "group_size": group, "max_new_tokens": 12},
        "algorithm": algorithm,
        "optimiser": {"lr": lr, "warmup": min(5, total - 1)},
    }


ARMS: dict[str, dict[str, Any]] = {
    "base": updates(2e-4),
    "high_lr": updates(1e-3),
    "high_lr_small_group": updates(1e-3, group=4),
    "high_lr_kl": updates(1e-3, kl=0.2),
    "noise": updates(2e-4) | flipped(0.1),
    "collapse": updates(5e-4, group=4) | flipped(0.1),
    "collapse_kl": updates(5e-4, group=4, kl=0.2) | flipped(0.1),
    "collapse_large_group": updates(5e-4, group=16) | flipped(0.1),
    "collapse_low_lr": updates(1e-4, group=4) | flipped(0.1),
    "random_rewards": updates(2e-4) | flipped(0.5),
    "stale_clipped": updates(2e-4, stale=STALE),
    "stale_unclipped": updates(2e-4, stale=STALE, clip=UNCLIPPED),
    "stale_high_lr_clipped": updates(5e-4, stale=STALE),
    "stale_high_lr_unclipped": updates(5e-4, stale=STALE, clip=UNCLIPPED),
}

CLAIMS = (
    Claim("learns", "at a learning rate of 2e-4 with true rewards training improves on the start", "pass@1", "base", "start"),
    Claim("high-lr", "five times the learning rate destroys the policy", "pass@1", "high_lr", "start", "a < b"),
    Claim("high-lr-kl", "a KL of 0.2 holds what the high learning rate destroys", "pass@1", "high_lr_kl", "high_lr"),
    Claim("noise", "10 % flipped rewards cost accuracy at a moderate learning rate", "pass@1", "noise", "base", "a < b"),
    Claim("collapse", "small groups, flipped rewards and a high learning rate together destroy the policy", "pass@1", "collapse", "start", "a < b"),
    Claim("collapse-kl", "a KL of 0.2 softens that collapse", "pass@1", "collapse_kl", "collapse"),
    Claim("collapse-group", "groups of 16 instead of 4 soften it", "pass@1", "collapse_large_group", "collapse"),
    Claim("collapse-lr", "a fifth of the learning rate prevents it", "pass@1", "collapse_low_lr", "collapse"),
    Claim("random", "random rewards destroy the policy even at a moderate learning rate", "pass@1", "random_rewards", "start", "a < b"),
    Claim("stale", "stale rollouts without clipping learn less than fresh ones", "pass@1", "stale_unclipped", "base", "a < b"),
    Claim("clipping", "clipping repairs stale rollouts", "pass@1", "stale_clipped", "stale_unclipped"),
    Claim("clipping-high-lr", "clipping holds stale rollouts at a high learning rate", "pass@1", "stale_high_lr_clipped", "stale_high_lr_unclipped"),
)


def share_collapsed(arm: str) -> Callable[..., tuple[float, bool] | None]:
    """The share of seeds of an arm that end below COLLAPSED, and whether all do."""

    def test(measured: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> tuple[float, bool] | None:
        ends = [found["pass@1"] for found in measured.get(arm, {}).values()]
        share = sum(end < COLLAPSED for end in ends) / max(1, len(ends))
        return (share, share == 1) if ends else None

    return test


PROPERTIES = (Property("collapse-recipe", f"the collapse recipe ends below {COLLAPSED} with every seed", share_collapsed("collapse")),)


def plan(preset: str) -> Plan:
    if preset == "tiny":
        few = {"base": updates(2e-4, total=2), "noise": updates(2e-4, total=2) | flipped(0.1)}
        wanted = tuple(claim for claim in CLAIMS if claim.id in ("learns", "noise"))
        return Plan(tuple(arms(few, warm=2, prompts=8)), (0, 1), wanted)
    if preset == "smoke":
        short = {name: settings | {"steps": max(1, settings["steps"] // 25)} for name, settings in ARMS.items()}
        return Plan(tuple(arms(short, warm=10, prompts=32)), (0,), CLAIMS, PROPERTIES)
    if preset == "calibrate":
        return Plan(tuple(arms(ARMS)), (1000, 1001))
    return Plan(tuple(arms(ARMS)), tuple(range(8 if preset == "core" else 20)), CLAIMS, PROPERTIES)


def arms(chosen: Mapping[str, Mapping[str, Any]], *, warm: int = 115, prompts: int = 512) -> Iterator[Arm]:
    shared: dict[str, Any] = {
        "task": {"name": "sorting"},
        "runtime": RUNTIME,
        "evaluation": {"prompts": prompts, "samples": 4},
        "checkpoint": {"every": 1000},
    }
    warm_start = {"kind": "sft", "model": MODEL, "steps": warm, "batch_size": 128, "max_new_tokens": 12, "optimiser": {"lr": 2e-3, "warmup": 20}}
    yield Arm("start", shared | warm_start)
    for name, settings in chosen.items():
        evaluation = shared["evaluation"] | {"every": max(1, settings["steps"] // 5)}
        yield Arm(name, shared | dict(settings) | {"kind": "rl", "evaluation": evaluation}, after="start")


STUDY = Study("stability", "What makes a small policy collapse", (__doc__ or "").strip(), plan, measure_recipe)
