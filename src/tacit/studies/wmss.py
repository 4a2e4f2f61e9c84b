"""Study: does training with the logits of a weak past self carry a model further than SFT that goes on, and is it the weak model that does it?

Two tasks that tiny models learn from 1,500 solutions and then stop improving on: multiplication with a scratchpad, and programs that must pass unit
tests in the sandbox. Every arm goes on from one SFT checkpoint, on the same examples in the same order, with the same restart of the learning rate.
Controls: SFT with as many steps, with twice as many (the compute of two models), with twice the learning rate, with label smoothing, with NEFTune;
D0, a temperature in place of the weak model; weak logits of wrong tokens in random places; a random subset as large as the selector's; λ = 1.

Numbers are of greedy completions unless they say otherwise; the primary one is the accuracy in the hard bin. What the paper calls the base is here
the checkpoint after a fifth of SFT, since a model from scratch has no other past that knows anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tacit.config import ModelConfig, SFTConfig
from tacit.core.policy import Policy, load_policy
from tacit.core.rollouts import Prompt
from tacit.core.rundir import JsonLines
from tacit.generation.decoders import decoder_for
from tacit.generation.sampler import Sampler
from tacit.job import run
from tacit.rewards.base import Score, load_reward
from tacit.rewards.evaluation import evaluate
from tacit.rewards.pool import close_all
from tacit.rewards.programs import ProgramTests
from tacit.sft.examples import CompletionLoss
from tacit.sft.measure import measured, verified
from tacit.studies.grpo import RUNTIME
from tacit.studies.recipes import GREEDY_SEED, configured, curve
from tacit.studies.study import CALIBRATION, Arm, Claim, Measured, Plan, Property, Study
from tacit.tasks.base import resolve_task

EXAMPLES, BATCH = 1500, 64
WARM, WARM_LR = 300, 6e-3  # the SFT that all arms go on from
STEPS = 46  # two epochs
TENTHS = (1, 2, 5, 7, 9)  # of the warm start, after which it leaves a policy
WEAK = 2  # the one that is the weak model
TASKS: dict[str, dict[str, Any]] = {
    "multiplication": {
        "task": {"name": "multiplication_scratchpad", "options": {"min_digits": 2, "max_digits": 4, "restate": 0, "skip": 0.0}},
        "context": 64,
        "limit": 40,
        "prompts": 1000,
        "bins": ("2x1_digits", "3x1_digits", "4x1_digits"),
    },
    "programs": {
        "task": {"name": "postfix_programs", "options": {"min_operators": 1, "max_operators": 3}},
        "reward": "tacit.studies.wmss:RememberedTests",
        "context": 80,
        "limit": 34,
        "prompts": 400,
        "bins": ("1_operator", "2_operators", "3_operators"),
    },
}
BINS = {task["task"]["name"]: task["bins"] for task in TASKS.values()}
RATES = (3e-4, 1e-3, 3e-3)  # tried in the preset `calibrate`
BEST = {"multiplication": 3e-4, "programs": 1e-3}  # of those, by the hard-bin accuracy of plain SFT, on seeds 1000 and 1001, and 1000
LAM = 0.5
SELECTED = {"formula": "v2"}
MIXED = {"kind": "wmss", "lam": LAM, "selection": {"formula": "none"}}
ARMS: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft_twice": {"steps": 2},  # factors on those of the others
    "sft_high_lr": {"lr": 2.0},
    "label_smoothing": {"label_smoothing": 0.1},
    "neftune": {"neftune": 5.0},
    "d0": {"logit_scale": LAM},
    "selection_only": MIXED | {"lam": 1.0, "frozen": True, "selection": SELECTED},
    "joint": MIXED,
    "frozen": MIXED | {"frozen": True},
    "wmss": MIXED | {"selection": SELECTED},
    "wmss_code": MIXED | {"selection": {"formula": "code"}},
    "shuffled": MIXED | {"shuffle": True},
    "random_subset": MIXED | {"selection": {"formula": "random"}},
    "lam_1": MIXED | {"lam": 1.0},
}
CONTROLS = ("sft", "d0", "joint", "wmss", "shuffled", "random_subset")  # the arms of the primary contrasts
SWEEP = (
    {f"lam_{lam:g}": MIXED | {"lam": lam} for lam in (0.1, 0.3, 0.42, 0.6, 0.8, 0.9)}
    | {f"weak_{tenth}0%": MIXED | {"weak": tenth} for tenth in TENTHS if tenth != WEAK}
    | {f"rounds_{k}": MIXED | {"selection": SELECTED, "rounds": k} for k in (2, 3)}
)


class RememberedTests(ProgramTests):
    """Runs a program once: a verdict is remembered for as long as the reward lives. Formulas do not depend on when they are computed."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.known: dict[tuple[str, str], Score | Callable[[], Score]] = {}

    def _submit(self, prompt: Prompt, completion: str) -> Score | Callable[[], Score]:
        key = prompt.text, completion
        if key not in self.known:
            self.known[key] = super()._submit(prompt, completion)
        return self.known[key]


