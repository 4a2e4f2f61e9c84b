"""A world in which the value of every rollout is known: what the claims of CBS's theory, and its scheduler, are tried on without any model.

A round has `size` contexts of ten numbers; a rollout is worth h(context), of mean 0 and variance 1 over contexts; training on a set moves the
policy by `gain` times the mean value of the set, and the label shows that with noise. Regrets are per slot, in standard deviations of h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.core.statistics import spearman
from tacit.rl.scheduler import FEATURES, Decision, Scheduler, explored
from tacit.rl.selectors import choose

Worth = Callable[[NDArray[np.float64], int], NDArray[np.float64]]  # contexts (N, 10) of a round to values (N,)
Kind = Literal["linear", "mlp", "drifting"]


class Course(NamedTuple):
    """T rounds of a scheduler: regret per slot and rank correlation of scores with values, (T,) each; its share of the oracle's lift."""

    regret: NDArray[np.float64]
    spearman: NDArray[np.float64]
    lift: float


def worth(kind: Kind, rng: np.random.Generator) -> Worth:
    """A random h: linear; 16 hidden units, centred and scaled on 10,000 contexts; or linear with weights that turn by 90° in 200 rounds."""
    n = len(FEATURES)
    w, other = np.linalg.qr(rng.normal(size=(n, 2)))[0].T
    if kind == "linear":
        return lambda x, t: x @ w
    if kind == "drifting":
        return lambda x, t: x @ (np.cos(t * np.pi / 400) * w + np.sin(t * np.pi / 400) * other)
    first, second = rng.normal(size=(n, 16)) / np.sqrt(n), rng.normal(size=16)
    raw = lambda x: np.tanh(2 * x @ first) @ second  # noqa: E731
    sample = raw(rng.normal(size=(10_000, n)))
    return lambda x, t: (raw(x) - sample.mean()) / sample.std()


def play(
    world: Kind,
    seed: int,
    rounds: int,
    *,
    size: int = 256,
    keep: int = 128,
    gain: float = 0.03,
    noise: float = 0.01,
    drift: float = 0.0,
    warmup: int = 10,
    explore: tuple[float, float] = (0.1, 0.02),
    policy: Literal["learned", "random"] = "learned",
    **options: Any,
) -> Course:
    """One course of the scheduler with these `options`. `drift`: std of the features' means from round to round."""
    rng = np.random.default_rng(seed)
    h, scheduler = worth(world, rng), Scheduler(seed=seed, warmup=warmup, w_e=0.0, **options)
    one, counts = np.zeros(size, np.int64), np.array([keep])
    regret, found, lifts, oracle = np.zeros(rounds), np.zeros(rounds), 0.0, 0.0
    for t in range(rounds):
        x = rng.normal(size=(size, len(FEATURES))) + drift * rng.normal(size=len(FEATURES))
        value = h(x, t)
        learned = t >= warmup and policy == "learned"
        scores = scheduler.scores(torch.from_numpy(x)) if learned else np.zeros(size)
        epsilon = explored(t - warmup, *explore, over=100) if learned else 0.0
        chosen = choose(scores, one, counts, rng, epsilon)
        best = np.sort(value)[-keep:].mean()
        regret[t], found[t] = best - value[chosen].mean(), spearman(scores, value)
        lifts, oracle = lifts + value[chosen].mean() - value.mean(), oracle + best - value.mean()
        if policy == "learned":
            after = gain * value[chosen].mean() + noise * rng.normal()
            scheduler.add(Decision(torch.from_numpy(x[chosen]).float(), 0.0, 1.0, after, 1.0))
            scheduler.fit()
    return Course(regret, found, lifts / oracle)


def slope(regret: NDArray[np.float64], start: int = 50) -> float:
    """The exponent of the cumulative regret from round `start` on: of its logarithm over that of the round, by least squares."""
    t = np.arange(start, len(regret) + 1)
    return float(np.polyfit(np.log(t), np.log(np.cumsum(regret)[start - 1 :]), 1)[0])


def buffer_means(rounds: int, size: int, draws: int, seed: int, *, decay: float = 0.0, correlation: float = 1.0, sees_age: bool = True) -> float:
    """The mean value of the K = `size` best of a buffer of `rounds` rounds of `size`, over `draws` buffers.

    Values are standard normal, less `decay` for every round of age; the score correlates with the fresh value, and knows the age or not.
    """
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(draws, rounds, size))
    age = decay * np.arange(rounds)[:, None]
    score = correlation * value + np.sqrt(1 - correlation**2) * rng.normal(size=value.shape) - sees_age * age
    value, score = (x.reshape(draws, -1) for x in (value - age, score))
    best = np.argpartition(-score, size - 1, axis=1)[:, :size] if rounds > 1 else np.arange(size)[None].repeat(draws, 0)
    return float(np.take_along_axis(value, best, 1).mean())


def label_signal(
    ratio: float, rounds: int, seed: int, *, size: int = 64, keep: int = 32, warmup: int = 10, ridge: float = 1.0, drift: float = 0.25
) -> tuple[float, float]:
    """What a linear scheduler reaches when a set of mean value one moves the policy by `ratio` standard deviations of the label's noise:
    the cosine of its weights with the true ones, and its lift over that of the oracle in the last quarter. Feature means drift by `drift` std.

    Ridge regression of the label on the mean features of the choice, centred, over all rounds so far.
    """
    rng = np.random.default_rng(seed)
    n = len(FEATURES)
    w = rng.normal(size=n)
    w /= np.linalg.norm(w)
    rows, labels, lift, oracle = list[NDArray[np.float64]](), list[float](), 0.0, 0.0
    estimate = np.zeros(n)
    for t in range(rounds):
        x = rng.normal(size=(size, n)) + drift * rng.normal(size=n)
        value = x @ w
        scores = x @ estimate if t >= warmup else rng.normal(size=size)
        chosen = np.argsort(-scores)[:keep]
        rows.append(x[chosen].mean(0))
        labels.append(ratio * value[chosen].mean() + rng.normal())
        past, r = np.array(rows) - np.mean(rows, 0), np.array(labels) - np.mean(labels)
        estimate = np.linalg.solve(past.T @ past + ridge * np.eye(n), past.T @ r)
        if t >= rounds * 3 // 4:
            lift += value[chosen].mean() - value.mean()
            oracle += np.sort(value)[-keep:].mean() - value.mean()
    return float(estimate @ w / np.linalg.norm(estimate)), lift / oracle
