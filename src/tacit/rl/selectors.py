"""Selectors: which rollouts are trained on, by a rule. The component `Selector` holds what they share, CBS's learned scheduler included.

rule              score of a rollout              source
random            none: all ties                  the control for every other one
top_advantage     |advantage|                     Xu et al. 2025 compare with it
positives         none, among advantages > 0      learning from right answers alone
max_variance      the subset of its group whose   PODS, arXiv 2504.13818, theorem 1
                  rewards vary most
reward_priority   reward                          prioritised replay, with mode `global`
oracle            the column truth/value          see `tacit.rl.true_value`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.core.rollouts import RolloutBatch, Source
from tacit.rl.component import Component
from tacit.rl.replay import ReplayBuffer

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step

TRUTH = "truth/value"  # row column that `tacit.rl.true_value` fills
Mode = Literal["intra", "global", "nested"]
Floats, Ints = NDArray[np.float64], NDArray[np.int64]


def place_in_order(groups: Ints, *keys: Floats) -> Ints:
    """(B,) the place of each row among its group, 0 first, when sorted by `keys`, the first one above all."""
    order = np.lexsort((*reversed(keys), groups))
    in_order = groups[order]
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.searchsorted(in_order, in_order)
    return places


def choose(scores: Floats, groups: Ints, counts: Ints, rng: np.random.Generator, explore: float = 0.0) -> NDArray[np.bool_]:
    """(B,) bool: the `counts` (G,) best of each group, G groups in ascending order of their ids; ties at random.

    Each slot goes with probability `explore` to a random one of those that the other slots leave. A count beyond its group takes all of it.
    Depends on the order of the scores only, not on their scale.
    """
    _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    counts = np.minimum(counts, sizes)
    ties, luck = rng.random(len(scores)), rng.random(len(scores))
    guesses = rng.binomial(counts, explore)
    best = place_in_order(inverse, -scores, ties) < (counts - guesses)[inverse]
    others_first = place_in_order(inverse, best.astype(np.float64), luck)
    return best | (others_first < guesses[inverse])


def kept_of(sizes: Ints, share: float) -> Ints:
    """⌈share n⌉ of groups of n, without the rounding error of the product."""
    return np.ceil(share * sizes - 1e-9).astype(np.int64)


def max_variance(rewards: Floats, count: int) -> NDArray[np.bool_]:
    """(n,) bool: the `count` of these rewards with the largest variance: some of the highest and the rest from the lowest.

    Source: PODS, arXiv 2504.13818, theorem 1; of equals the subset with more of the highest.
    """
    order = np.argsort(-rewards, kind="stable")
    subsets = [np.concatenate([order[:high], order[len(order) - (count - high) :]]) for high in range(count, -1, -1)]
    best = max(subsets, key=lambda rows: rewards[rows].var().round(12))
    mask = np.zeros(len(rewards), bool)
    mask[best] = True
    return mask


def max_variance_scores(rewards: Floats, groups: Ints, counts: Ints, rng: np.random.Generator):
    """(B,) 1 for the members of each group's subset, of equal rewards random ones; else 0."""
    scores = np.zeros(len(rewards))
    for group, count in zip(np.unique(groups), counts, strict=True):
        rows = rng.permutation(np.flatnonzero(groups == group))
        scores[rows] = max_variance(rewards[rows], min(int(count), len(rows)))
    return scores


RULES = ("random", "top_advantage", "positives", "max_variance", "reward_priority", "oracle")


