"""What a step gained: the difference of V between two rounds, with the ways of taking noise out of it, and how much noise is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tacit.core.rollouts import RolloutBatch
from tacit.rl.scheduler import label_variance


@dataclass
class Round:
    """What a round of fresh rollouts says about the policy that drew it.

    `groups` (B,) are the mean rewards of its prompts and `keys` what their past pass rates are filed under; `probes` (P,) the probes' rewards.
    """

    value: float
    entropy: float
    groups: NDArray[np.float64]
    keys: list[str]
    probes: NDArray[np.float64] | None = None


def round_of(drawn: RolloutBatch, values: Tensor, entropy: float, probes: NDArray[np.float64] | None, rates: PastRates) -> Round:
    """From everything that was drawn for training, unscored rollouts left out."""
    rows = drawn.scored.nonzero()[:, 0].numpy()
    v, group = values.numpy()[rows], drawn.group.numpy()[rows]
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    means = np.bincount(inverse, weights=v) / np.bincount(inverse)
    keys = [rates.key(drawn.prompts[rows[i]]) for i in first]
    return Round(float(v.mean()), entropy, means, keys, probes)


class PastRates:
    """The mean reward so far of each prompt, or of each difficulty bin; of one that is new, that of all."""

    def __init__(self, by: Literal["none", "prompt", "difficulty"] = "none"):
        self.by = by
        self.held: dict[str, list[float]] = {}  # key: sum and number

    def key(self, prompt: Any) -> str:
        return "" if self.by == "none" else prompt.id if self.by == "prompt" else str(prompt.info.get("difficulty", prompt.id))

    def add(self, keys: list[str], rewards: NDArray[np.float64]) -> None:
        for key, reward in zip(keys, rewards.tolist(), strict=True):
            total, count = self.held.get(key, (0.0, 0.0))
            self.held[key] = [total + reward, count + 1]

    def of(self, keys: list[str]) -> NDArray[np.float64]:
        """(B,) what was known of these prompts; 0 before there is anything, or without `by`."""
        if self.by == "none" or not self.held:
            return np.zeros(len(keys))
        total, count = np.sum(list(self.held.values()), axis=0)
        mean = total / count
        found = [self.held.get(key, (0.0, 0.0)) for key in keys]
        return np.array([(s + mean) / (n + 1) for s, n in found])  # as if each had been seen once before, with the mean of all


class Gain:
    """V of a round against the mean of the `window` before it; by the probes where there are any.

    The control variate: V of both rounds is taken less the past rates of their prompts, as they stood before either: it has mean 0, since prompts
    are drawn alike in both.
    """

    def __init__(self, window: int, rates: PastRates):
        self.rates = rates
        self.past: deque[Round] = deque(maxlen=window)

    def compare(self, now: Round) -> tuple[float, float, float] | None:
        """(V before, V now, std of their difference by chance); None without a round before."""
        if not self.past:
            return None
        if now.probes is not None:
            befores = [r.probes for r in self.past if r.probes is not None]
            if befores:
                before = np.mean(befores, axis=0)
                both = np.isfinite(before) & np.isfinite(now.probes)
                d = now.probes[both] - before[both]
                noise = float(np.std(d, ddof=1) / np.sqrt(len(d))) if len(d) > 1 else float("nan")
                return float(before[both].mean()), float(now.probes[both].mean()), noise
        centred = [r.groups - self.rates.of(r.keys) for r in (*self.past, now)]
        values = [r.value - float(self.rates.of(r.keys).mean()) for r in (*self.past, now)]
        variances = [label_variance(c) for c in centred]
        noise = (np.mean(variances[:-1]) / len(self.past) + variances[-1]) ** 0.5
        return float(np.mean(values[:-1])), values[-1], float(noise)

    def move_on(self, now: Round) -> None:
        """The newest round joins the window; the one that leaves it becomes known to the past rates."""
        if len(self.past) == self.past.maxlen and self.rates.by != "none":
            self.rates.add(self.past[0].keys, self.past[0].groups)
        self.past.append(now)

    def restart(self) -> None:
        """The policy is another one: the window fills anew."""
        self.past.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"past": [vars(r) | {"keys": list(r.keys)} for r in self.past], "rates": {key: list(x) for key, x in self.rates.held.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = deque((Round(**r) for r in state["past"]), maxlen=self.past.maxlen)
        self.rates.held = {key: list(x) for key, x in state["rates"].items()}
