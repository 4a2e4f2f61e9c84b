"""Aggregation: from per-token losses to the scalar that is differentiated, over denominators that somebody else counted.

A step's loss is a sum over tokens divided by something. When that something is counted inside a micro-batch, the loss depends on how the
batch was cut. So it is counted once, over the whole optimiser step and all ranks, and handed in: the aggregates of the parts then add up
to the aggregate of the whole, and so do their gradients. Nothing is averaged afterwards, neither over accumulation steps nor over ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts over one whole optimiser step: all its micro-batches, on all ranks."""

    tokens: float  # trained tokens
    sequences: float  # rows, those without a trained token included
    length: float  # the longest completion that sampling allows, in tokens: a constant of the run, not of the batch


def denominators(mask: Tensor, offsets: Tensor, max_length: float) -> Denominators:
    """Counts `mask` (T,) bool and the rows of `offsets` (B + 1,), which must describe the whole optimiser step.

    A row without a trained token still counts as a sequence, as in TRL's grpo: masking a completion takes away its
    gradient and leaves that of the other rows as it was.
    """
    return Denominators(tokens=float(mask.sum()), sequences=float(len(offsets) - 1), length=float(max_length))


def aggregate(loss: Tensor, mask: Tensor, offsets: Tensor, mode: str, denominators: Denominators) -> Tensor:
    """The scalar loss of the rows given, over the denominators of the whole step.

    `loss` (T,), `mask` (T,) bool (trained tokens), `offsets` (B + 1,). What stands at untrained positions is never read, finite or not.
    With the sums running over trained tokens t of rows b:

        token-mean               sum_bt loss / tokens                    DAPO, arXiv 2503.14476, section 3.3
        token-sum                sum_bt loss
        seq-mean-token-mean      sum_b (mean_t loss) / sequences         GRPO, arXiv 2402.03300, eq. 3
        seq-mean-token-sum       sum_bt loss / sequences                 REINFORCE on whole completions
        seq-mean-token-sum-norm  sum_bt loss / (sequences * length)      Dr. GRPO, arXiv 2503.20783, section 3.2: a constant, no length bias

    Raises ValueError for another mode.
    """
    loss = torch.where(mask, loss, 0)
    match mode:
        case "token-mean":
            return loss.sum() / max(denominators.tokens, 1.0)
        case "token-sum":
            return loss.sum()
        case "seq-mean-token-mean":
            rows = torch.repeat_interleave(offsets.diff())
            length = sum_within(mask.to(loss.dtype), rows).clamp(min=1)
            return (loss / length).sum() / denominators.sequences
        case "seq-mean-token-sum":
            return loss.sum() / denominators.sequences
        case "seq-mean-token-sum-norm":
            return loss.sum() / (denominators.sequences * denominators.length)
        case _:
            raise ValueError(
                f"unknown aggregation {mode!r}: choose token-mean, token-sum, seq-mean-token-mean, seq-mean-token-sum or seq-mean-token-sum-norm"
            )


def sum_within(values: Tensor, ids: Tensor) -> Tensor:
    """(N,): for each entry, the sum of `values` (N,) over all entries that share its id. Ids are any integers, in any order."""
    distinct, inverse = ids.unique(return_inverse=True)
    return values.new_zeros(len(distinct)).index_add(0, inverse, values)[inverse]
