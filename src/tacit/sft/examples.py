"""SFT: a policy learns reference completions, with the loss on the completion only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor, nn

from tacit.core.mixedhead import mixed_logprobs
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Ragged


class SolvedTask(Protocol):
    """A task that knows right completions."""

    def prompt_at(self, ordinal: int, seed: int) -> Prompt: ...
    def solve(self, prompt: Prompt) -> str | None: ...


@dataclass(slots=True)
class Examples:
    """Prompts and the completions to learn, tokenised, row by row."""

    prompts: Ragged
    completions: Ragged

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, index: Tensor) -> Examples:
        return Examples(self.prompts.select(index), self.completions.select(index))


def smoothed(logp: Tensor, mean_logp: Tensor, epsilon: float) -> Tensor:
    """Log-likelihood of the target mixed with the uniform distribution: (1-ε) log P(y) + ε mean log P. Source: Szegedy et al. 2016, section 7."""
    return (1.0 - epsilon) * logp + epsilon * mean_logp


class CompletionLoss:
    """A `core.fit` job: mean negative log-likelihood per completion token, its end-of-sequence token included, of a task's own solutions.

    `logit_scale` λ trains softmax(λ z) (the control D0 of WMSS: a temperature of 1/λ); `label_smoothing` ε mixes the uniform distribution into the
    target, as torch's cross-entropy does.

    Raises ValueError when the task has no solution for a prompt, or an example does not fit the model's context.
    """

    def __init__(
        self,
        policy: Policy,
        task: SolvedTask,
        *,
        batch_size: int,
        seed: int = 0,
        micro_batch_tokens: int | None = None,
        packing: bool = True,
        logit_scale: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        self.policy, self.task = policy, task
        self.logit_scale, self.label_smoothing = logit_scale, label_smoothing
        self.batch_size, self.seed, self.micro_batch_tokens, self.packing = batch_size, seed, micro_batch_tokens, packing

    def module(self) -> nn.Module:
        return self.policy.model

    def batch_at(self, step: int, ranks: int = 1) -> list[Examples]:
        """Micro-batches of like length inside the share of each rank, which is dealt out by length."""
        ordinals = range(step * self.batch_size, (step + 1) * self.batch_size)
        batch = self.encode([self.task.prompt_at(ordinal, self.seed) for ordinal in ordinals])
        lengths = batch.prompts.lengths + batch.completions.lengths
        order = torch.argsort(lengths, descending=True, stable=True)
        shares = [order[rank::ranks] for rank in range(ranks)]
        cut = [[mine[index] for index in self.policy.micro_batches(lengths[mine], self.micro_batch_tokens)] for mine in shares]
        return [batch.select(rows) for turn in zip_longest(*cut) for rows in turn if rows is not None]

    def weight(self, micro: Examples) -> float:
        return float(len(micro.completions.values))

    def loss(self, micro: Examples) -> tuple[Tensor, dict[str, Tensor | float]]:
        if not self.label_smoothing:
            return -self.policy.score(micro.prompts, micro.completions, packed=self.packing, temperature=1.0 / self.logit_scale).logp.sum(), {}
        self.policy.model.train()
        with self.policy.autocast():
            head = self.policy.scorer.head(micro.prompts, micro.completions, self.policy.pad_id, packed=self.packing)  # pyright: ignore[reportArgumentType]
            stats = mixed_logprobs(head, None, micro.completions.values.to(head.hidden.device), self.logit_scale)
        return -smoothed(stats.logp, stats.mean_logp, self.label_smoothing).sum(), {}

    def encode(self, prompts: Sequence[Prompt]) -> Examples:
        """Tokenised prompts with their solutions."""
        solutions = list[str]()
        for prompt in prompts:
            if (solution := self.task.solve(prompt)) is None:
                raise ValueError(f"the task knows no solution for prompt {prompt.id!r}, so there is nothing to imitate")
            solutions.append(solution)
        before, after = self.policy.encode_prompts(prompts), self.policy.encode_completions(solutions)
        for prompt, ids, solution in zip(prompts, before, after, strict=True):
            if len(ids) + len(solution) > self.policy.context:
                raise ValueError(
                    f"prompt {prompt.id!r} with its solution has {len(ids) + len(solution)} tokens, the model's context holds "
                    f"{self.policy.context}: leave such examples out, or use a model with a longer context"
                )
        return Examples(Ragged.from_lists(before), Ragged.from_lists(after))

    @torch.no_grad()
    def heldout_loss(self, prompts: Sequence[Prompt]) -> float:
        """The same mean over given prompts."""
        examples = self.encode(prompts)
        stats = self.policy.token_stats(examples.prompts, examples.completions, micro_batch_tokens=self.micro_batch_tokens)
        return -float(stats.logp.double().mean())
