"""The scheduler of CBS: the arm reward, the ten features of a rollout, the network that scores them, and how one label teaches it.

Source: "Contextual Rollout Bandits for RLVR", arXiv 2602.08499, of which abstract and introduction are public. Arm reward, the two choices and eight
of the ten features come from third-party digests; what they leave open is our reconstruction, said so where it stands.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FEATURES = ("reward", "advantage", "length", "truncated", "entropy", "clip_ratio", "age", "usage", "pass_rate", "logp")
BOUND = 3.0  # of an advantage and of a z-score
TINY = 1e-8


def arm_reward(v: float, v_next: float, e: float, e_next: float, w_e: float, e_min: float) -> float:
    """(V' - V) - w_e 1[E > e_min] (E' - E): the gain of the policy over one step, less a price for entropy that grew from above e_min.

    V: mean reward, E: mean token entropy in nats, of the whole fresh batches before and after the update.
    Source: arXiv 2602.08499, as two digests give it.
    """
    return (v_next - v) - w_e * (e > e_min) * (e_next - e)


def label_variance(group_means: NDArray[np.float64]) -> float:
    """The variance of V, the mean over B groups, from their spread: the unbiased variance of the group means (B,) over B; NaN for fewer than two.

    Its expectation is Var(p) / B + E[p (1 - p)] / (B G) for pass rates p and groups of G: new prompts every round, and answers drawn at random.
    """
    return float(group_means.var(ddof=1) / len(group_means)) if len(group_means) > 1 else float("nan")


def clip_ratio(logp: Tensor, behaviour: Tensor, rows: Tensor, mask: Tensor, size: int, low: float, high: float) -> Tensor:
    """(B,) share of a rollout's tokens whose ratio exp(logp - behaviour) lies outside [1 - low, 1 + high]. logp, behaviour, rows, mask: (T,)."""
    ratio = (logp - behaviour).double().exp()
    return row_mean(((ratio < 1 - low) | (ratio > 1 + high)).double(), rows, mask, size)


def row_mean(values: Tensor, rows: Tensor, mask: Tensor, size: int) -> Tensor:
    """(B,) mean of (T,) values over each row's tokens in `mask`; 0 for a row without any."""
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, rows[mask], values[mask].double())
    counts = torch.zeros(size, dtype=torch.float64).index_add_(0, rows[mask], torch.ones(int(mask.sum()), dtype=torch.float64))
    return sums / counts.clamp(min=1)


@dataclass(frozen=True)
class Context:
    """What is known of B rollouts when they are scored, (B,) float64 each. Ages in rounds; `usage` counts the updates that each has entered."""

    reward: Tensor
    advantage: Tensor
    length: Tensor
    truncated: Tensor
    entropy: Tensor
    clip_ratio: Tensor
    age: Tensor
    usage: Tensor
    pass_rate: Tensor
    logp: Tensor


def features(context: Context, z: Mapping[str, tuple[float, float]], *, limit: int, rounds: int) -> Tensor:
    """(B, 10) float64, in the order of FEATURES, each near [-1, 1] or within ±3. `z`: mean and std of entropy and log-prob in rounds before this one.

    Our scaling: advantage clipped to ±3, / 3; length / `limit`; age / `rounds`; usage log(1 + u) / log(1 + `rounds`); entropy and log-prob as
    z-scores clipped to ±3; the others as they are. The last two features are ours: a digest counts ten and names eight.
    """
    standard = {name: ((getattr(context, name) - mean) / max(std, TINY)).clamp(-BOUND, BOUND) for name, (mean, std) in z.items()}
    scaled = {
        "advantage": context.advantage.clamp(-BOUND, BOUND) / BOUND,
        "length": context.length / limit,
        "age": context.age / rounds,
        "usage": torch.log1p(context.usage) / np.log1p(rounds),
        **standard,
    }
    return torch.stack([scaled.get(name, getattr(context, name)).double() for name in FEATURES], dim=1)