# --- arms ---


def plan(preset: str) -> Plan:
    if preset == "tiny":
        few = {name: ARMS[name] for name in ("sft", "wmss")}
        return Plan(tuple(arms({"multiplication": few}, warm=10, steps=2, prompts=16)), (0, 1), tuple(claims({"multiplication": few})))
    if preset == "smoke":
        chosen = {"multiplication": ARMS, "programs": {name: ARMS[name] for name in CONTROLS}}
        return Plan(tuple(arms(chosen, warm=10, steps=2, prompts=32)), (0,), tuple(claims(chosen)), PROPERTIES)
    if preset == "calibrate":
        tried = {f"{name} {rate:g}": ARMS[name] | {"lr": rate / WARM_LR} for name in ("sft", "joint") for rate in RATES}
        return Plan(tuple(arms(dict.fromkeys(TASKS, tried), rates=dict.fromkeys(TASKS, WARM_LR))), (CALIBRATION, CALIBRATION + 1))
    if preset == "core":
        chosen = {"multiplication": ARMS, "programs": {name: ARMS[name] for name in CONTROLS}}
        return Plan(tuple(arms(chosen)), tuple(range(5)), tuple(claims(chosen)), PROPERTIES)
    chosen = dict.fromkeys(TASKS, ARMS | SWEEP)
    return Plan(tuple(arms(chosen)), tuple(range(10)), tuple(claims(chosen)), PROPERTIES)


