from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tacit.generation.noise import GOLDEN, row_keys, sample_from, splitmix64, uniforms

MASK = 2**64 - 1


def mix(x: int) -> int:
    """The finaliser once more, in plain integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def draws(logits: list[float], numbers: np.ndarray, **options) -> torch.Tensor:
    row = torch.tensor(logits, dtype=torch.float64).expand(len(numbers), -1)
    return sample_from(row, torch.from_numpy(numbers), **options)[0]


# --- numbers ---


def test_equals_the_published_splitmix64_sequence():
    """The first outputs for seed 1234567, as listed by the implementations of other languages."""
    counter = np.arange(1, 6, dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(np.uint64(1234567) + counter * GOLDEN).tolist() == expected


def test_the_scheme_is_fixed():
    """A change of these values changes every run: it needs a new version of whatever promises equal draws."""
    keys = row_keys(7, 3, [11, 12], [0, 5])
    expected = []
    for group, sample in [(11, 0), (12, 5)]:
        key = 0
        for part in (7, 0, 3, group, sample):
            key = mix((key + part + int(GOLDEN)) & MASK)
        expected.append(key)
    assert keys.tolist() == expected == [10465916695439308118, 11621752246013912004]
    number = (mix((expected[0] + 10 * int(GOLDEN)) & MASK) >> 11) * 2.0**-53
    assert uniforms(keys, 9)[0] == number == 0.5918469782296414


def test_extreme_arguments():
    assert row_keys(2**64 - 1, 2**40, [-1], [0]).dtype == np.uint64
    assert len(row_keys(0, 0, [], [])) == 0
    assert uniforms(row_keys(0, 0, [1, 2, 3], 0), 0).shape == (3,)


def test_a_number_depends_on_its_own_place_alone():
    groups, samples = np.repeat(np.arange(6), 4), np.tile(np.arange(4), 6)
    table = uniforms(row_keys(1, 2, groups, samples)[:, None], np.arange(10))
    order = np.random.default_rng(0).permutation(24)[:7]
    assert np.array_equal(uniforms(row_keys(1, 2, groups[order], samples[order]), 4), table[order, 4])


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    """(seed, agent, step, group, sample, position) of sizes 4, 2, 8, 16, 8, 64."""
    group, sample = np.repeat(np.arange(16), 8), np.tile(np.arange(8), 16)
    outer = [(seed, agent, step) for seed in range(4) for agent in range(2) for step in range(8)]
    keys = np.stack([row_keys(seed, step, group, sample, agent=agent) for seed, agent, step in outer])
    return uniforms(keys[..., None], np.arange(64)).reshape(4, 2, 8, 16, 8, 64)


def test_no_two_places_share_a_number(grid):
    """Half a million draws from 2^53 values collide with probability 2e-5."""
    assert len(np.unique(grid)) == grid.size == 524288


def test_numbers_are_uniform(grid):
    assert grid.min() >= 0 and grid.max() < 1
    assert stats.kstest(grid.ravel(), "uniform").pvalue > 1e-3
    counts = np.bincount((grid.ravel() * 4096).astype(int), minlength=4096)
    assert stats.chisquare(counts).pvalue > 1e-3
    low_bits = (grid.ravel() * 2.0**53).astype(np.uint64) & np.uint64(255)
    assert stats.chisquare(np.bincount(low_bits.astype(int), minlength=256)).pvalue > 1e-3


@pytest.mark.parametrize("axis", range(6), ids=["seed", "agent", "step", "group", "sample", "position"])
def test_neighbours_are_independent_along_every_part_of_the_key(grid, axis):
    """Lag-1 correlation within 4 standard errors of 0, and the pairs fill the unit square evenly."""
    first = np.take(grid, range(grid.shape[axis] - 1), axis).ravel()
    second = np.take(grid, range(1, grid.shape[axis]), axis).ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(first))
    cells = (first * 16).astype(int) * 16 + (second * 16).astype(int)
    assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > 1e-4


# --- draws ---


def test_draws_by_hand():
    """Probabilities .1, .2, .3, .4: the cumulative ones are .1, .3, .6, 1; a number on a boundary belongs to the next token."""
    logits = np.log([0.1, 0.2, 0.3, 0.4]).tolist()
    numbers = np.array([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 1 - 2.0**-53])
    assert draws(logits, numbers).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert draws([0.0, 0.0], np.array([0.5 - 2.0**-53, 0.5])).tolist() == [0, 1]


def test_log_probs_by_hand():
    """Two logits 0 and ln 3 at temperature 1/2: probabilities 1/10 and 9/10."""
    logits, numbers = torch.tensor([[0.0, np.log(3.0)]] * 2, dtype=torch.float64), torch.tensor([0.05, 0.5], dtype=torch.float64)
    token, logp, _ = sample_from(logits, numbers, temperature=0.5)
    assert token.tolist() == [0, 1] and logp.dtype == torch.float64
    assert logp.tolist() == pytest.approx([np.log(0.1), np.log(0.9)], abs=1e-14)


def test_greedy_takes_the_likeliest_with_its_log_prob_at_temperature_one():
    token, logp, _ = sample_from(torch.tensor([[0.0, np.log(3.0), -1e9]]), torch.tensor([0.0], dtype=torch.float64), temperature=0.0)
    assert token.tolist() == [1] and logp.item() == pytest.approx(np.log(0.75), abs=1e-6)  # the logits are float32


def test_top_p_by_hand():
    """Of .1, .2, .3, .4, the likeliest two hold .7: enough for top_p .7 and less; .71 takes a third. The log-prob stays that of the whole."""
    logits, numbers = np.log([0.1, 0.2, 0.3, 0.4]).tolist(), (np.arange(1000) + 0.5) / 1000
    for top_p, allowed in [(0.3, {3}), (0.69, {2, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})]:
        assert set(draws(logits, numbers, top_p=top_p).tolist()) == allowed
    assert set(draws([0.0, 0.0], numbers, top_p=0.5).tolist()) == {0}  # the first of two halves is enough
    counts = torch.bincount(draws(logits, numbers, top_p=0.69), minlength=4) / 1000
    assert counts[2].item() == pytest.approx(3 / 7, abs=2e-3)
    _, logp, _ = sample_from(torch.tensor([logits]), torch.tensor([0.99], dtype=torch.float64), top_p=0.3)
    assert logp.item() == pytest.approx(np.log(0.4), abs=1e-6)


def test_what_has_no_probability_is_not_drawn_even_where_sums_are_taken_in_parallel(monkeypatch):
    """On other devices a cumulative sum may differ in its last bits from one entry to the next, and rise where nothing was added."""
    cumsum = torch.Tensor.cumsum
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda x, dim: cumsum(x, dim) * torch.tensor([1, 1 + 2e-16, 1 - 2e-16, 1 + 4e-16], dtype=x.dtype))
    numbers = np.array([0.0, 0.5 - 1e-9, 0.5 + 1e-9, 1 - 2.0**-53])
    assert draws([0.0, -torch.inf, 0.0, -torch.inf], numbers).tolist() == [0, 0, 2, 2]


def test_broken_logits_give_nan_not_a_crash():
    logits = torch.tensor([[0.0, torch.nan], [-torch.inf, -torch.inf], [torch.inf, 0.0], [0.0, 0.0]])
    token, logp, _ = sample_from(logits, torch.full((4,), 0.5, dtype=torch.float64))
    assert logp.isnan().tolist() == [True, True, True, False]
    assert ((token >= 0) & (token < 2)).all()


def test_matches_the_distribution():
    """Chi-square of 200,000 draws, some tokens masked, at three temperatures."""
    logits = torch.tensor([1.0, -torch.inf, 0.3, -2.0, 2.5, -torch.inf, 0.0, -1.0])
    numbers = uniforms(row_keys(0, 0, np.arange(200_000), 0), 0)
    for temperature in (0.7, 1.0, 1.6):
        expected = torch.softmax(logits.double() / temperature, -1).numpy()
        found = torch.bincount(draws(logits.tolist(), numbers, temperature=temperature), minlength=8).numpy()
        assert found[expected == 0].sum() == 0
        assert stats.chisquare(found[expected > 0], expected[expected > 0] * len(numbers)).pvalue > 1e-3


logit_rows = arrays(
    np.float64, st.integers(1, 40), elements=st.one_of(st.just(-np.inf), st.floats(-800, 800), st.sampled_from([0.0, -745.2, -3.4e38, 30.0]))
).filter(lambda row: np.isfinite(row).any())
numbers_in_reach = st.one_of(st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53, 1.0]), st.floats(0, 1, exclude_max=True))


@given(logit_rows, numbers_in_reach, st.sampled_from([0.05, 0.7, 1.0, 3.0]), st.sampled_from([1.0, 0.9, 0.2]))
def test_never_draws_what_has_no_probability(row, number, temperature, top_p):
    token, logp, _ = sample_from(torch.from_numpy(row)[None], torch.tensor([number], dtype=torch.float64), temperature, top_p)
    reference = torch.log_softmax(torch.from_numpy(row) / temperature, -1)
    assert reference[token].exp() > 0
    assert logp.item() == pytest.approx(reference[token].item(), abs=1e-9)


@given(logit_rows, st.integers(0, 2**20))
def test_is_the_inverse_of_the_cumulative_distribution(row, ordinal):
    """cdf(token - 1) <= u < cdf(token), up to the rounding of the cumulative sum."""
    number = ordinal / 2**20
    token = draws(row.tolist(), np.array([number])).item()
    cdf = np.cumsum(torch.softmax(torch.from_numpy(row), -1).numpy())
    assert (cdf[token - 1] if token else 0.0) <= number + 1e-12 and number < cdf[token] + 1e-12
