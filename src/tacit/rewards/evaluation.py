"""Held-out evaluation: how good are a policy's completions, with an interval, and is one policy better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tacit.core.rollouts import Prompt, Role, RolloutBatch
from tacit.core.statistics import Interval, bootstrap, paired_bootstrap
from tacit.rewards.base import RewardFunction, judged

EXAMPLES = 24  # completions kept to look at


class GroupSampler(Protocol):
    """The part of generation.Sampler that evaluation uses."""

    def sample(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: int, step: int, groups: Sequence[int], temperature: float | None, role: Role
    ) -> RolloutBatch: ...


@dataclass
class Evaluation:
    """`rewards` (P, n): n completions for each of P prompts, NaN where unscored; `ids` (P,) name the prompts."""

    rewards: NDArray[np.float64]
    length: float
    truncated: float
    ids: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def per_prompt(self) -> NDArray[np.float64]:
        """(P,) mean reward over the scored completions of each prompt; NaN where there are none."""
        scored = np.isfinite(self.rewards)
        return np.where(scored, self.rewards, 0.0).sum(1) / np.where(scored.any(1), scored.sum(1), np.nan)

    @property
    def unscored(self) -> int:
        return int((~np.isfinite(self.rewards)).sum())

    def interval(self) -> Interval:
        """Mean reward (pass@1 for 0/1 rewards) with a bootstrap interval over prompts; NaN when nothing could be scored."""
        values = self.per_prompt[np.isfinite(self.per_prompt)]
        return bootstrap(values) if len(values) else Interval(np.nan, np.nan, np.nan)

    def metrics(self) -> dict[str, float]:
        mean, low, high = self.interval()
        return {
            "eval/pass@1": mean,
            "eval/pass@1_low": low,
            "eval/pass@1_high": high,
            "eval/length": self.length,
            "eval/truncated": self.truncated,
            "eval/unscored": float(self.unscored),
        }

    def examples(self) -> list[dict[str, Any]]:
        return self.rows

    def __str__(self) -> str:
        mean, low, high = self.interval()
        return f"pass@1 {mean:.3f} [{low:.3f}, {high:.3f}], {len(self.rewards)} prompts × {self.rewards.shape[1]}, {self.unscored} unscored"

    def state_dict(self) -> dict[str, Any]:
        return {"rewards": self.rewards, "length": self.length, "truncated": self.truncated, "ids": self.ids}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Evaluation:
        return cls(**state)

    @classmethod
    def dealt(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """The evaluation of prompts that were dealt out in turns: part r of n had the prompts r, r + n, …"""
        sizes = [len(part.ids) for part in parts]
        turn = np.argsort(np.concatenate([np.arange(size) * len(parts) + r for r, size in enumerate(sizes)]))
        ids = [name for part in parts for name in part.ids]
        length, truncated = (float(np.average([getattr(part, name) for part in parts], weights=sizes)) for name in ("length", "truncated"))
        rows = [row for turns in zip_longest(*(part.rows for part in parts)) for row in turns if row is not None]
        return cls(np.concatenate([part.rewards for part in parts])[turn], length, truncated, [ids[i] for i in turn], rows[:EXAMPLES])


def evaluate(
    sampler: GroupSampler,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    groups: Sequence[int] | None = None,
) -> Evaluation:
    """Draws `samples` completions of each prompt and scores them. Equal seeds give equal random numbers: comparisons are paired.

    `groups` are the places of the prompts in the whole held-out set, where these are a part of it: their completions are those of the whole.
    """
    if not prompts:
        raise ValueError("there is nothing to evaluate on: the list of held-out prompts is empty")
    if temperature <= 0:
        samples = 1  # greedy completions are all alike
    batch = sampler.sample(prompts, samples, seed=seed, step=0, groups=groups or range(len(prompts)), temperature=temperature, role=Role.PROBE)
    scores = judged(reward, batch.prompts, batch.texts)
    values = np.array([np.nan if score.value is None else score.value for score in scores]).reshape(len(prompts), samples)
    rows = [
        {
            "prompt": batch.prompts[i].text,
            "completion": batch.texts[i],
            "answer": batch.prompts[i].answer,
            "reward": scores[i].value,
            "parts": dict(scores[i].parts),
            "failure": scores[i].failure,
            "finished": bool(batch.finished[i]),
        }
        for i in range(0, len(batch), max(1, len(batch) // EXAMPLES))
    ]
    length, truncated = float(batch.lengths.double().mean()), float((~batch.finished).double().mean())
    return Evaluation(values, length, truncated, [prompt.id for prompt in prompts], rows[:EXAMPLES])


def compare(before: Evaluation, after: Evaluation) -> Interval:
    """Interval of the gain, paired by prompt, over the prompts scored in both. Raises ValueError when they had different prompts."""
    if before.ids != after.ids:
        raise ValueError(f"only evaluations on the same prompts can be compared: these had {len(before.ids)} and {len(after.ids)}, not all alike")
    both = np.isfinite(before.per_prompt) & np.isfinite(after.per_prompt)
    if not both.any():
        return Interval(np.nan, np.nan, np.nan)
    return paired_bootstrap(after.per_prompt[both], before.per_prompt[both])
