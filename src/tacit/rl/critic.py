"""Critic: PPO's value function, a second network that says of every token what reward is still to come, and the advantages from it.

The network is a copy of the policy's trunk with one linear output, 0 at first, and has its own optimiser. Under LoRA the frozen weights are
the policy's own; the copy has its own adapter. It learns from the tokens of the base update, on the same mini-batches, and from no replay.

Source: PPO, arXiv 1707.06347; GAE, arXiv 1506.02438. Choices that the papers leave open, as in common implementations (verl, TRL):

    advantages     brought to mean 0 and std 1 over the tokens of the step (`whiten`)
    value loss     clipped around the value at the time of drawing; the PPO paper has the plain square
    end            a completion that hits the length limit has nothing to come, like one that ended by itself
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tacit.config import CriticConfig, OptimiserConfig
from tacit.core.layout import lay_out
from tacit.core.policy import Policy
from tacit.core.rollouts import Ragged, RolloutBatch, token_index
from tacit.core.runtime import Runtime, clip_and_step, load_optimiser, make_optimiser
from tacit.core.scorer import evaluating
from tacit.rl.update import Meter

if TYPE_CHECKING:
    from tacit.rl.update import Update


def at_last(rewards: Tensor, mask: Tensor, offsets: Tensor) -> Tensor:
    """(B,) -> (T,): each row's reward at its last token of `mask` (T,) bool, 0 elsewhere. A row without one has its reward nowhere."""
    rows = torch.repeat_interleave(offsets.diff())
    last = torch.full_like(rewards, -1, dtype=torch.int64).scatter_reduce(0, rows[mask], mask.nonzero()[:, 0], "amax")
    there = last >= 0
    return rewards.new_zeros(len(mask)).index_put((last[there],), rewards[there])


