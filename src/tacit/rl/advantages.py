"""Advantages: how much better each rollout did than what it is compared with.

Every function takes `rewards` (B,) of a float dtype, `groups` (B,) int64 (the prompt each rollout answers, ids in any order) and `scored`
(B,) bool, and returns (B,). Unscored rollouts get 0 and count nowhere, whatever their reward holds. Where there is nothing to compare (fewer
than two scored peers, or peers that all agree) the advantage is exactly 0: not NaN, not the raw reward, not rounding noise.

    estimator              baseline: mean over             scale
    grpo                   group                           std of the group
    dr_grpo                group                           1
    rloo                   the group's other members       1
    remax                  the group's greedy rollout      1
    reinforce_pp           batch                           std of the batch
    reinforce_pp_baseline  group                           std of the batch, after the baseline
    mean_centred           batch                           1

Peers are the members of a group, or of the batch for `reinforce_pp` and `mean_centred`: those two do learn from a prompt that was sampled
once and from a group that agrees, as their baseline comes from elsewhere, and give 0 only when the whole batch agrees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tacit.rl.aggregation import sum_within


def grpo(rewards: Tensor, groups: Tensor, scored: Tensor, eps: float = 1e-4, ddof: int = 1) -> Tensor:
    """(r - mean of the group) / (std of the group + eps).

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2. The paper leaves the std open; `ddof` = 1 and `eps` = 1e-4 are TRL's.
    """
    deviation, count = _centred(rewards, groups, scored)
    return _scaled(deviation, sum_within(deviation.square(), groups), count - ddof, eps)


def dr_grpo(rewards: Tensor, groups: Tensor, scored: Tensor) -> Tensor:
    """r - mean of the group: without the std, which gives more weight to prompts that are nearly always or hardly ever solved.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2.
    """
    return _centred(rewards, groups, scored)[0]


def rloo(rewards: Tensor, groups: Tensor, scored: Tensor) -> Tensor:
    """r - mean of the group's other members, which is n / (n - 1) (r - mean of the group).

    Source: RLOO, arXiv 2402.14740, section 2 (REINFORCE leave-one-out).
    """
    deviation, count = _centred(rewards, groups, scored)
    return deviation * count / (count - 1).clamp(min=1)


def remax(rewards: Tensor, groups: Tensor, scored: Tensor, greedy: Tensor) -> Tensor:
    """r - reward of the group's greedy rollout, which `greedy` (B,) bool marks and which gets 0 itself.

    A group without a scored greedy rollout gets 0. The greedy rollout counts as a peer: one sample beside it is enough.
    Source: ReMax, arXiv 2310.10505, section 4.
    """
    baseline = scored & greedy
    count = sum_within(baseline.to(rewards.dtype), groups)
    mean = sum_within(torch.where(baseline, rewards, 0), groups) / count.clamp(min=1)
    return torch.where(_comparable(rewards, groups, scored) & ~greedy & (count > 0), rewards - mean, 0)


def reinforce_pp(rewards: Tensor, groups: Tensor, scored: Tensor, eps: float = 1e-8) -> Tensor:
    """(r - mean of the batch) / (std of the batch + eps).

    Source: REINFORCE++, arXiv 2501.03262, the section on global advantage normalisation. Departure: the paper's statistics run over tokens,
    because its advantages hold a per-token KL; ours run over rollouts, so that a long one weighs no more than a short one.
    """
    return grpo(rewards, torch.zeros_like(groups), scored, eps)


def reinforce_pp_baseline(rewards: Tensor, groups: Tensor, scored: Tensor, eps: float = 1e-8) -> Tensor:
    """(r - mean of the group) / (std of that difference over the batch + eps).

    Groups with fewer than two scored members stay out of the std. The differences have mean 0, so none is subtracted again.
    Source: REINFORCE++, arXiv 2501.03262, the variant with baseline; same departure as in `reinforce_pp`.
    """
    deviation, count = _centred(rewards, groups, scored)
    return _scaled(deviation, deviation.square().sum(), (scored & (count >= 2)).sum() - 1, eps)


def mean_centred(rewards: Tensor, groups: Tensor, scored: Tensor) -> Tensor:
    """r - mean of the batch: REINFORCE with the simplest baseline (Williams 1992)."""
    return dr_grpo(rewards, torch.zeros_like(groups), scored)


ADVANTAGES: dict[str, Callable[..., Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "remax": remax,  # takes `greedy` as well
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "mean_centred": mean_centred,
}


def length_rank_shaping(rewards: Tensor, lengths: Tensor, correct: Tensor, groups: Tensor, scored: Tensor, penalty: float) -> Tensor:
    """Rewards from which the right answers of a group lose `penalty` times their length rank: 0 for the shortest, 1 for the longest.

    `lengths` (B,) int64 in tokens, `correct` (B,) bool. Equal lengths share their mean rank; a lone right answer, a wrong or an unscored
    one keeps its reward. A penalty below the gap between right and wrong keeps every right answer ahead.
    Source: our construction. Kimi k1.5 (arXiv 2501.12599, length penalty) is linear in the length instead, so that one very long answer
    moves all others; a rank does not depend on scale.
    """
    right = (scored & correct).nonzero()[:, 0]
    group, length = groups[right].unique(return_inverse=True)[1], lengths[right]
    key = group * (lengths.max() + 1) + length  # sorts by group, then by length
    in_order, groups_in_order = key.sort().values, group.sort().values
    before, until = torch.searchsorted(in_order, key), torch.searchsorted(in_order, key, right=True)
    start, end = torch.searchsorted(groups_in_order, group), torch.searchsorted(groups_in_order, group, right=True)
    rank = (before + until - 1).to(rewards.dtype) / 2 - start
    return rewards.index_add(0, right, rank / (end - start - 1).clamp(min=1), alpha=-penalty)


def broadcast(advantages: Tensor, offsets: Tensor) -> Tensor:
    """(B,) -> (T,): every token of a row gets the row's advantage. `offsets` (B + 1,)."""
    return torch.repeat_interleave(advantages, offsets.diff())


def _comparable(rewards: Tensor, ids: Tensor, scored: Tensor) -> Tensor:
    """(B,) bool: scored, with at least one scored peer that got another reward, by more than a few units in the last place."""
    distinct, inverse = ids.unique(return_inverse=True)

    def extreme(start: float, reduce: str) -> Tensor:
        found = rewards.new_full((len(distinct),), start)
        return found.scatter_reduce(0, inverse, torch.where(scored, rewards, start), reduce)[inverse]

    low, high = extreme(torch.inf, "amin"), extreme(-torch.inf, "amax")
    return scored & (high - low > 8 * torch.finfo(rewards.dtype).eps * torch.maximum(low.abs(), high.abs()))


def _centred(rewards: Tensor, ids: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """(r - mean over its scored peers, number of scored peers): both (B,), itself counted, the first 0 where nothing can be compared."""
    count = sum_within(scored.to(rewards.dtype), ids)
    mean = sum_within(torch.where(scored, rewards, 0), ids) / count.clamp(min=1)
    return torch.where(_comparable(rewards, ids, scored), rewards - mean, 0), count


def _scaled(deviation: Tensor, squares: Tensor, freedom: Tensor, eps: float) -> Tensor:
    """deviation / (std + eps), with std² = squares / freedom; 0 stays 0 even for eps = 0."""
    std = (squares / freedom.clamp(min=1)).sqrt()
    return deviation / (std + eps).clamp(min=torch.finfo(deviation.dtype).tiny)
