"""WMSS: a weak past checkpoint shows where a saturated model can still learn (arXiv 2602.08222 v2; WD-JT and WD-DS).

The formulas are in `sft.mixing`, `sft.selection` and `core.mixedhead`. Departures: the paper both trains and freezes the weak model; it trains
here unless `frozen`. Positions of entropies are those that predict supervised tokens; the official code is one off.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tacit.config import SelectionConfig
from tacit.core.mixedhead import Head, mixed_logprobs
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt
from tacit.sft.examples import CompletionLoss, Examples, SolvedTask, smoothed
from tacit.sft.mixing import amplified
from tacit.sft.selection import draw, entropy_gap, example_entropies, random_subset, selection_weights
from tacit.tasks.base import stream_order


def check_vocabularies(strong: Policy, weak: Policy) -> None:
    """Raises ValueError unless each token means the same to both models: that is all that they must share."""
    if strong.tokenizer.get_vocab() != weak.tokenizer.get_vocab():
        raise ValueError("the weak model has another vocabulary than the strong one; take an earlier checkpoint, or a model with the same tokenizer")


def cost(strong: Policy, weak: Policy, *, frozen: bool) -> str:
    """What the second model adds, in a sentence: bytes of weights, gradients and both Adam moments; time by its share of the products."""
    sizes = [[p.numel() * p.element_size() for p in policy.model.parameters()] for policy in (strong, weak)]
    trained = [sum(p.numel() * p.element_size() for p in policy.model.parameters() if p.requires_grad) for policy in (strong, weak)]
    added = sum(sizes[1]) + (0 if frozen else 3 * trained[1])
    alone = sum(sizes[0]) + 3 * trained[0]
    share = sum(p.numel() for p in weak.model.parameters()) / sum(p.numel() for p in strong.model.parameters())
    slower = 1.0 + share * (1.0 / 3.0 if frozen else 1.0)  # a backward pass costs two forward passes
    return (
        f"the weak model adds {added / 2**20:,.1f} MiB of weights and optimiser state to {alone / 2**20:,.1f} MiB, "
        f"its activations aside; a step takes about {slower:.1f} times as long"
    )


class JointLoss(CompletionLoss):
    """A `core.fit` job: mean cross-entropy of λ z_strong + (1-λ) z_weak per completion token. Equations 5 and 6, algorithm 1.

    `shuffle` moves the weak logits of wrong tokens to random other wrong tokens, anew in each micro-batch: a control.
    """

    def __init__(self, policy: Policy, task: SolvedTask, weak: Policy, *, lam: float, frozen: bool = False, shuffle: bool = False, **options: Any):
        super().__init__(policy, task, **options)
        check_vocabularies(policy, weak)
        self.weak, self.lam, self.frozen, self.shuffle = weak, lam, frozen, shuffle
        self.branches = nn.ModuleDict({"strong": policy.model, "weak": weak.model})
        if frozen:
            weak.model.requires_grad_(False)

    def module(self) -> nn.Module:
        return self.branches

    def loss(self, micro: Examples) -> tuple[Tensor, dict[str, Tensor | float]]:
        self.policy.model.train()
        self.weak.model.train(not self.frozen)
        with self.policy.autocast():
            strong = self._head(self.policy, micro)
            with torch.set_grad_enabled(not self.frozen):
                weak = self._head(self.weak, micro)
            seed = int(torch.randint(2**31, ())) if self.shuffle else None  # from the generator that a checkpoint keeps
            stats = mixed_logprobs(strong, weak, micro.completions.values.to(strong.hidden.device), self.lam, shuffle_seed=seed)
        logp = stats.logp.detach()
        metrics: dict[str, Tensor | float] = {
            "wmss/p_mix": logp.exp().sum(),
            "wmss/p_strong": stats.logp_strong.exp().sum(),
            "wmss/p_weak": stats.logp_weak.exp().sum(),
            "wmss/c": stats.log_c.exp().sum(),
            "wmss/amplified": amplified(logp, stats.logp_strong, self.lam).double().sum(),
        }
        return -smoothed(stats.logp, stats.mean_logp, self.label_smoothing).sum(), metrics

    def _head(self, policy: Policy, micro: Examples) -> Head:
        return policy.scorer.head(micro.prompts, micro.completions, policy.pad_id, packed=self.packing)  # pyright: ignore[reportArgumentType]


@dataclass
class Chosen:
    """The examples `ordinals` of a task's stream, in a new order each epoch."""

    task: SolvedTask
    ordinals: Sequence[int]

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return self.task.prompt_at(self.ordinals[stream_order(ordinal, len(self.ordinals), seed)], seed)

    def solve(self, prompt: Prompt) -> str | None:
        return self.task.solve(prompt)


@torch.no_grad()
def entropies(policy: Policy, examples: Examples, micro_batch_tokens: int | None = None) -> Tensor:
    """Mean predictive entropy (N,) of each example under a model, in nats. Source: equation 7."""
    stats = policy.token_stats(examples.prompts, examples.completions, micro_batch_tokens=micro_batch_tokens, entropy=True)
    assert stats.entropy is not None
    return example_entropies(stats.entropy, examples.completions.offsets)


def choose_examples(weak: Tensor, strong: Tensor, config: SelectionConfig) -> tuple[list[int], dict[str, float]]:
    """Which of the examples to train on, from both models' entropies (N,), and what to log about the choice.

    Raises ValueError when both models are equally sure of every example: they are one and the same.
    """
    if torch.equal(weak, strong):
        raise ValueError(
            "the weak model is the strong one: their entropies agree on every example, so mixing changes nothing; take an earlier checkpoint"
        )
    count = len(weak)
    formula = "v2" if config.formula in ("none", "random") else config.formula
    chosen = draw(
        selection_weights(weak, strong, formula, config.alpha, config.beta, config.gamma),
        max(1, round(config.multiplier * count)),
        config.seed,
        deduplicate=config.deduplicate,
    )
    if config.formula == "none":
        chosen = torch.arange(count)
    elif config.formula == "random":
        chosen = random_subset(count, len(chosen.unique()), config.seed)
    told = {"entropy_weak": float(weak.mean()), "entropy_strong": float(strong.mean()), "entropy_gap": entropy_gap(weak, strong)}
    told |= {"selected": float(len(chosen)), "selected_unique": len(chosen.unique()) / count}
    return chosen.tolist(), {f"wmss/{name}": value for name, value in told.items()}


def twin(policy: Policy) -> Policy:
    """A copy of a policy that shares no weight with it."""
    model = copy.deepcopy(policy.model).requires_grad_(False)
    for (_, p), (_, q) in zip(model.named_parameters(), policy.model.named_parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    return Policy(model, policy.tokenizer, chat=policy.chat, system=policy.system, device=policy.device, bf16=policy.bf16)
