"""Best: which evaluation wins, when training ends, and what survives a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from tacit.sft.best import Best


def judged(best: Best, losses: list[float]) -> Best:
    for step, loss in enumerate(losses):
        best.judge(10 * step, {"eval/loss": loss, "eval/pass@1": 1 - loss}, lambda s=step: {"w": torch.tensor([float(s)])})
    return best


@pytest.mark.parametrize("by", ["loss", "verifier"])
def test_the_first_of_equal_ones_is_the_best(by):
    best = judged(Best(by, 2, restored=True), [0.9, 0.5, 0.5])
    assert (best.step, best.without, best.ends) == (10, 1, False) and best.weights["w"].item() == 1
    best.judge(30, {"eval/loss": 0.6, "eval/pass@1": 0.4}, dict)
    assert best.ends
    best.judge(30, {"eval/loss": 0.1, "eval/pass@1": 0.9}, dict)  # the same step again says nothing new
    assert best.step == 10


def test_without_patience_it_never_ends_and_without_restoring_it_keeps_no_weights():
    best = judged(Best(), [0.1, 0.2, 0.3, 0.4])
    assert not best.ends and not best.weights and best.step == 0


def test_an_evaluation_that_says_nothing_is_no_better():
    best = judged(Best("verifier", 1), [0.5, math.nan])
    assert best.step == 0 and best.ends


def test_it_goes_on_from_its_state():
    state = judged(Best(patience=3, restored=True), [0.5, 0.4, 0.6]).state_dict()
    again = Best(patience=3, restored=True)
    again.load_state_dict(state)
    assert again.state_dict() == state and (again.step, again.without, again.judged) == (10, 1, 20)
