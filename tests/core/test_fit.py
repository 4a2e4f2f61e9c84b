"""Fit: one optimiser step per batch, equal for any split, and a resumed run is the run that was not interrupted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit.config import OptimiserConfig
from tacit.core.checkpoint import CheckpointStore
from tacit.core.fit import Fit
from tacit.core.runtime import Runtime

ROWS = 12
CONFIG = OptimiserConfig(lr=0.05, weight_decay=0.01, warmup=2, schedule="cosine", max_grad_norm=0.5)


class Regression:
    """A small network learns a line from ROWS points a step, cut into micro-batches at `cuts`. The loss of the step `poisoned` is not finite."""

    def __init__(self, cuts: tuple[int, ...] = (), dropout: float = 0.0, poisoned: int = -1):
        torch.manual_seed(4)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).double()
        self.cuts, self.poisoned = cuts, poisoned

    def module(self) -> nn.Module:
        return self.network

    def batch_at(self, step: int, ranks: int = 1) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, 3, dtype=torch.float64, generator=generator)
        y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        if step == self.poisoned:
            y = y * torch.nan
        return list(zip(x.tensor_split(self.cuts), y.tensor_split(self.cuts), strict=True))

    def weight(self, micro: tuple[Tensor, Tensor]) -> float:
        return float(len(micro[0]))

    def loss(self, micro: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x, y = micro
        error = self.network(x)[:, 0] - y
        return error.square().sum(), {"accuracy": (error.abs() < 0.5).sum(), "rows": float(len(x))}


def fit(job: Any, **options: Any) -> Fit:
    return Fit(job, CONFIG, steps=40, runtime=Runtime(device="cpu"), **options)


def weights(job: Regression) -> list[Tensor]:
    return [p.detach().clone() for p in job.network.parameters()]


def test_the_loss_falls():
    loop = fit(Regression(cuts=(5,)))
    losses = [loop.step()["loss/train"] for _ in range(40)]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert loop.index == 40


@settings(max_examples=15)
@given(st.sets(st.integers(1, ROWS - 1), max_size=5))
def test_any_micro_batch_split_gives_the_same_step(cuts):
    whole, split = Regression(), Regression(cuts=tuple(sorted(cuts)))
    one, other = fit(whole), fit(split)
    for _ in range(3):
        expected, found = one.step(), other.step()
        for name in ("loss/train", "accuracy", "rows", "optimiser/grad_norm", "optimiser/lr"):
            assert found[name] == pytest.approx(expected[name], rel=1e-9)
    torch.testing.assert_close(weights(split), weights(whole), rtol=0, atol=1e-9)


def test_metrics_are_means_over_the_batch():
    job = Regression(cuts=(2, 7))
    error = torch.cat([job.network(x)[:, 0] - y for x, y in job.batch_at(0)]).detach()
    loss = (job.network(job.batch_at(0)[0][0])[:, 0] * 0).sum()  # a graph of its own, to take the gradient by hand
    for x, y in job.batch_at(0):
        loss = loss + (job.network(x)[:, 0] - y).square().sum() / ROWS
    gradient = torch.autograd.grad(loss, list(job.network.parameters()))
    metrics = fit(job).step()
    assert metrics["loss/train"] == pytest.approx(float(error.square().mean()), rel=1e-12)
    assert metrics["accuracy"] == pytest.approx(float((error.abs() < 0.5).double().mean()), rel=1e-12) and metrics["rows"] == 1.0
    assert metrics["optimiser/grad_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradient)), rel=1e-9)
    assert metrics["optimiser/lr"] == pytest.approx(0.025), "the rate that this step was taken with"
    assert metrics["throughput/trained_tokens_per_second"] == pytest.approx(ROWS / metrics["time/step"])


def test_a_resumed_run_is_bit_equal(tmp_path):
    """With dropout, so that the random numbers have to go on where they were."""
    straight = Regression(cuts=(4,), dropout=0.5)
    torch.manual_seed(9)
    loop = fit(straight)
    expected = [loop.step()["loss/train"] for _ in range(8)]

    interrupted = Regression(cuts=(4,), dropout=0.5)
    torch.manual_seed(9)
    loop = fit(interrupted)
    found = [loop.step()["loss/train"] for _ in range(5)]
    CheckpointStore(tmp_path).save(5, {"network": interrupted.network.state_dict(), "fit": loop.state_dict()})

    resumed = Regression(cuts=(4,), dropout=0.5)
    torch.manual_seed(1234)
    loop = fit(resumed)
    state = CheckpointStore(tmp_path).latest().state
    resumed.network.load_state_dict(state["network"])
    loop.load_state_dict(state["fit"])
    assert loop.index == 5
    found += [loop.step()["loss/train"] for _ in range(3)]
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(straight), strict=True))


def test_a_step_that_is_not_finite_is_skipped():
    job = Regression(poisoned=1)
    loop = fit(job)
    loop.step()
    before = weights(job)
    metrics = loop.step()
    assert not math.isfinite(metrics["optimiser/grad_norm"]) and not math.isfinite(metrics["loss/train"])
    assert all(torch.equal(a, b) for a, b in zip(weights(job), before, strict=True))
    assert loop.index == 2, "the next step takes the next batch"
    assert math.isfinite(loop.step()["loss/train"]) and not any(torch.equal(a, b) for a, b in zip(weights(job), before, strict=True))


def test_training_mode_is_set():
    job = Regression(dropout=0.5)
    job.network.eval()
    fit(job).step()
    assert job.network.training


def test_a_batch_without_anything_to_learn():
    job = Regression(cuts=(4,))
    job.weight = lambda micro: 0.0
    loop = fit(job)
    loop.index = 3
    before = weights(job)
    with pytest.raises(ValueError, match="the batch of step 3 has nothing to learn from: no supervised token in 2 micro-batches"):
        loop.step()
    job.batch_at = lambda step, ranks=1: []
    with pytest.raises(ValueError, match="nothing to learn from"):
        loop.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(job), before, strict=True))


def test_frozen_weights_stay():
    job = Regression()
    job.network[0].requires_grad_(False)
    before = weights(job)
    loop = fit(job)
    loop.step()
    assert [torch.equal(a, b) for a, b in zip(weights(job), before, strict=True)] == [True, True, False, False]
    job.network.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(job)


class Crowd(Runtime):
    """A runtime in which other ranks have more micro-batches than this one, and report sums of their own."""

    def even(self, rows: list[Tensor]) -> list[Tensor]:
        return [*rows, torch.empty(0, dtype=torch.int64)]

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, {"loss/train": 24.0, "seen elsewhere": 6.0}] if "loss/train" in value else [value]


def test_a_rank_without_work_takes_part_and_adds_nothing():
    alone, idle = Regression(cuts=(4,)), Regression(cuts=(4,))
    expected = Fit(alone, CONFIG, steps=40).step()
    found = Fit(idle, CONFIG, steps=40, runtime=Crowd(device="cpu")).step()
    torch.testing.assert_close(weights(idle), weights(alone), rtol=0, atol=0)
    assert found["loss/train"] == pytest.approx(expected["loss/train"] + 24.0 / ROWS)
    assert found["seen elsewhere"] == 6.0 / ROWS and found["rows"] == 1.0
