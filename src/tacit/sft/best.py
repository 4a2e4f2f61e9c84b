"""The best policy that evaluations have seen, and whether it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

METRICS = {"loss": ("eval/loss", -1.0), "verifier": ("eval/pass@1", 1.0)}  # what is looked at, and which way is better


class Best:
    """Compares evaluations by `by`; of equal ones the first stays the best. Where the best is to be `restored`, its weights are remembered.

    `patience`: evaluations in a row without a better one after which training should end; 0: never.
    """

    def __init__(self, by: Literal["loss", "verifier"] = "loss", patience: int = 0, *, restored: bool = False):
        self.by, self.patience, self.restored = by, patience, restored
        self.score, self.step, self.judged = -math.inf, 0, -1  # of the best; and the last step that was judged
        self.without = 0  # evaluations since the best
        self.weights: dict[str, Tensor] = {}

    @property
    def ends(self) -> bool:
        return 0 < self.patience <= self.without

    def judge(self, step: int, metrics: Mapping[str, float], weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Takes note of the evaluation at `step`, once. One that says nothing (NaN) is no better than any other."""
        if step <= self.judged:
            return
        self.judged = step
        name, sign = METRICS[self.by]
        if (score := sign * metrics[name]) > self.score:
            self.score, self.step, self.without = score, step, 0
            if self.restored:
                self.weights = {key: tensor.clone() for key, tensor in weights().items()}
        else:
            self.without += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("score", "step", "judged", "without", "weights")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