def gae(rewards: Tensor, values: Tensor, mask: Tensor, offsets: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (T,): A_t = δ_t + γλ A_{t+1}, with δ_t = r_t + γ V_{t+1} - V_t, and V = A = 0 behind a row's last token.

    `rewards` and `values` (T,) flat over the rows of `offsets` (B + 1,); V_t is the value before token t. Steps of time are the tokens of `mask`
    (T,) bool; the others get 0, and what stands there is never used, finite or not. λ = 0: the one-step error δ; λ = 1: the return minus V.
    Source: arXiv 1506.02438, eq. 16; in the recursive form of PPO, arXiv 1707.06347, eq. 11.
    """
    at = mask.nonzero()[:, 0]
    counts = torch.bincount(torch.repeat_interleave(offsets.diff())[at], minlength=len(offsets) - 1)
    ends, reward, value = counts.cumsum(0), rewards[at], values[at]
    found = torch.zeros_like(value)
    ahead = value.new_zeros(len(counts))  # V and A of the token behind
    carried = torch.zeros_like(ahead)
    for back in range(1, max(counts.tolist(), default=0) + 1):
        rows = (counts >= back).nonzero()[:, 0]
        here = ends[rows] - back
        carried[rows] = reward[here] + gamma * ahead[rows] - value[here] + gamma * lam * carried[rows]
        ahead[rows] = value[here]
        found[here] = carried[rows]
    return torch.zeros_like(values).index_put((at,), found)


def whitened(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(T,) of mean 0 and std 1 over the tokens of `mask` (T,) bool; 0 at the others, and everywhere when all agree."""
    chosen = values[mask]
    if len(chosen) < 2 or chosen.min() == chosen.max():
        return torch.zeros_like(values)
    return torch.where(mask, (values - chosen.mean()) / (chosen.std() + eps), 0)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """(loss (T,), clipped (T,) bool): max((V - R)², (clip(V, V_old ± `clip`) - R)²) / 2 per token, unreduced; without `clip` the plain square.

    Where the clipped error is the larger one there is no gradient: a step may not bring V nearer to R by more than `clip`.
    Source: OpenAI baselines, described in arXiv 2005.12729, section 3; not in the PPO paper.
    """
    square = (values - returns).square()
    if clip is None:
        return square / 2, torch.zeros_like(square, dtype=torch.bool)
    near = ((old_values + (values - old_values).clamp(-clip, clip)) - returns).square()
    return torch.maximum(square, near) / 2, near > square


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one. NaN where returns do not vary."""
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else torch.nan


class ValueModel(nn.Module):
    """A copy of the policy's trunk under one linear output, which starts at 0. Parameters that do not train are shared, not copied."""

    def __init__(self, policy: Policy):
        super().__init__()
        lm = policy.base_model
        if lm.base_model is lm:
            raise ValueError(f"a critic needs a model whose trunk can be told from its head, which {type(lm).__name__} does not offer")
        self.trunk: nn.Module = copy.deepcopy(lm.base_model, {id(p): p for p in lm.base_model.parameters() if not p.requires_grad})
        dtype = torch.promote_types(lm.dtype, torch.float32)
        self.head = nn.Linear(lm.config.get_text_config().hidden_size, 1, dtype=dtype, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.pad_id: int = policy.pad_id  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, prompts: Ragged, completions: Ragged) -> Tensor:
        """The value before each completion token, (T,)."""
        layout, device = lay_out(prompts, completions, self.pad_id, None), self.head.weight.device
        states = self.trunk(**{name: x.to(device) for name, x in layout.inputs.items()}, use_cache=False).last_hidden_state
        chosen = states[layout.rows.to(device), layout.columns.to(device)]
        return (chosen.to(self.head.weight.dtype) * self.head.weight[0]).sum(-1) + self.head.bias  # in full precision, also under autocast


class Critic:
    """A value model with its optimiser. `steps` is the number of optimiser steps of the run; the schedule is that of `optimiser`, the policy's.

    Raises ValueError when the model has no trunk of its own.
    """

    def __init__(self, policy: Policy, config: CriticConfig, optimiser: OptimiserConfig, *, steps: int, micro_batch_tokens: int | None = None):
        self.policy, self.config, self.micro_batch_tokens = policy, config, micro_batch_tokens
        self.model = ValueModel(policy)
        own = optimiser.model_copy(update={"lr": config.lr if config.lr is not None else 10 * optimiser.lr})
        self.max_grad_norm = own.max_grad_norm
        self.optimiser, self.scheduler = make_optimiser(self.trainable(), own, steps)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def values(self, prompts: Ragged, completions: Ragged) -> Tensor:
        """The value before each completion token, (T,) float64 on the CPU."""
        found = torch.zeros(len(completions.values), dtype=torch.float64)
        with evaluating(self.model), self.policy.autocast():
            for index in self.policy.micro_batches(prompts.lengths + completions.lengths, self.micro_batch_tokens):
                part = self.model(prompts.select(index), completions.select(index))
                found[token_index(completions.offsets, index)] = part.cpu().double()
        return found

    def credit(self, pool: RolloutBatch, rewards: Tensor, penalties: Tensor, counted: Tensor) -> RolloutBatch:
        """The pool with token columns `gae` and `returns`, 0 outside of rows `counted` (B,) bool; `advantage` is a row's mean over its tokens.

        `rewards` (B,) come with the last token, `penalties` (T,) are taken off token by token.
        """
        mask = pool.action & counted[pool.row_of_token]
        per_token = at_last(rewards, mask, pool.offsets) - torch.where(mask, penalties, 0)
        found = gae(per_token, pool.value, mask, pool.offsets, self.config.gamma, self.config.lam)
        returns = torch.where(mask, found + pool.value, 0)
        if self.config.whiten:
            found = whitened(found, mask)
        sums, size = (torch.zeros_like(rewards).index_add_(0, pool.row_of_token, x.to(rewards.dtype)) for x in (found, mask))
        return pool.with_columns(gae=found, returns=returns, advantage=sums / size.clamp(min=1))

    def learn(self, update: Update, index: int, runtime: Runtime, seed: tuple[int, ...]) -> dict[str, float]:
        """One optimiser step for each mini-batch of `update`, every rank taking its share. Returns metrics; what was explained was so before."""
        meter, batch = Meter(), update.batch
        for rows in update.minibatches((*seed, index)):
            minibatch = batch.select(rows)
            total = float(minibatch.action.sum())
            if not total:
                continue
            budget, prompts = self.micro_batch_tokens, minibatch.prompt_tokens
            for micro in self.policy.shared_out(prompts, minibatch.completions, runtime.world_size, budget, shared=False)[runtime.rank]:
                self._loss(minibatch.select(micro), total, meter).backward()
            params = [p for _, p in self.trainable()]
            runtime.reduce_gradients(params)
            meter.add_step(clip_and_step(self.optimiser, self.scheduler if update.scheduled else None, params, self.max_grad_norm))
        found = meter.means(runtime)
        told = {name: found[name] for name in ("loss/value", "critic/value", "critic/clip_fraction") if name in found}
        told |= {"critic/grad_norm": found["optimiser/grad_norm"], "critic/skipped_steps": found["health/skipped_steps"]}
        explained = explained_variance(batch.value[batch.action], batch.returns[batch.action]) if batch.action.any() else torch.nan
        return told | ({"critic/explained_variance": explained} if explained == explained else {})

    def _loss(self, part: RolloutBatch, total: float, meter: Meter) -> Tensor:
        """Of one micro-batch, over the number of trained tokens of the whole mini-batch."""
        self.model.train()  # which gradient checkpointing asks for; dropout is off
        device = self.policy.device
        with self.policy.autocast():
            values = self.model(part.prompt_tokens, part.completions)
        mask = part.action.to(device)
        column = lambda x: x.to(device, values.dtype)[mask]  # noqa: E731
        loss, clipped = value_loss(values[mask], column(part.value), column(part.returns), self.config.clip)
        everywhere = torch.ones_like(clipped)
        for name, found in {"loss/value": loss, "critic/value": values[mask], "critic/clip_fraction": clipped}.items():
            meter.add(name, found, everywhere)
        return loss.sum() / total

    # --- resuming and going back ---

    def weights(self) -> dict[str, Tensor]:
        """What trains, by name."""
        return {name: p.detach() for name, p in self.trainable()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(weights), strict=False)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights(), "optimiser": self.optimiser.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.load_weights(state["weights"])
        load_optimiser(self.optimiser, state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
