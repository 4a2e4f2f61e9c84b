"""Update: one planned pass of optimisation over a batch, and the code that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tacit.core.rollouts import RolloutBatch
from tacit.core.runtime import Runtime, clip_and_step
from tacit.rl import aggregation, correction, kl
from tacit.rl.aggregation import Denominators
from tacit.rl.losses import PolicyLoss

if TYPE_CHECKING:
    from tacit.rl.agent import Agent


@dataclass(slots=True)
class LossInputs:
    """What a loss may look at, per trained token: (T,) tensors on the policy's device.

    `update` and `tag` say which update of the step is running; `batch` holds this micro-batch's other columns (on the CPU).
    """

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    rows: Tensor
    tag: str
    update: int
    batch: RolloutBatch


LossFunction = Callable[[LossInputs], PolicyLoss]


@dataclass(slots=True)
class KLTerm:
    """A divergence from the reference in the loss (needs the column ref_logp)."""

    coefficient: float
    form: str = "k3"
    importance_weighted: bool = False


@dataclass(slots=True)
class Update:
    """`epochs` passes over `batch` in mini-batches, each one optimiser step of `loss` under `advantages` (T,)."""

    batch: RolloutBatch
    advantages: Tensor
    loss: LossFunction
    aggregation: str = "token-mean"
    kl: KLTerm | None = None
    importance_cap: float | None = None
    epochs: int = 1
    minibatch_rows: int | None = None
    shuffle: bool = True
    scheduled: bool = True  # its optimiser steps count for the learning-rate schedule
    tag: str = "policy"

    @property
    def silent_at_zero(self) -> bool:
        """Whether a row whose advantages are all exactly 0 adds nothing to the gradient: the loss must say so of itself."""
        return self.kl is None and getattr(self.loss, "silent_at_zero", False)

    def minibatches(self, seed: tuple[int, ...]) -> Iterator[Tensor]:
        """Row indices of every optimiser step. With more than one step per epoch, rows are shuffled by a generator of this seed."""
        size = self.minibatch_rows or len(self.batch)
        for epoch in range(self.epochs):
            order = torch.arange(len(self.batch))
            if self.shuffle and size < len(self.batch):
                order = torch.from_numpy(np.random.default_rng((*seed, epoch)).permutation(len(self.batch)))
            yield from order.split(size)


def run_update(agent: Agent, update: Update, index: int, runtime: Runtime, seed: tuple[int, ...]) -> dict[str, float]:
    """Carries out one update; every rank takes its share of each mini-batch. Returns metrics, means over its trained tokens."""
    meter = Meter()
    batch = update.batch.with_columns(token_advantage=update.advantages)
    for rows in update.minibatches((*seed, index)):
        minibatch = batch.select(rows)
        if not minibatch.action.any():
            continue  # nothing to train on, on any rank
        denominators = aggregation.denominators(minibatch.action, minibatch.offsets, agent.sampling.max_new_tokens)
        if update.silent_at_zero:  # after the denominators, which count every row
            loud = minibatch.select(has_say(minibatch))
            if runtime.is_main:
                meter.add_zeros("loss/policy", int(minibatch.action.sum() - loud.action.sum()))
            minibatch = loud
        for micro in runtime.even(micro_batches_of_rank(agent, minibatch, runtime)):
            part = minibatch.select(micro) if len(micro) else _idle(minibatch)
            objective(agent, update, part, denominators, index, meter).backward()
        params = [p for _, p in agent.policy.trainable()]
        runtime.reduce_gradients(params)
        if not len(minibatch):  # a gradient of 0 is still a step: moments decay, the schedule goes on
            for p in params:
                p.grad = torch.zeros_like(p)
        meter.add_step(clip_and_step(agent.optimiser, agent.scheduler if update.scheduled else None, params, agent.optimiser_config.max_grad_norm))
        agent.policy.version += 1
    return meter.means(runtime)


def objective(agent: Agent, update: Update, part: RolloutBatch, denominators: Denominators, index: int, meter: Meter) -> Tensor:
    """The scalar loss of one micro-batch: policy loss, importance correction and KL, over the mini-batch's denominators.

    The ratio's denominator is the column old_logp where there is one. Without it, data that this very version drew has ratio 1, and older
    data is measured against the sampler's log-probs: a ratio is never silently 1 on off-policy data.
    """
    policy, device = agent.policy, agent.policy.device
    mask, rows = part.action.to(device), part.row_of_token.to(device)
    shared = agent.algorithm.prefix_sharing
    found = policy.score(part.prompt_tokens, part.completions, temperature=agent.sampling.temperature, shared=shared).logp
    column = lambda x: torch.where(mask, x.to(device, found.dtype), 0)  # noqa: E731 - an untrained token has ratio 1 and no divergence
    logp, behaviour = column(found), column(part.behaviour_logp)
    same = (part.agent == agent.index) & (part.version == policy.version)
    fresh = same.to(device)[rows]  # (T,) drawn by the very weights that are now being trained
    old_logp = column(part.old_logp) if "old_logp" in part else torch.where(fresh, logp.detach(), behaviour)

    result = update.loss(LossInputs(logp, old_logp, column(part.token_advantage), mask, rows, update.tag, index, part))
    loss = result.loss
    meter.add("loss/policy", loss, mask)
    meter.add("health/clip_fraction", result.clipped, mask)
    meter.add("health/logp_gap", (logp.detach() - behaviour).abs(), mask & fresh)
    if update.importance_cap is not None:
        weights = correction.truncated_weights(old_logp, behaviour, update.importance_cap, rows=rows, mask=mask)
        meter.add("health/importance_weight", weights, mask)
        meter.add("health/importance_weight_squared", weights.square(), mask)
        loss = loss * weights
    if update.kl is not None:
        ratio = (logp - old_logp).exp() if update.kl.importance_weighted else None
        divergence = kl.kl_loss(logp, column(part.ref_logp), update.kl.form, ratio)
        meter.add("loss/kl", divergence, mask)
        loss = loss + update.kl.coefficient * divergence
    return aggregation.aggregate(loss, mask, part.offsets.to(device), update.aggregation, denominators)


def has_say(batch: RolloutBatch) -> Tensor:
    """(B,) bool: rows with a trained token whose advantage is not 0."""
    loud = batch.action & (batch.token_advantage != 0)
    return torch.zeros(len(batch), dtype=torch.bool).index_put_((batch.row_of_token[loud],), torch.tensor(True))


def micro_batches_of_rank(agent: Agent, minibatch: RolloutBatch, runtime: Runtime) -> list[Tensor]:
    """This rank's rows of a mini-batch, in micro-batches."""
    budget, shared = agent.algorithm.micro_batch_tokens, agent.algorithm.prefix_sharing
    prompts, completions = minibatch.prompt_tokens, minibatch.completions
    return agent.policy.shared_out(prompts, completions, runtime.world_size, budget, shared=shared)[runtime.rank]