class Normaliser:
    """Mean and std over rounds, later ones weighing more (`decay` a round). It knows the rounds that it was shown and nothing else."""

    def __init__(self, decay: float = 0.95):
        self.decay, self.weight, self.first, self.second = decay, 0.0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Takes in the values (B,) of a round; every round counts alike, whatever its size."""
        if len(values):
            self.take(float(values.mean()), float(values.square().mean()))

    def take(self, mean: float, square: float) -> None:
        """The same from the mean and the mean square of a round."""
        self.weight = self.decay * self.weight + 1
        self.first = self.decay * self.first + mean
        self.second = self.decay * self.second + square

    @property
    def moments(self) -> tuple[float, float]:
        """(mean, std); before the first round an infinite std, which makes every z-score 0."""
        if not self.weight:
            return 0.0, float("inf")
        mean = self.first / self.weight
        return mean, max(0.0, self.second / self.weight - mean**2) ** 0.5

    def state_dict(self) -> dict[str, float]:
        return {"weight": self.weight, "first": self.first, "second": self.second}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.weight, self.first, self.second = state["weight"], state["first"], state["second"]


def standardised(labels: NDArray[np.float64], decay: float = 0.95) -> NDArray[np.float64]:
    """(R,) labels in the order in which they came, each less the exponential mean of those up to it, over their std; the first is 0.

    Gains shrink while a policy learns; without their trend taken away a scorer learns the time from features that drift. Our reconstruction.
    """
    seen, found = Normaliser(decay), np.zeros(len(labels))
    for i, label in enumerate(labels.tolist()):
        seen.take(label, label * label)
        mean, std = seen.moments
        found[i] = (label - mean) / std if std > 1e-7 * max(1.0, abs(mean)) else 0.0  # else it is rounding
    return found


def label_loss(scores: Tensor, rounds: Tensor, labels: Tensor, kind: Literal["sample", "set"]) -> Tensor:
    """How far scores (N,) are from the labels (R,) of the rounds (N,) that they belong to, a scalar.

    sample  (A) mean over rounds of mean over x of (f(x) - r)²: each rollout is an arm that was paid r
    set     (B) mean over rounds of (mean over x of f(x) - r)²: only the whole choice was paid
    Source: our reconstruction; the paper's loss is not public.
    """
    counts = torch.bincount(rounds, minlength=len(labels)).clamp(min=1)
    total = scores.new_zeros(len(labels))
    if kind == "sample":
        return (total.index_add(0, rounds, (scores - labels[rounds]).square()) / counts).mean()
    return (total.index_add(0, rounds, scores) / counts - labels).square().mean()


class Scorer(nn.Module):
    """f: 10 features → width → width → 1, with ReLU and dropout; `width` 0: linear. Made and run with random numbers of its own."""

    def __init__(self, width: int = 64, dropout: float = 0.1, seed: int = 0):
        super().__init__()
        sizes = [len(FEATURES), *([width, width] if width else []), 1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = dropout

    def forward(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """(N, 10) → (N,). With an `rng`, hidden units drop out."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
            if rng is not None and self.dropout:
                x = x * kept_units(rng, x.numel(), self.dropout).view_as(x)
        return self.layers[-1](x)[:, 0]


def kept_units(rng: np.random.Generator, count: int, dropout: float) -> Tensor:
    """(count,) float32: 0 with probability `dropout`, to the next 1/256, else what keeps the mean at 1. By a byte each, for speed."""
    dropped = round(256 * dropout)
    kept = np.frombuffer(rng.bytes(count), np.uint8) >= dropped
    return torch.from_numpy(kept.astype(np.float32) * np.float32(256 / (256 - dropped)))


@dataclass(frozen=True)
class Decision:
    """What was chosen in a round, (K, 10) features, and what came of it: V and E before and after, once they are known."""

    features: Tensor
    v: float
    e: float
    v_next: float = float("nan")
    e_next: float = float("nan")


