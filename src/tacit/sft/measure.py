"""The instruments on a model and held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tacit.core.rollouts import Prompt
from tacit.core.scorer import evaluating
from tacit.sft.examples import CompletionLoss, Examples
from tacit.sft.instruments import fitted_temperature, logit_statistics, token_calibration_error

MEASURED_ELEMENTS = 2**22  # logits looked at, 16 MB in fp32


@torch.no_grad()
def measured(job: CompletionLoss, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Statistics of logits, and calibration error as it is and at a fitted temperature, over the first completions whose logits fit in 16 MB."""
    examples = job.encode(prompts)
    tokens = MEASURED_ELEMENTS // job.policy.model.config.get_text_config().vocab_size
    fitting = int((examples.completions.offsets[1:] <= tokens).sum())
    examples = examples.select(torch.arange(max(1, fitting)))
    z, y = logits_of(job, examples), examples.completions.values
    temperature = fitted_temperature(z, y)
    found = {f"logits/{name}": value for name, value in logit_statistics(z, y).items()}
    return found | {"ece": token_calibration_error(z, y), "ece_fitted": token_calibration_error(z, y, temperature), "fitted_temperature": temperature}


def logits_of(job: CompletionLoss, examples: Examples) -> Tensor:
    """(T, V) the logits that predict the completions' tokens, whole."""
    policy = job.policy
    with evaluating(policy.model), policy.autocast():
        head = policy.scorer.head(examples.prompts, examples.completions, policy.pad_id)  # pyright: ignore[reportArgumentType]
        z = head.hidden if head.weight is None else torch.nn.functional.linear(head.hidden, head.weight, head.bias)
    return z.float().cpu()