def _idle(minibatch: RolloutBatch) -> RolloutBatch:
    """A micro-batch without a trained token, for a rank that has run out while others still compute: sharded passes are collective."""
    row = minibatch.select(torch.tensor([0]))
    return row.with_columns(action=torch.zeros_like(row.action))


@dataclass(slots=True)
class Meter:
    """Token-weighted means of what the micro-batches report, and the gradient norms of the optimiser steps."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        total = self.sums.setdefault(name, [0.0, 0.0])
        total[0] += float(values.detach()[mask].sum())
        total[1] += float(mask.sum())

    def add_zeros(self, name: str, tokens: int) -> None:
        """The metric is 0 at so many tokens that were not computed."""
        self.sums.setdefault(name, [0.0, 0.0])[1] += tokens

    def add_step(self, norm: float) -> None:
        self.norms.append(norm)

    def means(self, runtime: Runtime) -> dict[str, float]:
        gathered = runtime.gather_objects(self.sums)
        names = {name for sums in gathered for name in sums}
        pairs = {name: [sums.get(name, (0.0, 0.0)) for sums in gathered] for name in sorted(names)}
        means = {name: sum(s for s, _ in p) / n for name, p in pairs.items() if (n := sum(n for _, n in p)) > 0}
        if (second := means.pop("health/importance_weight_squared", 0.0)) > 0:  # Kish: (Σw)² / (n Σw²)
            means["health/effective_sample_size"] = means["health/importance_weight"] ** 2 / second
        finite = [n for n in self.norms if np.isfinite(n)]
        means["optimiser/steps"] = float(len(self.norms))
        means["optimiser/grad_norm"] = float(np.mean(finite)) if finite else 0.0
        means["health/skipped_steps"] = float(len(self.norms) - len(finite))
        return means
