"""The scheduler of CBS by hand: arm reward, features, labels, network. Claims 1 and 2 of its specification's section 6, by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from tacit.core.checkpoint import CheckpointStore
from tacit.rl.scheduler import (
    FEATURES,
    Context,
    Decision,
    Normaliser,
    Scheduler,
    Scorer,
    arm_reward,
    clip_ratio,
    explored,
    features,
    fit_seconds,
    kept_units,
    label_loss,
    label_variance,
    row_mean,
    standardised,
)


@pytest.mark.parametrize(
    ("e", "e_next", "e_min", "expected"),
    [(0.50, 0.55, 0.45, 0.05), (0.50, 0.55, 0.60, 0.06), (0.50, 0.45, 0.45, 0.07), (0.45, 0.55, 0.45, 0.06)],
)
def test_claim_1_arm_reward_by_hand(e, e_next, e_min, expected):
    """V .40 → .46; the price counts entropy that grows from strictly above e_min, and pays where it falls."""
    assert arm_reward(0.40, 0.46, e, e_next, w_e=0.2, e_min=e_min) == pytest.approx(expected, abs=1e-12)


def test_label_variance_by_hand_and_in_the_mean():
    assert label_variance(np.array([0.0, 0.5, 1.0])) == pytest.approx(0.25 / 3)
    assert np.isnan(label_variance(np.array([0.5])))
    rng = np.random.default_rng(0)
    p = rng.beta(2, 3, size=(4000, 16))
    means = rng.binomial(8, p) / 8
    expected = p.var() / 16 + (p * (1 - p)).mean() / (16 * 8)
    assert np.mean([label_variance(m) for m in means]) == pytest.approx(expected, rel=0.03)
    assert means.mean(1).var() == pytest.approx(expected, rel=0.08)


def test_clip_ratio_and_row_mean_by_hand():
    """Ratios 1, 1.3 | .7, 1.1, (masked) | nothing trained: outside [.8, 1.28] lie one of two and one of two."""
    logp = tensor([1.0, 1.3, 0.7, 1.1, 9.0]).log()
    rows, mask = tensor([0, 0, 1, 1, 2]), tensor([True, True, True, True, False])
    assert clip_ratio(logp, torch.zeros(5), rows, mask, 3, 0.2, 0.28).tolist() == [0.5, 0.5, 0.0]
    assert row_mean(tensor([1.0, 3.0, 5.0, 8.0, 9.0]), rows, mask, 3).tolist() == [2.0, 6.5, 0.0]


def context(**columns) -> Context:
    size = len(next(iter(columns.values())))
    return Context(**{name: tensor(columns.get(name, [0.0] * size), dtype=torch.float64) for name in FEATURES})


def test_ten_features_by_hand():
    found = features(
        context(
            reward=[1.0, 0.0],
            advantage=[1.5, -9.0],
            length=[12, 48],
            truncated=[0.0, 1.0],
            entropy=[0.7, 9.0],
            clip_ratio=[0.0, 0.25],
            age=[0.0, 3.0],
            usage=[0.0, 4.0],
            pass_rate=[0.5, 0.25],
            logp=[-0.4, -1.2],
        ),
        {"entropy": (0.5, 0.1), "logp": (-0.6, 0.2)},
        limit=48,
        rounds=4,
    )
    assert found.dtype == torch.float64 and found.shape == (2, 10)
    torch.testing.assert_close(found[0], tensor([1, 0.5, 0.25, 0, 2.0, 0, 0, 0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found[1], tensor([0, -1, 1, 1, 3.0, 0.25, 0.75, 1, 0.25, -3.0], dtype=torch.float64))


def test_normaliser_by_hand_and_blind_to_what_is_not_past():
    seen = Normaliser(decay=0.5)
    assert seen.moments == (0.0, float("inf"))
    zero = features(context(entropy=[3.0, 7.0]), {"entropy": seen.moments, "logp": seen.moments}, limit=1, rounds=1)
    assert zero[:, FEATURES.index("entropy")].tolist() == [0, 0]
    seen.add(tensor([1.0, 3.0]))
    assert seen.moments == (2.0, 1.0)
    seen.add(tensor([4.0]))
    seen.add(tensor([]))  # a round without rollouts says nothing
    mean = (0.5 * 2 + 4) / 1.5
    assert seen.moments == pytest.approx((mean, ((0.5 * 5 + 16) / 1.5 - mean**2) ** 0.5))
    copy = Normaliser(decay=0.5)
    copy.load_state_dict(seen.state_dict())
    assert copy.moments == seen.moments


def test_standardised_by_hand():
    """decay .5. Second label: mean (.5·0 + 3)/1.5 = 2, second moment 6, std √2: (3 - 2)/√2."""
    assert standardised(np.array([0.0, 3.0]), decay=0.5).tolist() == pytest.approx([0.0, 0.5**0.5])
    assert standardised(np.array([7.0, 7.0, 7.0])).tolist() == [0, 0, 0]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.floats(-5, 5), st.floats(0.5, 4))
def test_standardised_labels_do_not_know_the_future_nor_the_scale(labels, shift, scale):
    found = standardised(np.array(labels))
    assert np.abs(found).max() <= 5
    assert standardised(np.array(labels[:-1])) == pytest.approx(found[:-1])
    if np.ptp(labels[:2]) > 1e-3:
        assert standardised(scale * np.array(labels) + shift) == pytest.approx(found, abs=1e-4)


def test_label_loss_by_hand():
    """Round 0: scores 1, 3, label 1. Round 1: score 0, label 2."""
    scores, rounds, labels = tensor([1.0, 3.0, 0.0], dtype=torch.float64), tensor([0, 0, 1]), tensor([1.0, 2.0], dtype=torch.float64)
    assert float(label_loss(scores, rounds, labels, "sample")) == ((0 + 4) / 2 + 4) / 2
    assert float(label_loss(scores, rounds, labels, "set")) == (1 + 4) / 2
    for kind in ("sample", "set"):
        assert float(label_loss(scores[[2, 1, 0]], tensor([1, 0, 0]), labels, kind)) == float(label_loss(scores, rounds, labels, kind))


def test_claim_2_scores_are_equivariant_and_leave_global_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    scorer, x = Scorer(seed=1), torch.linspace(-1, 1, 70).view(7, 10)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scorer(x)[order], scorer(x[order]))
    assert torch.equal(scorer(x), Scorer(seed=1)(x)) and not torch.equal(scorer(x), Scorer(seed=2)(x))
    scorer(x, np.random.default_rng(0))
    scheduler = Scheduler()
    scheduler.add(Decision(x, 0.1, 1.0, 0.2, 1.0))
    scheduler.add(Decision(x, 0.2, 1.0, 0.1, 1.0))
    scheduler.fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_units_are_dropped_by_the_bytes_of_their_own_numbers():
    """Of .1 the next 1/256 is 26/256: bytes from 26 on are kept, at 256/230."""
    numbers = np.frombuffer(np.random.default_rng(5).bytes(4000), np.uint8)
    found = kept_units(np.random.default_rng(5), 4000, 0.1)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), (numbers >= 26) * np.float32(256 / 230))
    assert (found == 0).double().mean() == pytest.approx(26 / 256, abs=0.02) and found.double().mean() == pytest.approx(1, abs=0.02)


def test_dropout_keeps_the_mean():
    """A linear read-out of hidden units, 0.1 of them dropped: over many passes the mean is that without."""
    scorer, x, rng = Scorer(dropout=0.1), torch.ones(1, 10), np.random.default_rng(0)
    with torch.no_grad():
        scorer.layers[1].weight.zero_()  # the second hidden layer is constant, so only its own dropout acts
        draws = torch.cat([scorer(x.expand(500, -1), rng) for _ in range(8)])
        assert draws.std() > 0.01
        assert float(draws.mean()) == pytest.approx(float(scorer(x)), abs=4 * float(draws.std()) / 4000**0.5)


def decisions(count: int, worth=lambda x: x[:, 0] - x[:, 4]) -> list[Decision]:
    """Choices of 8 whose gain is the mean worth of their features."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        x = torch.randn(8, 10, generator=generator) + torch.randn(10, generator=generator)
        found.append(Decision(x, 0.0, 1.0, float(worth(x).mean()), 1.0))
    return found


