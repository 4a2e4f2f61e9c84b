"""What a rollout is truly worth, on models small enough to ask: h*(x) = <g(x), ∇J>, the gain that a small step along its gradient would bring.

g(x) is the policy gradient of x in the update that is about to be made (its tokens' advantages, weighted as the aggregation weighs them), ∇J that of
the expected reward on prompts that are never trained on, from completions drawn for the purpose. Σ η h*(x) over a batch is the gain of a step of
plain gradient ascent with a small rate η, to first order; Adam and clipping are not in it. Source: specification of CBS, claim 7; our construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Role, RolloutBatch
from tacit.rl import advantages, aggregation
from tacit.rl.component import Component
from tacit.rl.probes import Probes
from tacit.rl.selectors import TRUTH

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step
    from tacit.rl.trainer import Trainer

REACH = 1e-3  # length of the finite step, as a share of the length of the weights


def reward_gradient(policy: Policy, batch: RolloutBatch, *, temperature: float = 1.0, budget: int | None = None) -> list[Tensor]:
    """∇J by REINFORCE with the mean of the other completions of a prompt as baseline, one tensor for each trainable parameter."""
    advantage = advantages.rloo(batch.reward, batch.group, batch.scored)
    count = max(1, int(batch.scored.sum()))
    params = [p for _, p in policy.trainable()]
    total = [torch.zeros_like(p) for p in params]
    loud = batch.select(advantage != 0)
    weight = (advantage[advantage != 0] / count)[loud.row_of_token]
    column = loud.with_columns(weight=weight)
    for rows in policy.micro_batches(loud.prompt_tokens.lengths + loud.lengths, budget):
        part = column.select(rows)
        logp = policy.score(part.prompt_tokens, part.completions, temperature=temperature).logp
        found = torch.autograd.grad((part.tokens["weight"].to(logp) * logp)[part.action.to(logp.device)].sum(), params, allow_unused=True)
        for sum_, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sum_ += gradient
    return total


def along(policy: Policy, batch: RolloutBatch, direction: list[Tensor], *, temperature: float = 1.0, budget: int | None = None) -> Tensor:
    """(T,) float64: the derivative of each token's log-prob along `direction`, by a central difference: two log-prob passes, on any model.

    The weights are bit for bit what they were, afterwards.
    """
    params = [p for _, p in policy.trainable()]
    length = float(torch.stack([d.double().square().sum() for d in direction]).sum().sqrt())
    if length == 0:
        return torch.zeros(len(batch.token), dtype=torch.float64)
    kept = [p.detach().clone() for p in params]
    step = REACH * float(torch.stack([p.double().square().sum() for p in kept]).sum().sqrt()) / length
    found = []
    with torch.no_grad():
        for sign in (1, -1):
            for p, start, d in zip(params, kept, direction, strict=True):
                p.copy_(start + sign * step * d)
            stats = policy.token_stats(batch.prompt_tokens, batch.completions, temperature=temperature, micro_batch_tokens=budget)
            found.append(stats.logp.double())
        for p, start in zip(params, kept, strict=True):
            p.copy_(start)
    return (found[0] - found[1]) / (2 * step)


def true_values(agent: Agent, batch: RolloutBatch, direction: list[Tensor]) -> Tensor:
    """(B,) h* of the rollouts of an update over all of `batch`, whose advantages are its column."""
    weight = torch.zeros(len(batch.token), dtype=torch.float64, requires_grad=True)
    denominators = aggregation.denominators(batch.action, batch.offsets, agent.sampling.max_new_tokens)
    aggregated = aggregation.aggregate(weight, batch.action, batch.offsets, agent.algorithm.aggregation, denominators)
    (share,) = torch.autograd.grad(aggregated, weight)
    found = along(agent.policy, batch, direction, temperature=agent.sampling.temperature, budget=agent.algorithm.micro_batch_tokens)
    per_token = torch.where(batch.action, share * batch.advantage[batch.row_of_token] * found, 0)
    return torch.zeros(len(batch), dtype=torch.float64).index_add_(0, batch.row_of_token, per_token)


class TrueValue(Component):
    """Sample and credit: fills the column truth/value every `every` steps, from `prompts` x `group` completions of its own. Put it before selectors.

    An instrument: it costs those completions, one pass with gradient over them and two log-prob passes over the batch, and changes no update.
    """

    per_rollout = True

    def __init__(self, prompts: int = 64, group: int = 4, every: int = 1):
        if prompts < 1 or group < 2 or every < 1:
            raise ValueError(f"true_value needs prompts >= 1, group >= 2 and every >= 1, not {prompts}, {group} and {every}")
        self.probes, self.group = Probes(prompts, every), group

    def prepare(self, trainer: Trainer, agent: Agent) -> None:
        if trainer.runtime.world_size > 1:
            raise ValueError("true_value moves the weights of one process; set runtime.processes: 1")
        self.probes.prepare(trainer, agent.components.index(self))

    def note(self, agent: Agent) -> str:
        return f"true_value: {len(self.probes) * self.group} completions, a backward pass over them and two log-prob passes beside each step"

    def sample(self, step: Step, agent: Agent, prompts: list[Prompt], groups: list[int], batch: RolloutBatch) -> RolloutBatch:
        """New random numbers every step: the gradient must not be that of old luck."""
        if step.rounds > 0 or not self.probes.due(step):
            return batch
        mine = [i for group in groups for i in range(group % self.probes.per_step, len(self.probes), self.probes.per_step)]
        if not mine:
            return batch
        ids = [self.probes.first_group + i for i in mine]
        how = {"seed": step.seed, "step": step.index, "groups": ids, "agent": agent.index, "role": Role.PROBE}
        return RolloutBatch.cat([batch, agent.sampler.sample([self.probes.prompts[i] for i in mine], self.group, **how)])

    def credit(self, step: Step, agent: Agent, pool: RolloutBatch) -> RolloutBatch:
        """Values of this agent's training rollouts, NaN for all others."""
        values = torch.full((len(pool),), torch.nan, dtype=torch.float64)
        if self.probes.due(step):
            place = pool.group - self.probes.first_group
            probes = (pool.role == Role.PROBE) & (pool.agent == agent.index) & (place >= 0) & (place < len(self.probes))
            mine = (pool.role == Role.TRAIN) & (pool.agent == agent.index) & pool.scored
            options = {"temperature": agent.sampling.temperature, "budget": agent.algorithm.micro_batch_tokens}
            raw = pool.select(probes).with_columns(reward=pool.rows["reward/raw"][probes].nan_to_num())
            direction = reward_gradient(agent.policy, raw, **options)
            if mine.any():
                values[mine] = true_values(agent, pool.select(mine), direction)
                length = sum(float(d.double().square().sum()) for d in direction) ** 0.5
                step.tell(agent, {"truth/gradient": length, "truth/spread": float(values[mine].std()), "truth/sum": float(values[mine].sum())})
        return pool.with_columns(**{TRUTH: values})
