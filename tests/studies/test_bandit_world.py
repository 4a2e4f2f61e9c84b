"""Claims 4, 5, 6 and 10 of section 6 of the specification of CBS, where the value of every rollout is known."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.rl.selectors import choose
from tacit.studies.bandit_world import buffer_means, label_signal, play, slope

L = (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        pytest.param({}, (0, 0.80, 1.27, 1.65, 1.97), id="oracle"),
        pytest.param({"decay": 0.3}, (0, 0.66, 0.89, 0.94, 0.94), id="ageing, oracle"),
        pytest.param({"decay": 0.1, "correlation": 0.3, "sees_age": False}, (0, 0.19, 0.22, 0.15, -0.16), id="ageing, weak and blind"),
    ],
)
def test_claim_4_what_a_larger_buffer_is_worth(how, expected):
    found = [buffer_means(rounds, 256, 240 // rounds + 40, 0, **how) for rounds in L]
    assert found == pytest.approx(expected, abs=0.02)


def test_claim_4_an_oracle_loses_nothing_by_a_larger_buffer():
    """Round by round: the best of a set are worth no less than the best of a part of it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        score = rng.normal(size=(8, 32)) - 0.3 * np.arange(8)[:, None]
        best = []
        for rounds in range(1, 9):
            held = score[:rounds].ravel()
            best.append(held[choose(held, np.zeros(len(held), np.int64), np.array([32]), rng)].sum())
        assert best[0] == pytest.approx(score[0].sum()) and np.all(np.diff(best) >= -1e-12) and best[-1] > best[0]


SMALL = {"size": 64, "keep": 32, "drift": 0.3}


@pytest.mark.parametrize("world", ["linear", "mlp"])
def test_claim_5_regret_grows_slower_than_the_rounds(world):
    regret = np.mean([play(world, seed, 160, **SMALL).regret for seed in (1, 2)], axis=0)
    assert slope(regret) < 0.7


def test_claim_5_random_choices_have_regret_in_proportion():
    assert slope(play("linear", 1, 400, policy="random", **SMALL).regret) == pytest.approx(1.0, abs=0.02)
    assert slope(np.ones(300)) == pytest.approx(1.0) and slope(1 / np.sqrt(np.arange(1, 20_001)), 5000) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("ratio", "cosine", "lift"), [(0.1, (0.1, 0.4), (0.05, 0.4)), (1, (0.8, 0.94), (0.7, 0.94)), (10, (0.97, 1), (0.9, 1))])
def test_claim_6_what_a_label_of_that_signal_to_noise_can_teach(ratio, cosine, lift):
    found = np.mean([label_signal(ratio, 300, seed) for seed in range(10)], axis=0)
    assert cosine[0] < found[0] < cosine[1] and lift[0] < found[1] < lift[1]


def test_claim_6_the_noise_of_a_label():
    """B = 128, G = 8, pass rates N(.5, .35) clipped to [0, 1]: the std of V is .030, of V' - V .042."""
    rng = np.random.default_rng(0)
    p = np.clip(rng.normal(0.5, 0.35, size=(4000, 128)), 0, 1)
    v = (rng.binomial(8, p) / 8).mean(1)
    law = p.var() / 128 + (p * (1 - p)).mean() / (128 * 8)
    assert v.std() == pytest.approx(law**0.5, rel=0.03) and law**0.5 == pytest.approx(0.030, abs=0.001)
    assert np.diff(v.reshape(-1, 2), axis=1).std() == pytest.approx(0.042, abs=0.002)


def test_claim_10_shuffled_labels_teach_nothing():
    measured, shuffled = (play("linear", 3, 90, shuffled=how, **SMALL).spearman[-30:].mean() for how in (False, True))
    assert measured > 0.5 and abs(shuffled) < 0.3
