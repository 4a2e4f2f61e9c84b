"""Loss, gradient and advantages of tacit beside those of TRL 1.16, on the same rollouts with the same weights.

Both libraries go through their own code from fixed completions to the gradient: tacit through `Agent` (annotate, keep, credit, select, plan)
and `run_update`, TRL through `GRPOTrainer._generate_and_score_completions` and `_compute_loss`. Three sets of weights keep every term at
work: the reference (for the KL), those that drew the rollouts, and, off-policy, those that are trained, far enough away that ratios clip.

A case holds when the loss agrees to 1e-5, the gradients' cosine exceeds 0.9999 and their norms agree to 1e-3. A loss can be a sum of terms
that cancel (on-policy, group advantages sum to 0 whatever the model), and fp32 knows it to 1e-7 of the terms only: the loss is compared
relative to itself, but to no less than a hundredth of the sum of the absolute advantages in its place. In TRL's fused head everything
is fp32, so there is no fp64 comparison.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from _common import load_tacit, only_json_on_stdout, saved_model, say, trl_trainer
from tacit.config import AlgorithmConfig, SamplingConfig, TinyConfig
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Ragged, RolloutBatch
from tacit.core.runtime import Runtime
from tacit.core.tiny import EOS_ID
from tacit.rl import aggregation, update
from tacit.rl.agent import Agent
from tacit.rl.step import Step
from tacit.rl.update import Update, run_update
from tacit.tasks.sorting import Sorting

SEED = 0
GROUPS, GROUP_SIZE, MAX_NEW_TOKENS = 6, 4, 24
MODEL = TinyConfig(family="qwen2", hidden=48, layers=3, heads=4, kv_heads=2, mlp=96, context=64)
BARS = {"rel": 1e-5, "cosine": 0.9999, "norm_ratio": 1e-3}


@dataclass(frozen=True)
class Case:
    """One comparison: our algorithm, TRL's settings for the same, and how the rollouts relate to the weights."""

    name: str
    ours: Mapping[str, Any]
    trl: Mapping[str, Any]
    off_policy: bool = False
    micro_batches: int = 1
    temperature: float = 1.0
    departs: str = ""  # why a difference is expected and ours is kept: measured, but no part of the verdict


@dataclass
class Outcome:
    """What one library made of the rollouts."""

    loss: float
    gradient: Tensor
    advantages: Tensor
    size: float = 0.0  # of the terms that make up the loss
    clipped: float = 0.0


# --- the cases ---

