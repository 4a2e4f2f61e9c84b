"""The instruments on a model and held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit.core.rollouts import Prompt
from tacit.core.scorer import evaluating
from tacit.rewards.metrics import RIGHT, pass_at_k
from tacit.sft.examples import CompletionLoss, Examples
from tacit.sft.instruments import accuracy_by_bin, fitted_temperature, logit_statistics, token_calibration_error

MEASURED_ELEMENTS, MEASURED_TOKENS = 2**23, 2**13  # logits looked at: 32 MB in fp32, and no more tokens than that


@torch.no_grad()
def measured(job: CompletionLoss, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Statistics of logits, and calibration error as it is and at a fitted temperature, over the first tokens of completions: 32 MB of logits."""
    examples = job.encode(prompts)
    tokens = min(MEASURED_TOKENS, max(1, MEASURED_ELEMENTS // job.policy.model.config.get_text_config().vocab_size))
    needed = int((examples.completions.offsets[:-1] < tokens).sum())  # those that hold the first `tokens` tokens
    examples = examples.select(torch.arange(needed))
    z, y = logits_of(job, examples, tokens), examples.completions.values[:tokens]
    temperature = fitted_temperature(z, y)
    found = {f"logits/{name}": value for name, value in logit_statistics(z, y).items()}
    return found | {"ece": token_calibration_error(z, y), "ece_fitted": token_calibration_error(z, y, temperature), "fitted_temperature": temperature}


def logits_of(job: CompletionLoss, examples: Examples, tokens: int | None = None) -> Tensor:
    """(T, V) the logits that predict the completions' tokens, or only the first `tokens` of them, whole."""
    policy = job.policy
    with evaluating(policy.model), policy.autocast():
        head = policy.scorer.head(examples.prompts, examples.completions, policy.pad_id)  # pyright: ignore[reportArgumentType]
        hidden = head.hidden[:tokens]
        z = hidden if head.weight is None else torch.nn.functional.linear(hidden, head.weight, head.bias)
    return z.float().cpu()


def verified(rewards: NDArray[np.float64], prompts: Sequence[Prompt]) -> dict[str, float]:
    """What a verifier found, rewards (P, n) with NaN where it could not judge: pass@n of n > 1 completions, and pass@1 in each bin of difficulty.

    Bins are those that `info["difficulty"]` names. A prompt without n verdicts says nothing about pass@n, one without any nothing at all.
    """
    judged = [row[np.isfinite(row)] for row in rewards]
    n = rewards.shape[1]
    found = dict[str, float]()
    if n > 1:
        whole = [pass_at_k(n, int((row > RIGHT).sum()), n) for row in judged if len(row) == n]
        found[f"pass@{n}"] = float(np.mean(whole)) if whole else float("nan")
    binned = [(float(row.mean()), str(p.info["difficulty"])) for row, p in zip(judged, prompts, strict=True) if len(row) and "difficulty" in p.info]
    bins = accuracy_by_bin([value for value, _ in binned], [name for _, name in binned])
    return found | {f"pass@1/{name.replace(' ', '_')}": value for name, value in sorted(bins.items())}