@pytest.mark.parametrize("kind", ["sample", "set"])
def test_the_network_learns_what_the_labels_pay_for(kind):
    scheduler = Scheduler(kind=kind, dropout=0.0)
    for decision in decisions(60):
        scheduler.add(decision)
        scheduler.fit()
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    assert np.corrcoef(scheduler.scores(x), (x[:, 0] - x[:, 4]).numpy())[0, 1] > 0.8


def test_claim_10_of_shuffled_labels_it_learns_nothing():
    learned = []
    for shuffled in (False, True):
        scheduler = Scheduler(dropout=0.0, shuffled=shuffled)
        for decision in decisions(60):
            scheduler.add(decision)
            scheduler.fit()
        x = torch.randn(400, 10, generator=torch.Generator().manual_seed(1))
        learned.append(np.corrcoef(scheduler.scores(x), (x[:, 0] - x[:, 4]).numpy())[0, 1])
    assert learned[0] > 0.8 and abs(learned[1]) < 0.4


def test_the_price_of_entropy_comes_from_the_warm_up():
    """Gains .1, .3 (std .1414), entropies 2, 4: e_min 3, w_e = .1414 / .3. A choice at E = 4 then pays for 4 → 5."""
    scheduler = Scheduler(warmup=2)
    x = torch.zeros(2, 10)
    scheduler.add(Decision(x, 0.0, 2.0, 0.1, 9.0))
    assert scheduler.rewards().tolist() == [0.1]
    scheduler.add(Decision(x, 0.0, 4.0, 0.3, 5.0))
    assert scheduler.e_min == 3.0 and scheduler.w_e == pytest.approx(0.02**0.5 / 0.3)
    assert scheduler.rewards().tolist() == pytest.approx([0.1, 0.3 - 0.02**0.5 / 0.3])
    fixed = Scheduler(warmup=1, w_e=0.0, e_min=1.0)
    fixed.add(Decision(x, 0.0, 4.0, 0.3, 5.0))
    assert (fixed.w_e, fixed.e_min) == (0.0, 1.0) and fixed.rewards().tolist() == [0.3]