CLIP = {"clip_low": 0.2, "clip_high": 0.2}
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({**CLIP, "aggregation": "seq-mean-token-mean"}, {"loss_type": "grpo"}),
    "dr_grpo": ({**CLIP, "aggregation": "seq-mean-token-sum-norm", "advantage": "dr_grpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": ({"clip_low": 0.2, "clip_high": 0.28, "aggregation": "token-mean"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo": ({**CLIP, "aggregation": "token-mean"}, {"loss_type": "bnpo"}),
    "cispo": ({"loss": "cispo", "clip_low": 1.0, "clip_high": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    "gspo": (
        {"loss": "gspo", "clip_low": 0.03, "clip_high": 0.04, "aggregation": "seq-mean-token-mean"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
    ),
}


def cases() -> list[Case]:
    found = []
    for name, (ours, trl) in LOSSES.items():
        for off_policy in (False, True):
            when = "off-policy" if off_policy else "on-policy"
            found.append(Case(f"{name}, {when}", ours, trl, off_policy))
            for corrected in (False, True):
                kl = {"kl": {"coefficient": 0.1, "form": "k3", "importance_weighted": corrected}}
                why = "TRL weights the KL of a token by its row's ratio, ours by its own, which is unbiased" if name == "gspo" and corrected else ""
                label = f"{name}, {when}, KL{' × ratio' if corrected else ''}"
                found.append(Case(label, {**ours, **kl}, {**trl, "beta": 0.1, "use_bias_correction_kl": corrected}, off_policy, departs=why))
    for name in ("grpo", "dr_grpo", "dapo", "bnpo", "gspo"):
        ours, trl = LOSSES[name]
        high, dual = (0.06, 1.1) if name == "gspo" else (0.35, 1.5)
        found.append(Case(f"{name}, clip-higher", {**ours, "clip_high": high}, {**trl, "epsilon_high": high}, True))
        found.append(Case(f"{name}, dual clip", {**ours, "dual_clip": dual}, {**trl, "delta": dual}, True))
    for name in ("grpo", "dapo", "gspo"):
        ours, trl = LOSSES[name]
        masked = {**trl, "mask_truncated_completions": True}
        found.append(Case(f"{name}, truncated masked", {**ours, "filter": {"drop_truncated": True}}, masked, True))
        found.append(Case(f"{name}, temperature 0.7", ours, trl, True, temperature=0.7))
    for name, (ours, trl) in LOSSES.items():
        why = "TRL's bnpo divides each micro-batch by its own tokens, ours by those of the whole step" if name == "bnpo" else ""
        found.append(Case(f"{name}, 4 micro-batches", ours, trl, True, micro_batches=4, departs=why))
    return found


# --- what both are given ---


@dataclass
class Given:
    """Fixed rollouts of unequal length and three sets of weights."""

    folder: Path  # holds the reference weights
    prompts: list[Prompt]  # one per rollout, group by group
    prompt_ids: list[list[int]]
    completions: list[list[int]]
    rewards: list[float | None]
    behaviour: dict[str, Tensor]
    current: dict[str, Tensor]


def make(folder: Path) -> Given:
    generator = torch.Generator().manual_seed(SEED)
    policy = load_tacit(folder)

    def moved(weights: Mapping[str, Tensor], size: float) -> dict[str, Tensor]:
        return {name: w + size * torch.randn(w.shape, generator=generator) for name, w in weights.items()}

    behaviour = moved(policy.state_dict(), 0.1)
    current = moved(behaviour, 0.015)
    questions = [Sorting().prompt_at(i, SEED) for i in range(GROUPS)]
    prompts = [question for question in questions for _ in range(GROUP_SIZE)]
    lengths = torch.randint(1, MAX_NEW_TOKENS + 1, (len(prompts),), generator=generator)
    lengths[::5] = MAX_NEW_TOKENS  # cut off at the limit: without EOS
    letters = torch.randint(EOS_ID + 1, EOS_ID + 1 + len(set(Sorting.alphabet)), (len(prompts), MAX_NEW_TOKENS), generator=generator)
    completions = [row[:n].tolist() if n == MAX_NEW_TOKENS else [*row[: n - 1].tolist(), EOS_ID] for row, n in zip(letters, lengths, strict=True)]
    rewards = torch.rand(len(prompts), generator=generator).round(decimals=1)
    rewards[: 2 * GROUP_SIZE] = (rewards[: 2 * GROUP_SIZE] > 0.5).float()
    rewards[2 * GROUP_SIZE : 3 * GROUP_SIZE] = 1.0  # a group that agrees
    return Given(folder, prompts, [policy.encode_prompt(p) for p in prompts], completions, rewards.tolist(), behaviour, current)


# --- tacit ---


class KeepGradient:
    """Stands in for the optimiser: takes the gradient down instead of making a step of it."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.gradient = torch.empty(0)

    def step(self) -> None:
        self.gradient = flat([p.grad for _, p in self.policy.trainable()])

    def zero_grad(self) -> None:
        self.policy.model.zero_grad()


def ours(given: Given, case: Case) -> Outcome:
    algorithm: dict[str, Any] = {**case.ours, "old_logprobs": "recompute" if case.off_policy else "auto"}
    if case.micro_batches > 1:
        algorithm["micro_batch_tokens"] = 100
    policy = load_tacit(given.folder)
    sampling = SamplingConfig(prompts=GROUPS, group_size=GROUP_SIZE, max_new_tokens=MAX_NEW_TOKENS, temperature=case.temperature)
    agent = Agent(policy, algorithm=AlgorithmConfig(**algorithm), sampling=sampling)  # keeps the reference
    agent.optimiser_config = agent.optimiser_config.model_copy(update={"max_grad_norm": None})
    agent.optimiser = KeepGradient(policy)  # pyright: ignore[reportAttributeAccessIssue]

    policy.load_state_dict(given.behaviour)
    step, fresh = Step(0, SEED), agent.annotate(rollouts(policy, given, case.temperature))
    step.add(fresh, agent.keep(step, fresh))
    if case.off_policy:
        policy.load_state_dict(given.current)
        policy.version += 1
    pool = agent.credit(step)
    [plan] = agent.plan(step, agent.select(step, pool))

    losses, objective = [], update.objective

    def recorded(*arguments: Any) -> Tensor:
        losses.append(objective(*arguments))
        return losses[-1]

    with mock.patch.object(update, "objective", recorded):
        metrics = run_update(agent, plan, 0, Runtime(device="cpu"), (SEED,))
    assert len(losses) >= case.micro_batches
    loss = sum(float(x.detach()) for x in losses)
    return Outcome(loss, agent.optimiser.gradient, pool.advantage, size(plan), metrics["health/clip_fraction"])


def rollouts(policy: Policy, given: Given, temperature: float) -> RolloutBatch:
    prompt_tokens, completions = Ragged.from_lists(given.prompt_ids), Ragged.from_lists(given.completions)
    reward = torch.tensor([torch.nan if r is None else r for r in given.rewards], dtype=torch.float64)
    return RolloutBatch(
        given.prompts,
        prompt_tokens,
        completions.offsets,
        rows={
            "group": torch.arange(GROUPS).repeat_interleave(GROUP_SIZE),
            "finished": torch.tensor([ids[-1] == EOS_ID for ids in given.completions]),
            "scored": reward.isfinite(),
            "reward": reward.nan_to_num(0.0),
            "version": torch.full((len(given.prompts),), policy.version),
        },
        tokens={
            "token": completions.values,
            "behaviour_logp": policy.token_stats(prompt_tokens, completions, temperature=temperature).logp,
        },
    )


def size(plan: Update) -> float:
    """The loss if no two terms cancelled: the aggregate of the absolute advantages."""
    batch = plan.batch
    counts = aggregation.denominators(batch.action, batch.offsets, MAX_NEW_TOKENS)
    return float(aggregation.aggregate(plan.advantages.abs(), batch.action, batch.offsets, plan.aggregation, counts))


# --- TRL ---


def trls(given: Given, case: Case) -> Outcome:
    settings = {
        "per_device_train_batch_size": len(given.prompts) // case.micro_batches,
        "gradient_accumulation_steps": case.micro_batches,
        "num_generations": GROUP_SIZE,
        "num_iterations": 2 if case.off_policy else 1,  # from two on, TRL keeps the log-probs of the weights that drew
        "max_completion_length": MAX_NEW_TOKENS,
        "temperature": case.temperature,
        **case.trl,
    }

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {"prompt_ids": given.prompt_ids, "completion_ids": given.completions, "logprobs": [[0.0] * len(c) for c in given.completions]}

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return given.rewards

    texts = [prompt.text for prompt in given.prompts]
    with tempfile.TemporaryDirectory() as output:
        trainer = trl_trainer(given.folder, Path(output), texts, reward, settings, rollout_func=rollout)
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = case.micro_batches
    model.load_state_dict(given.behaviour, strict=False)
    scored = trainer._generate_and_score_completions([{"prompt": text} for text in texts])
    if case.off_policy:
        model.load_state_dict(given.current, strict=False)
    assert case.off_policy == ("old_per_token_logps" in scored)
    loss = 0.0
    for part in split_tensor_dict(scored, case.micro_batches):
        partial = trainer._compute_loss(model, part)
        partial.backward()
        loss += float(partial.detach())
    return Outcome(loss, flat([p.grad for p in model.parameters()]), scored["advantages"].double())


# --- the comparison ---


def flat(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradients if g is not None])


def compare(given: Given, case: Case) -> dict[str, Any]:
    a, b = ours(given, case), trls(given, case)
    found = {
        "rel": abs(a.loss - b.loss) / max(abs(b.loss), 0.01 * a.size),
        "cosine": float(torch.cosine_similarity(a.gradient, b.gradient, dim=0)),
        "norm_ratio": float(a.gradient.norm() / b.gradient.norm()),
    }
    agrees = found["rel"] <= BARS["rel"] and found["cosine"] > BARS["cosine"] and abs(found["norm_ratio"] - 1) <= BARS["norm_ratio"]
    active = a.clipped > 0 if case.off_policy else a.clipped == 0
    result = {"name": case.name, "loss_ours": a.loss, "loss_trl": b.loss, **found, "clipped": round(a.clipped, 3), "holds": agrees and active}
    verdict = "departs" if case.departs else "holds" if result["holds"] else "FAILS"
    say(f"{verdict:8}{case.name:34}" + "  ".join(f"{name} {value:.9g}" for name, value in found.items()))
    return result | ({"departs": case.departs} if case.departs else {})


def compare_advantages(given: Given, name: str, advantage: str, scale: str) -> dict[str, Any]:
    """Of all rollouts; with one that nobody could judge, which both leave out of its group's statistics."""
    rewards = [None if i == 1 else reward for i, reward in enumerate(given.rewards)]
    given = Given(**{**vars(given), "rewards": rewards})
    case = Case(name, {"advantage": advantage}, {"scale_rewards": scale})
    a, b = ours(given, case).advantages, trls(given, case).advantages
    difference = float((a - b).abs().max())
    say(f"{'holds' if difference < 1e-5 else 'FAILS':8}advantages {name:23}largest difference {difference:.3g}")
    return {"name": name, "largest_difference": difference, "holds": difference < 1e-5}


def main() -> int:
    torch.set_num_threads(1)
    with only_json_on_stdout() as result, saved_model(MODEL, Sorting.alphabet, SEED) as folder:
        given = make(folder)
        found = [compare(given, case) for case in cases()]
        scales = [("grpo, scaled by the group", "grpo", "group"), ("dr_grpo, not scaled", "dr_grpo", "none")]
        advantages = [compare_advantages(given, *scale) for scale in scales]
        judged = [c for c in found if "departs" not in c]
        holds = all(c["holds"] for c in [*judged, *advantages])
        lengths = [len(c) for c in given.completions]
        result |= {"benchmark": "parity_trl", "holds": holds, "bars": BARS, "dtype": "float32", "threads": 1, "seed": SEED}
        result |= {"rollouts": {"groups": GROUPS, "group_size": GROUP_SIZE, "lengths": lengths, "rewards": given.rewards}}
        result |= {"cases": judged, "departures": [c for c in found if "departs" in c], "advantages": advantages}
        say(f"{sum(c['holds'] for c in judged)} of {len(judged)} cases hold, {sum(a['holds'] for a in advantages)} of {len(advantages)} advantages")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