class Scheduler:
    """The scorer, its optimiser, and the labelled decisions of the last `pool` rounds that it is fitted on.

    Adam 1e-3 with weight decay 1e-4 over `epochs` passes a round, `at_once` rounds an optimiser step: our choice, for few labels and ten inputs.
    `w_e` and `e_min` of None come from the first `warmup` labels: e_min the mean entropy, w_e so that 10 % more entropy costs one std of the gain.
    """

    def __init__(
        self,
        *,
        kind: Literal["sample", "set"] = "sample",
        width: int = 64,
        dropout: float = 0.1,
        pool: int = 64,
        epochs: int = 2,
        at_once: int = 16,
        warmup: int = 8,
        w_e: float | None = None,
        e_min: float | None = None,
        standardise: bool = True,
        shuffled: bool = False,
        seed: int = 0,
    ):
        self.kind: Literal["sample", "set"] = kind
        self.epochs, self.at_once, self.warmup, self.standardise, self.shuffled, self.seed = epochs, at_once, warmup, standardise, shuffled, seed
        self.w_e, self.e_min = w_e, e_min
        self.scorer = Scorer(width, dropout, seed)
        self.optimiser = torch.optim.Adam(self.scorer.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
        self.pool: deque[Decision] = deque(maxlen=pool)
        self.labelled = 0  # decisions with a label so far

    def add(self, decision: Decision) -> None:
        """Takes in a decision whose outcome is known."""
        self.pool.append(decision)
        self.labelled += 1
        if self.labelled == self.warmup:
            self.settle()

    def settle(self) -> None:
        """The price of entropy, from the warm-up."""
        gains = [d.v_next - d.v for d in self.pool]
        if self.e_min is None:
            self.e_min = float(np.mean([d.e for d in self.pool]))
        if self.w_e is None:
            self.w_e = float(np.std(gains, ddof=1)) / max(0.1 * self.e_min, TINY) if len(gains) > 1 else 0.0

    def rewards(self) -> NDArray[np.float64]:
        """The arm rewards of the pool, the oldest first; before the warm-up is over, gains alone."""
        w_e, e_min = self.w_e or 0.0, self.e_min if self.e_min is not None else float("inf")
        return np.array([arm_reward(d.v, d.v_next, d.e, d.e_next, w_e, e_min) for d in self.pool])

    def fit(self) -> float:
        """Trains the scorer on the pool; the loss of the last pass."""
        labels = standardised(self.rewards()) if self.standardise else self.rewards()
        rng = np.random.default_rng((self.seed, self.labelled))
        if self.shuffled:
            labels = rng.permutation(labels)
        losses: list[float] = []
        for _ in range(self.epochs):
            losses = []
            for part in np.array_split(rng.permutation(len(labels)), -(-len(labels) // self.at_once)):
                x = [self.pool[i].features for i in part]
                rounds = torch.repeat_interleave(torch.arange(len(part)), torch.tensor([len(f) for f in x]))
                scores = self.scorer(torch.cat(x), rng)
                loss = label_loss(scores, rounds, torch.tensor(labels[part], dtype=torch.float32), self.kind)
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                losses.append(float(loss.detach()))
        return float(np.mean(losses))

    @torch.no_grad()
    def scores(self, found: Tensor) -> NDArray[np.float64]:
        """(N,) scores of (N, 10) features."""
        return self.scorer(found.float()).double().numpy()

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "scorer": {name: p.clone() for name, p in self.scorer.state_dict().items()},
            "optimiser": self.optimiser.state_dict(),
            "pool": [decision_state(d) for d in self.pool],
            "labelled": self.labelled,
            "w_e": self.w_e,
            "e_min": self.e_min,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scorer.load_state_dict(state["scorer"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.pool = deque((Decision(**d) for d in state["pool"]), maxlen=self.pool.maxlen)
        self.labelled, self.w_e, self.e_min = state["labelled"], state["w_e"], state["e_min"]


def fit_seconds(rows: int, **options: Any) -> float:
    """What a fit takes here when the pool is full, with `rows` rollouts a round, in seconds: measured on a scheduler with these options."""
    scheduler, found = Scheduler(**options), torch.zeros(rows, len(FEATURES))
    assert scheduler.pool.maxlen is not None
    for i in range(scheduler.pool.maxlen):
        scheduler.add(Decision(found, 0.0, 1.0, float(i % 2), 1.0))
    scheduler.fit()  # the first one also sets up
    began = time.perf_counter()
    scheduler.fit()
    return time.perf_counter() - began


def decision_state(decision: Decision) -> dict[str, Any]:
    return {name: getattr(decision, name) for name in ("features", "v", "e", "v_next", "e_next")}


def explored(since: int, start: float, end: float, over: int) -> float:
    """ε, `since` rounds after the warm-up: from `start` in equal steps to `end` after `over` rounds, where it stays."""
    return end + (start - end) * max(0.0, 1 - since / over)