def arms(
    chosen: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    warm: int = WARM,
    steps: int = STEPS,
    prompts: int | None = None,
    rates: Mapping[str, float] = BEST,
) -> Iterator[Arm]:
    """The arms of each task, the warm start first."""
    for name, ways in chosen.items():
        task = TASKS[name]
        shared = {"task": task["task"], "reward": task.get("reward"), "batch_size": BATCH, "examples": EXAMPLES, "max_new_tokens": task["limit"]}
        shared |= {"runtime": RUNTIME, "evaluation": {"prompts": prompts or task["prompts"], "temperature": 0}, "checkpoint": {"every": 1000}}
        start = shared | {"kind": "sft", "steps": warm, "optimiser": schedule(WARM_LR, warm), "keep": "every", "keep_every": warm // 10}
        start["model"] = {"tiny": {"family": "llama", "hidden": 96, "layers": 2, "heads": 4, "mlp": 256, "context": task["context"]}}
        start["evaluation"] = {**shared["evaluation"], "every": warm - warm // 4}
        yield Arm(f"{name}/start", start, cost=warm / steps)
        for label, way in ways.items():
            how = dict(way)
            count = steps * how.pop("steps", 1)
            recipe = shared | {"kind": "sft", "steps": count - count % how.get("rounds", 1)}
            recipe |= {"optimiser": schedule(rates[name] * how.pop("lr", 1.0), count)}
            if how.get("kind") == "wmss":
                recipe["weak"] = f"kept/step-{how.pop('weak', WEAK) * (warm // 10):08d}"  # in the folder of the warm start
            yield Arm(f"{name}/{label}", recipe | how, after=f"{name}/start", cost=2.0 if "weak" in recipe else 1.0)


def schedule(lr: float, steps: int) -> dict[str, Any]:
    """A tenth of warm-up, then linear decay: the paper's."""
    return {"lr": lr, "warmup": max(1, steps // 10), "schedule": "linear"}


def claims(chosen: Mapping[str, Mapping[str, Any]]) -> Iterator[Claim]:
    said = (
        ("joint", "sft", "joint training beats as many steps of SFT"),
        ("wmss", "sft", "WMSS beats as many steps of SFT"),
        ("joint", "d0", "it is the weak model's logits, not the temperature that comes with them"),
        ("joint", "shuffled", "it matters which wrong tokens the weak model likes"),
        ("wmss", "random_subset", "the selector beats as many examples at random"),
        ("joint", "frozen", "a weak model that trains along beats a frozen one"),
        ("wmss", "joint", "the selector adds to joint training"),
        ("wmss", "sft_twice", "WMSS beats SFT with as much compute"),
    )
    for task, ways in chosen.items():
        for a, b, statement in said:
            if a in ways and b in ways:
                yield Claim(f"{task}-{a}-{b}", f"{statement}: {task}", "hard", f"{task}/{a}", f"{task}/{b}")


def widest_gap(measured: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> tuple[float, bool] | None:
    """The smallest relative entropy gap between the weak and the strong model, and whether it is as wide as the method wants."""
    gaps = [found["entropy_gap"] for seeds in measured.values() for found in seeds.values() if "entropy_gap" in found]
    return (min(gaps), min(gaps) >= 0.1) if gaps else None


def lam_1_is_sft(measured: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> tuple[float, bool] | None:
    """The largest relative difference in NLL, seed by seed, between λ = 1 and SFT."""
    found = [
        abs(one["nll"] / other["nll"] - 1.0)
        for task in TASKS
        for seed, one in measured.get(f"{task}/lam_1", {}).items()
        if (other := measured.get(f"{task}/sft", {}).get(seed)) is not None
    ]
    return (max(found), max(found) <= 0.01) if found else None


PROPERTIES = (
    Property("gap", "the weak model is far enough from the strong one: relative entropy gap of 0.1 or more", widest_gap),
    Property("lam-1", "λ = 1 ends where SFT ends: relative difference in NLL of at most 0.01, rounding aside", lam_1_is_sft, 0.01),
)


# --- measurements ---


def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    """Trains what the arm's recipe describes and measures both branches; goes on where an earlier attempt in `folder` was stopped."""
    recipe, bins = dict(arm.settings), BINS[arm.settings["task"]["name"]]
    if start is not None and "weak" in recipe:
        recipe["weak"] = str(start / recipe["weak"])
    config = configured(recipe, seed, folder, start)
    assert isinstance(config, SFTConfig)
    result = run(config, resume=(folder / "config.yaml").exists()).result
    lines = list(JsonLines(folder / "metrics.jsonl").records())
    policy = load_policy(ModelConfig(), folder=folder / "policy")
    numbers = {"before": result["before"]["mean"], "greedy": result["after"]["mean"], "unscored": float(result["unscored"])}
    numbers |= branch(result["measured"], bins) | sampled(config, policy) | on_training(config, policy)
    if "weak_loss" in result["measured"]:
        numbers |= {f"weak_{name}": value for name, value in branch(result["measured"], bins, "weak_").items()}
        numbers["weak_greedy"] = result["measured"]["weak_pass@1"]
    numbers |= on_the_way(lines)
    names = ("loss/train", *(("eval/pass@1",) if start is None else ()))
    shutil.rmtree(folder / "checkpoints")  # what comes after starts from `policy`
    return Measured({name: value for name, value in numbers.items() if value is not None}, {name: curve(lines, name) for name in names})


def branch(found: Mapping[str, float], bins: Sequence[str], prefix: str = "") -> dict[str, float]:
    """Held-out numbers of one model."""
    names = {"nll": "loss", "ece": "ece", "ece_fitted": "ece_fitted", "fitted_temperature": "fitted_temperature"}
    names |= {"easy": f"pass@1/{bins[0]}", "middle": f"pass@1/{bins[1]}", "hard": f"pass@1/{bins[2]}"}
    return {name: found[prefix + key] for name, key in names.items() if prefix + key in found}


def sampled(config: SFTConfig, policy: Policy) -> dict[str, float]:
    """pass@1 and pass@8 of eight completions at temperature 1, for every eighth as many prompts."""
    task = resolve_task(config.task)
    held = task.heldout(config.evaluation.prompts // 8)
    sampler = Sampler(decoder_for(policy), policy, max_new_tokens=config.max_new_tokens)
    found = evaluate(sampler, held, load_reward(config.reward, task), samples=8, seed=GREEDY_SEED)
    close_all()  # sandboxes of this cell: a process measures many
    return {"sampled": found.interval().mean, "pass@8": verified(found.rewards, held)["pass@8"]}


def on_training(config: SFTConfig, policy: Policy) -> dict[str, float]:
    """Logits on 200 training examples, as in the paper's tables 6 and 7."""
    task = resolve_task(config.task)
    job = CompletionLoss(policy, task, batch_size=1)
    found = measured(job, [task.prompt_at(ordinal, config.seed) for ordinal in range(200)])
    return {f"train_{name}": found[f"logits/{name}"] for name in ("target", "nontarget", "gap", "std", "centred_norm", "entropy")}


def on_the_way(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the mixture was like while training: means over its steps."""
    names = {"p_mix": "wmss/p_mix", "p_strong": "wmss/p_strong", "p_weak": "wmss/p_weak", "c": "wmss/c", "amplified": "wmss/amplified"}
    names |= {"grad_norm_strong": "optimiser/grad_norm_strong", "grad_norm_weak": "optimiser/grad_norm_weak"}
    names |= {"entropy_gap": "wmss/entropy_gap", "unique": "wmss/selected_unique"}
    seen = {name: [line[metric] for line in lines if metric in line] for name, metric in names.items()}
    return {name: fmean(values) for name, values in seen.items() if values}


STUDY = Study("wmss", "A weak past self against SFT that goes on", (__doc__ or "").strip(), plan, measure)