class Selector(Component):
    """Select. A method of choosing overrides `scores`, and `explore` where it guesses now and then.

    rule     see the table at the head of this file
    mode     intra: the best of each fresh group; global: the best of the last rounds; nested: both, one after the other
    share    p, of each group (intra, nested)
    rounds   L, that the buffer holds (global, nested)
    count    K, as a share of a fresh round (global), or of what is left of it (nested)
    stale    optimiser steps beyond which a buffered rollout is no candidate; null: no limit but L
    """

    per_rollout = True

    def __init__(self, rule: str = "random", mode: Mode = "intra", share: float = 0.5, rounds: int = 4, count: float = 1.0, stale: int | None = None):
        if rule not in RULES and type(self) is Selector:
            raise ValueError(f"rule of a selector must be one of {', '.join(RULES)}, not {rule!r}")
        if mode not in ("intra", "global", "nested"):
            raise ValueError(f"mode of a selector must be intra, global or nested, not {mode!r}")
        check_numbers("a selector", share=(share, float, 0), rounds=(rounds, int, 1), count=(count, float, 0))
        if stale is not None:
            check_numbers("a selector", stale=(stale, int, 0))
        if not (0 < share <= 1 and count > 0):
            raise ValueError(f"a selector needs 0 < share <= 1 and count > 0, not {share} and {count}")
        self.rule, self.mode, self.share, self.count = rule, mode, share, count
        self.buffer = ReplayBuffer(rounds, stale)
        self.void = False  # the policy was rolled back: nothing of this step is trained on

    def scores(self, step: Step, agent: Agent, candidates: RolloutBatch, groups: Ints, counts: Ints) -> Floats:
        """(B,) how much each is worth training on; asked once a step, and once more, of the buffer, in nested mode."""
        match self.rule:
            case "top_advantage":
                return candidates.advantage.abs().numpy()
            case "reward_priority":
                return candidates.reward.numpy()
            case "max_variance":
                return max_variance_scores(candidates.reward.numpy(), groups, counts, self.generator(step, agent))
            case "oracle":
                return truth_of(candidates)
        return np.zeros(len(candidates))

    @property
    def explore(self) -> float:
        """The probability with which a slot is given away at random."""
        return 0.0

    def generator(self, step: Step, agent: Agent) -> np.random.Generator:
        """Random numbers of this step: the same ones when it is resumed."""
        return np.random.default_rng((step.seed, step.index, agent.index, agent.components.index(self)))

    def select(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        """What is chosen, fresh rollouts first, each in the order in which it was drawn."""
        if self.void or not len(batch):
            return batch
        candidates, rng = batch, self.generator(step, agent)
        if self.mode != "global":
            groups = candidates.group.numpy()
            counts = kept_of(np.unique(groups, return_counts=True)[1], self.share)
            candidates = candidates.select(self.chosen(step, agent, candidates, groups, counts, rng))
        if self.mode != "intra":
            counts = kept_of(np.array([len(candidates)]), self.count)
            self.buffer.push(step.index, candidates)
            candidates = self.buffer.candidates(step.index, agent.policy.version)
            one = np.zeros(len(candidates), np.int64)
            candidates = candidates.select(self.chosen(step, agent, candidates, one, counts, rng))
        self.report(step, agent, batch, candidates)
        return candidates

    def chosen(self, step: Step, agent: Agent, candidates: RolloutBatch, groups: Ints, counts: Ints, rng: np.random.Generator):
        scores = self.scores(step, agent, candidates, groups, counts)
        mask = torch.from_numpy(choose(scores, groups, counts, rng, self.explore))
        return mask & (candidates.advantage > 0) if self.rule == "positives" else mask

    def report(self, step: Step, agent: Agent, fresh: RolloutBatch, chosen: RolloutBatch) -> None:
        """What was taken beside what there was: rows without an advantage, prompts, ages, and the columns 'noise/…' of studies."""
        told = {
            "select/rows": float(len(chosen)),
            "select/prompts": float(len(chosen.group.unique())),
            "select/zero_advantage": mean(chosen.advantage == 0),
            "select/zero_advantage_drawn": mean(fresh.advantage == 0),
            "select/reward": mean(chosen.reward),
        }
        if self.mode != "intra":
            told |= {"select/age": mean(step.index - self.buffer.born(chosen)), "select/replayed": mean(chosen.source == Source.REPLAYED)}
        for name in fresh.rows:
            if name.startswith("noise/"):
                told |= {f"select/{name[6:]}": mean(chosen.rows[name]), f"select/{name[6:]}_drawn": mean(fresh.rows[name])}
        step.tell(agent, told)

    def observe(self, step: Step, agent: Agent) -> None:
        """Counts the uses of what the buffer holds: every update that a rollout has entered, replays of other components among them."""
        for index, update in step.updates:
            if index == agent.index:
                self.buffer.count(update.batch)
        self.void = False

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state_dict(state["buffer"])

    def on_rollback(self) -> None:
        """The rollouts of policies that are gone go too."""
        self.buffer.clear()
        self.void = True


def check_numbers(owner: str, **wanted: tuple[Any, type[int] | type[float], float]) -> None:
    """Of each name its value, whether it is whole (int) or not (float), and the least that it may be. Raises ValueError for another one."""
    for name, (value, kind, least) in wanted.items():
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float) or not value >= least:
            raise ValueError(f"{name} of {owner} must be a {'whole ' * (kind is int)}number of at least {least}, not {value!r}")


def truth_of(batch: RolloutBatch) -> Floats:
    """Raises ValueError where no component has filled the column."""
    if TRUTH not in batch:
        raise ValueError("the rule 'oracle' needs the true values of rollouts: list the component true_value before the selector")
    return batch.rows[TRUTH].numpy()


def mean(values: torch.Tensor) -> float:
    return float(values.double().mean()) if len(values) else float("nan")
