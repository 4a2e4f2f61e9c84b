"""What a step gained, by hand: batches, windows, probes, past pass rates, and the noise that is left."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.core.rollouts import Prompt
from tacit.rl.gain import Gain, PastRates, Round, round_of


def a_round(value: float, groups=(0.0, 1.0), keys=("a", "b"), probes=None) -> Round:
    return Round(value, 1.0, np.array(groups), list(keys), None if probes is None else np.array(probes))


def test_a_round_of_rollouts(lab):
    """Group 3: 1, 0 and one without a verdict. Group 5: 1. V is over rollouts: 2/3."""
    batch = lab.batch([([1], [2])] * 4, group=[3, 3, 3, 5], scored=[True, True, False, True], reward=[1.0, 0.0, 9.0, 1.0])
    found = round_of(batch, batch.reward, 0.7, None, PastRates("prompt"))
    assert found.value == pytest.approx(2 / 3) and found.groups.tolist() == [0.5, 1.0] and found.keys == ["0", "3"] and found.entropy == 0.7


def test_difference_of_two_rounds_and_its_noise():
    """Each group variance is 1/2, so each V has variance 1/4."""
    gain = Gain(1, PastRates())
    assert gain.compare(a_round(0.5)) is None
    gain.move_on(a_round(0.5))
    assert gain.compare(a_round(0.8)) == pytest.approx((0.5, 0.8, 0.5**0.5))
    gain.move_on(a_round(0.8))
    assert gain.compare(a_round(0.7))[:2] == pytest.approx((0.8, 0.7))


def test_a_window_is_averaged():
    gain = Gain(4, PastRates())
    for value in (0.2, 0.4):
        gain.move_on(a_round(value))
    assert gain.compare(a_round(0.5)) == pytest.approx((0.3, 0.5, (0.25 / 2 + 0.25) ** 0.5))


def test_probes_are_compared_one_by_one():
    """Of four probes one has no verdict now; differences 1, 0, 0: mean 1/3, std √(1/3), over √3."""
    gain = Gain(1, PastRates())
    gain.move_on(a_round(0.9, probes=[0.0, 1.0, 0.0, 1.0]))
    found = gain.compare(a_round(0.1, probes=[1.0, 1.0, 0.0, np.nan]))
    assert found == pytest.approx((1 / 3, 2 / 3, 1 / 3))


def test_past_rates_by_hand():
    rates = PastRates("difficulty")
    assert rates.key(Prompt("x", "", info={"difficulty": "3 digits"})) == "3 digits" and rates.key(Prompt("x", "")) == "x"
    assert PastRates("prompt").key(Prompt("x", "")) == "x" and PastRates().key(Prompt("x", "")) == ""
    assert rates.of(["a"]).tolist() == [0]
    rates.add(["a", "a", "b"], np.array([1.0, 1.0, 0.25]))
    assert rates.of(["a", "b", "new"]) == pytest.approx([(2 + 0.75) / 3, (0.25 + 0.75) / 2, 0.75])


def test_the_control_variate_takes_out_the_difficulty_of_the_prompts():
    """Easy prompts are solved always, hard ones never; rounds draw them in random parts. Nothing changes, and the label says so."""
    rng = np.random.default_rng(0)
    plain, controlled = Gain(1, PastRates()), Gain(1, PastRates("difficulty"))
    found = {"plain": [], "controlled": []}
    for _ in range(60):
        easy = rng.random(16) < 0.5
        now = a_round(float(easy.mean()), easy.astype(float), ["easy" if e else "hard" for e in easy])
        for name, gain in (("plain", plain), ("controlled", controlled)):
            if (compared := gain.compare(now)) is not None:
                found[name].append((compared[1] - compared[0], compared[2]))
            gain.move_on(now)
    plain_std, controlled_std = (np.std([gain for gain, _ in found[name]][20:]) for name in found)
    assert controlled_std < 0.1 * plain_std
    assert np.mean([noise for _, noise in found["plain"]]) == pytest.approx(plain_std, rel=0.25)
    assert np.mean([noise for _, noise in found["controlled"][20:]]) < 0.1 * plain_std


def test_the_past_rates_know_neither_of_the_two_rounds():
    gain = Gain(1, PastRates("prompt"))
    gain.move_on(a_round(0.5))
    assert gain.rates.held == {}
    gain.move_on(a_round(0.5))
    assert gain.rates.held == {"a": [0.0, 1.0], "b": [1.0, 1.0]}


def test_state():
    gain = Gain(2, PastRates("prompt"))
    for value in (0.1, 0.2, 0.4):
        gain.move_on(a_round(value, probes=[value, 1.0]))
    again = Gain(2, PastRates("prompt"))
    again.load_state_dict(gain.state_dict())
    assert again.compare(a_round(0.3)) == gain.compare(a_round(0.3)) and again.rates.held == gain.rates.held
    again.restart()
    assert again.compare(a_round(0.3)) is None