def test_the_pool_slides():
    scheduler = Scheduler(pool=3)
    for decision in decisions(5):
        scheduler.add(decision)
    assert len(scheduler.pool) == 3 and scheduler.labelled == 5


def test_resumed_it_goes_on_bit_for_bit(tmp_path):
    several = decisions(12)
    whole, first = Scheduler(), Scheduler()
    for decision in several:
        whole.add(decision)
        whole.fit()
    for decision in several[:7]:
        first.add(decision)
        first.fit()
    store = CheckpointStore(tmp_path)
    store.save(1, first.state_dict())
    second = Scheduler()
    second.load_state_dict(store.latest().state)
    for decision in several[7:]:
        second.add(decision)
        second.fit()
    x = several[0].features
    assert np.array_equal(second.scores(x), whole.scores(x)) and not np.array_equal(first.scores(x), whole.scores(x))


def test_what_a_fit_takes_is_measured_where_it_will_be_done():
    """More rollouts take longer, and nothing is drawn from global random numbers."""
    before = torch.get_rng_state()
    few, many = (min(fit_seconds(rows, pool=32) for _ in range(3)) for rows in (4, 1024))
    assert 0 < few < many < 10 and torch.equal(torch.get_rng_state(), before)


def test_exploration_falls_in_equal_steps():
    assert [explored(t, 0.1, 0.02, 4) for t in (0, 1, 2, 4, 9)] == pytest.approx([0.1, 0.08, 0.06, 0.02, 0.02])
