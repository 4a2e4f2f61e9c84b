"""Agent: a policy that learns, with its sampler, optimiser, base algorithm and components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tacit.config import AlgorithmConfig, OptimiserConfig, SamplingConfig
from tacit.core.imports import is_own_part, load_object
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Role, RolloutBatch
from tacit.core.runtime import load_optimiser, make_optimiser, whole
from tacit.generation.decoder import Decoder
from tacit.generation.decoders import decoder_for
from tacit.generation.sampler import Sampler
from tacit.rl import advantages, kl
from tacit.rl.component import Component
from tacit.rl.critic import Critic
from tacit.rl.filters import DynamicSampling, Overlong
from tacit.rl.losses import LOSSES, PolicyLoss, TokenLoss
from tacit.rl.step import Step
from tacit.rl.update import KLTerm, LossInputs, Update


class Agent:
    """`index` is its number in the pool of agents. Components built into the algorithm (filters) come before the given ones.

    `steps` is the number of RL steps over which the learning rate follows its schedule. `mirror` is a second copy of the policy with
    whole weights, needed where the trained one is sharded over processes: it draws and annotates.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        algorithm: AlgorithmConfig | None = None,
        optimiser: OptimiserConfig | None = None,
        sampling: SamplingConfig | None = None,
        components: Sequence[Component] = (),
        decoder: Decoder | None = None,
        mirror: Policy | None = None,
        steps: int = 1,
        index: int = 0,
    ):
        self.policy, self.index, self.steps = policy, index, steps
        self.mirror = mirror or policy
        self.algorithm = algorithm or AlgorithmConfig()
        self.sampling = sampling or SamplingConfig()
        self.optimiser_config = optimiser or OptimiserConfig()
        self.components = [*_filters(self.algorithm, self.sampling), *components]
        policy.disable_dropout()
        self.needs = frozenset[str]()
        self.require(_needs(self.algorithm, self.sampling, self.components))
        in_all = steps * optimiser_steps(self.algorithm, self.sampling)
        self.optimiser, self.scheduler = make_optimiser(policy.trainable(), self.optimiser_config, in_all)
        self.sampler = Sampler(
            decoder or decoder_for(self.mirror),
            self.mirror,
            max_new_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            stop=self.sampling.stop,
            rows=self.sampling.rows,
        )
        self.loss = bind_loss(self.algorithm)
        self.critic: Critic | None = None
        if self.algorithm.advantage == "gae":
            self.critic = self._make_critic(in_all)
        else:
            self.advantage = bind_advantage(self.algorithm)

    def _make_critic(self, steps: int) -> Critic:
        """Raises ValueError where a critic cannot work."""
        if self.mirror is not self.policy:
            raise ValueError("algorithm.advantage: gae keeps a critic whole in every process; set runtime.distributed: ddp, or another advantage")
        if odd := next((c for c in self.components if c.per_rollout), None):
            raise ValueError(
                f"{type(odd).__name__} goes by one advantage for a whole rollout, and algorithm.advantage: gae gives every token its own; "
                "leave the component out, or choose another advantage"
            )
        return Critic(self.policy, self.algorithm.critic, self.optimiser_config, steps=steps, micro_batch_tokens=self.algorithm.micro_batch_tokens)

    def sync(self) -> None:
        """Brings what draws up to date with what is trained. Collective where weights are sharded, and nothing to do elsewhere."""
        if self.mirror is not self.policy and self.mirror.version != self.policy.version:
            self.mirror.load_state_dict(self.policy.state_dict())
            self.mirror.version = self.policy.version

    # --- the stages, with what this agent's components make of them ---

    def draw(self, step: Step, prompts: list[Prompt], groups: list[int]) -> RolloutBatch:
        """Sample: group_size completions a prompt; ReMax also asks for a greedy one."""
        draw = {"seed": step.seed, "step": step.index, "groups": groups, "agent": self.index}
        batch = self.sampler.sample(prompts, self.sampling.group_size, **draw)
        if self.algorithm.advantage == "remax":
            batch = RolloutBatch.cat([batch, self.sampler.sample(prompts, 1, temperature=0.0, role=Role.GREEDY, **draw)])
        for component in self.components:
            batch = component.sample(step, self, prompts, groups, batch)
        return batch

    def require(self, columns: frozenset[str]) -> None:
        """Adds to the columns that `annotate` fills. Before the first update: the reference is the policy as it is now."""
        self.needs |= columns
        if "ref_logp" in self.needs:
            self.mirror.keep_reference()

    def annotate(self, batch: RolloutBatch) -> RolloutBatch:
        """One forward pass that fills what somebody needs and is not there yet, and another one under the reference. Probes only get NaN."""
        wanted = self.needs - set(batch.tokens)
        if wanted and (probes := batch.role == Role.PROBE).any():
            found, left = self.annotate(batch.select(~probes)), batch.select(probes)
            shapes = {name: column.shape[1:] for name, column in found.tokens.items() if name in wanted}
            left = left.with_columns(**{name: torch.full((len(left.token), *shape), torch.nan) for name, shape in shapes.items()})
            return RolloutBatch.cat([found, left]).select(probes.long().argsort(stable=True).argsort())  # in the order that they came in
        options: dict[str, Any] = {"temperature": self.sampling.temperature, "micro_batch_tokens": self.algorithm.micro_batch_tokens}
        if wanted & {"old_logp", "entropy", "hidden"}:
            stats = self.mirror.token_stats(batch.prompt_tokens, batch.completions, entropy="entropy" in wanted, hidden="hidden" in wanted, **options)
            found = {"old_logp": stats.logp, "entropy": stats.entropy, "hidden": stats.hidden}
            batch = batch.with_columns(**{name: column for name, column in found.items() if name in wanted and column is not None})
        if "value" in wanted and self.critic is not None:
            batch = batch.with_columns(value=self.critic.values(batch.prompt_tokens, batch.completions))
        if "ref_logp" in wanted:
            batch = batch.with_columns(ref_logp=self.mirror.token_stats(batch.prompt_tokens, batch.completions, reference=True, **options).logp)
        return batch

    def keep(self, step: Step, batch: RolloutBatch) -> Tensor:
        """(B,) bool: which of this draw may be trained on."""
        keep = batch.scored.clone()
        for component in self.components:
            if (mask := component.keep(step, self, batch)) is not None:
                keep &= mask
        return keep

    def credit(self, step: Step) -> RolloutBatch:
        """Everything drawn, with this learner's advantages: full groups, whatever will be trained on later."""
        pool = step.drawn
        mine = pool.agent == self.index
        penalty = torch.zeros(len(pool.token), dtype=torch.float64)
        if self.algorithm.kl.coefficient > 0 and self.algorithm.kl.where == "reward":
            divergence = kl.kl_reward(pool.old_logp, pool.ref_logp, self.algorithm.kl.form) * pool.action
            penalty += self.algorithm.kl.coefficient * divergence.double()
        if self.critic is not None:
            counted = mine & pool.scored & (pool.role == Role.TRAIN)
            pool = self.critic.credit(pool, shaped(self.algorithm, pool, pool.reward, counted), penalty, counted)
        else:
            rewards = pool.reward - torch.zeros_like(pool.reward).index_add_(0, pool.row_of_token, penalty)
            advantage = torch.zeros_like(rewards)
            advantage[mine] = self.advantage(pool.select(mine), rewards[mine])
            pool = pool.with_columns(advantage=advantage)
        given = pool.advantage
        for component in self.components:
            pool = component.credit(step, self, pool)
        if self.critic is not None and not torch.equal(pool.advantage, given):
            raise ValueError(
                "a component changed the column advantage, which is only a mean of what algorithm.advantage: gae trains on; "
                "it must change the token column gae, or go with another advantage"
            )
        return pool

    def select(self, step: Step, pool: RolloutBatch) -> RolloutBatch:
        """What is trained on: its own kept training rollouts, unless a component chooses otherwise."""
        batch = pool.select(step.kept & (pool.agent == self.index) & (pool.role == Role.TRAIN))
        for component in self.components:
            batch = component.select(step, self, batch)
        return batch

    def plan(self, step: Step, batch: RolloutBatch) -> list[Update]:
        """The updates of this step: one with the base loss, around which components put theirs."""
        updates = [self.base_update(batch)] if len(batch) else []
        for component in self.components:
            updates = component.plan(step, self, updates)
        return updates

    def base_update(self, batch: RolloutBatch) -> Update:
        config = self.algorithm
        in_loss = config.kl.coefficient > 0 and config.kl.where == "loss"
        return Update(
            batch=batch,
            advantages=advantages.broadcast(batch.advantage, batch.offsets) if self.critic is None else batch.gae,
            loss=self.loss,
            aggregation=config.aggregation,
            kl=KLTerm(config.kl.coefficient, config.kl.form, config.kl.importance_weighted) if in_loss else None,
            importance_cap=config.importance_cap,
            epochs=config.epochs,
            minibatch_rows=config.minibatch_rows,
        )

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "version": self.policy.version,
            "optimiser": whole(self.optimiser.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "components": [c.state_dict() for c in self.components],
        } | ({} if self.critic is None else {"critic": self.critic.state_dict()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.version = state["version"]
        load_optimiser(self.optimiser, state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        for component, saved in zip(self.components, state["components"], strict=True):
            component.load_state_dict(saved)


def optimiser_steps(algorithm: AlgorithmConfig, sampling: SamplingConfig) -> int:
    """Optimiser steps of the base update when everything drawn is kept."""
    rows = sampling.prompts * sampling.group_size
    return algorithm.epochs * -(-rows // (algorithm.minibatch_rows or rows))


@dataclass(frozen=True, slots=True)
class BoundLoss:
    """The policy loss of a recipe, its clip range bound. `silent_at_zero`: where the advantage is 0, so are loss and gradient."""

    function: TokenLoss
    config: AlgorithmConfig
    silent_at_zero: bool

    def __call__(self, x: LossInputs) -> PolicyLoss:
        clip = {"clip_low": self.config.clip_low, "clip_high": self.config.clip_high, "dual_clip": self.config.dual_clip}
        result = self.function(x.logp, x.old_logp, x.advantages, rows=x.rows, mask=x.mask, **clip)
        if not isinstance(result, PolicyLoss) or result.loss.shape != x.logp.shape:
            name = self.config.loss
            raise ValueError(f"loss {name!r} must return a PolicyLoss whose `loss` has one value per token, neither summed nor averaged")
        return result


def bind_loss(config: AlgorithmConfig) -> BoundLoss:
    """The user's own loss takes the same arguments as those in `losses`; only of those is it known what they do at an advantage of 0."""
    return BoundLoss(_named(config.loss, LOSSES, "loss"), config, silent_at_zero=config.skip_silent and config.loss in LOSSES)


def shaped(config: AlgorithmConfig, batch: RolloutBatch, rewards: Tensor, scored: Tensor) -> Tensor:
    """Rewards (B,) less what the length penalty takes off; of the training rollouts only."""
    if config.length_penalty == 0:
        return rewards
    right = scored & (batch.role == Role.TRAIN) & (batch.rows["reward/raw"] > 0)
    return advantages.length_rank_shaping(rewards, batch.lengths, right, batch.group, scored, config.length_penalty)


def bind_advantage(config: AlgorithmConfig) -> Any:
    """(batch, rewards (B,)) -> advantages (B,): length shaping first, then the estimator; greedy rollouts serve ReMax and no other."""
    function = _named(config.advantage, advantages.ADVANTAGES, "advantage")

    def advantage(batch: RolloutBatch, rewards: Tensor) -> Tensor:
        train = batch.role == Role.TRAIN
        scored = batch.scored & (train if config.advantage != "remax" else train | (batch.role == Role.GREEDY))
        rewards = shaped(config, batch, rewards, scored)
        if config.advantage == "remax":
            return advantages.remax(rewards, batch.group, scored, greedy=batch.role == Role.GREEDY)
        found = function(rewards, batch.group, scored)
        if not isinstance(found, Tensor) or found.shape != rewards.shape:
            raise ValueError(f"advantage {config.advantage!r} must return a tensor with one value for each of its {len(rewards)} rewards")
        return found

    return advantage


def _named(name: str, known: Mapping[str, Any], kind: str) -> Any:
    if is_own_part(name):
        own = load_object(name, kind)
        if not callable(own):
            raise ValueError(f"{kind} {name!r} is no function but of type {type(own).__name__}")
        return own
    if name not in known:
        names = [*known, "gae"] if kind == "advantage" else known
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(names))}, or give your own as file.py:function")
    return known[name]


def _needs(algorithm: AlgorithmConfig, sampling: SamplingConfig, components: Sequence[Component]) -> frozenset[str]:
    """Columns to annotate. Log-probs of the trainer are needed as soon as a second optimiser step uses the batch."""
    needs = frozenset[str]().union(*(c.needs for c in components))
    if algorithm.advantage == "gae":
        needs |= {"value"}
    if algorithm.kl.coefficient > 0:
        needs |= {"ref_logp"} | ({"old_logp"} if algorithm.kl.where == "reward" else set())
    if algorithm.old_logprobs == "recompute" or (algorithm.old_logprobs == "auto" and optimiser_steps(algorithm, sampling) > 1):
        needs |= {"old_logp"}
    return needs


def _filters(algorithm: AlgorithmConfig, sampling: SamplingConfig) -> list[Component]:
    config, parts = algorithm.filter, list[Component]()
    if config.overlong_buffer or config.drop_truncated:
        parts.append(Overlong(sampling.max_new_tokens, config.overlong_buffer, config.overlong_penalty, config.drop_truncated))
    if config.drop_constant:
        parts.append(DynamicSampling(config.max_rounds))
    return parts
