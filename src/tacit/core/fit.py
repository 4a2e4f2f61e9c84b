"""Fit: the one supervised loop. A job brings batches and a loss; SFT, reward models, preference losses and distillation are such jobs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tacit.config import OptimiserConfig
from tacit.core.runtime import Runtime, clip_and_step, load_optimiser, make_optimiser, whole

Micro = TypeVar("Micro")


class Job(Protocol[Micro]):
    """What is learnt. What a batch holds depends on the step alone, so the data cursor of a run is its step, and every rank sees the same batch."""

    def module(self) -> nn.Module:
        """What trains."""
        ...

    def batch_at(self, step: int, ranks: int = 1) -> Sequence[Micro]:
        """The micro-batches of one optimiser step. With several ranks there should be one for each, or more, of like size: they take turns."""
        ...

    def weight(self, micro: Micro) -> float:
        """The part of a micro-batch in the mean that is minimised: its supervised tokens, or pairs. Known without a forward pass."""
        ...

    def loss(self, micro: Micro) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """(loss, metrics) of a micro-batch, each *summed* over what `weight` counts; the loop divides by the weight of the whole batch."""
        ...


class Fit:
    """Minimises the mean loss of `job`, one optimiser step per batch. Equal for any micro-batch split and number of ranks.

    The gradient norm of each of `branches`, parts of the module by name, is logged; with `clip_branches` each is clipped for itself.

    Raises ValueError when a batch has nothing to learn from.
    """

    def __init__(
        self,
        job: Job[Any],
        optimiser: OptimiserConfig,
        *,
        steps: int,
        runtime: Runtime | None = None,
        branches: Mapping[str, nn.Module] | None = None,
        clip_branches: bool = False,
    ):
        self.job, self.runtime, self.max_grad_norm = job, runtime or Runtime(), optimiser.max_grad_norm
        self.branches, self.clip_branches = dict(branches or {}), clip_branches
        named = [(name, p) for name, p in job.module().named_parameters() if p.requires_grad]
        self.params = [p for _, p in named]
        self.optimiser, self.scheduler = make_optimiser(named, optimiser, steps)
        self.index = 0  # optimiser steps done

    def step(self) -> dict[str, float]:
        """One optimiser step; returns the means of loss and metrics over the batch."""
        start = time.perf_counter()
        micros = self.job.batch_at(self.index, self.runtime.world_size)
        total = sum(self.job.weight(micro) for micro in micros)
        if total <= 0:
            raise ValueError(f"the batch of step {self.index} has nothing to learn from: no supervised token in {len(micros)} micro-batches")
        self.job.module().train()
        sums: dict[str, float] = {}
        for turn in self.runtime.even([torch.tensor([i]) for i in range(self.runtime.rank, len(micros), self.runtime.world_size)]):
            idle = not len(turn)  # this rank has run out while others still compute
            loss, metrics = self.job.loss(micros[0 if idle else int(turn)])
            (loss * (0.0 if idle else 1.0 / total)).backward()
            if not idle:
                for name, value in {"loss/train": loss, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(torch.as_tensor(value).detach())
        self.runtime.reduce_gradients(self.params)
        lr = self.optimiser.param_groups[0]["lr"]
        norms = {name: self._norm(branch) for name, branch in self.branches.items()}
        norm = clip_and_step(self.optimiser, self.scheduler, self.params, None if self.clip_branches else self.max_grad_norm)
        self.index += 1
        everyone = self.runtime.gather_objects(sums)
        names = {name: None for part in everyone for name in part}  # an ordered set
        means = {name: sum(part.get(name, 0.0) for part in everyone) / total for name in names}
        seconds = time.perf_counter() - start
        speed = {"time/step": seconds, "throughput/trained_tokens_per_second": total / seconds}
        return (
            means | {"optimiser/grad_norm": norm, "optimiser/lr": lr} | {"optimiser/grad_norm" + "_" + name: n for name, n in norms.items()} | speed
        )

    def _norm(self, branch: nn.Module) -> float:
        """Of a branch's gradients before clipping, which happens here where each branch is clipped for itself."""
        trained = [p for p in branch.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.clip_branches and self.max_grad_norm is not None and bool(norm.isfinite()):
            nn.utils.clip_grads_with_norm_(trained, self.max_grad_norm, norm)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the weights aside: their owner saves them."""
        return {
            "index": self.index,
            "optimiser": whole(self.optimiser.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "rng": self.runtime.rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.index = state["index"]
        load_optimiser(self.optimiser, state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.runtime.set_rng_state(state["rng"])
