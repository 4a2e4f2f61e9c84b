from __future__ import annotations

import numpy as np
import pytest
import torch

from tacit.config import TinyConfig
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Ragged, Role, RolloutBatch
from tacit.core.statistics import Interval, bootstrap, paired_bootstrap
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.generation.sampler import Sampler
from tacit.generation.transformers_decoder import TransformersDecoder
from tacit.rewards.base import Score, each
from tacit.rewards.evaluation import EXAMPLES, Evaluation, compare, evaluate

NAN = np.nan


class FixedSampler:
    """Completion `a` for sample 0, `aa` for sample 1, ...; those longer than two are cut off by the limit."""

    def __init__(self):
        self.calls: list[dict] = []

    def sample(self, prompts, group_size, **how) -> RolloutBatch:
        self.calls.append(how | {"group_size": group_size})
        texts = ["a" * (1 + i) for _ in prompts for i in range(group_size)]
        completions = Ragged.from_lists([[1] * len(t) for t in texts])
        repeated = [p for p in prompts for _ in range(group_size)]
        return RolloutBatch(
            repeated,
            Ragged.from_lists([[0]] * len(texts)),
            completions.offsets,
            texts=texts,
            rows={"group": torch.arange(len(texts)), "finished": torch.tensor([len(t) <= 2 for t in texts])},
            tokens={"token": completions.values, "behaviour_logp": torch.zeros(len(completions.values))},
        )


def evaluation(rewards: list[list[float]], ids: list[str] | None = None) -> Evaluation:
    return Evaluation(np.array(rewards), 1.0, 0.0, ids or [str(i) for i in range(len(rewards))])


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"{i}:", answer=i) for i in range(count)]


def test_rewards_by_prompt_and_sample():
    """The reward is the length over the answer; the prompt with answer 0 cannot be scored."""
    found = evaluate(FixedSampler(), prompts(3), each(lambda prompt, text: len(text) / prompt.answer), samples=3)
    np.testing.assert_array_equal(found.rewards, [[NAN, NAN, NAN], [1, 2, 3], [0.5, 1, 1.5]])
    np.testing.assert_array_equal(found.per_prompt, [NAN, 2, 1])
    assert (found.length, found.truncated, found.unscored, found.ids) == (2.0, pytest.approx(1 / 3), 3, ["p0", "p1", "p2"])
    assert found.interval() == bootstrap([2, 1])
    assert "ZeroDivisionError" in found.examples()[0]["failure"] and found.examples()[0]["reward"] is None


def test_how_it_samples():
    sampler = FixedSampler()
    evaluate(sampler, prompts(2), each(lambda prompt, text: 1.0), samples=3, temperature=0.7, seed=5)
    greedy = evaluate(sampler, prompts(2), each(lambda prompt, text: 1.0), samples=3, temperature=0.0)
    same = {"step": 0, "groups": range(2), "role": Role.PROBE}
    assert sampler.calls == [{"group_size": 3, "seed": 5, "temperature": 0.7} | same, {"group_size": 1, "seed": 0, "temperature": 0.0} | same]
    assert greedy.rewards.shape == (2, 1)  # greedy completions are all alike


def test_partly_scored_prompts_average_what_is_scored():
    found = evaluation([[1, NAN], [0, 1], [NAN, NAN]])
    np.testing.assert_array_equal(found.per_prompt, [1, 0.5, NAN])
    assert found.interval().mean == 0.75 and found.unscored == 3
    assert str(found).startswith("pass@1 0.750 [") and str(found).endswith("3 prompts × 2, 3 unscored")


def test_nothing_scored_is_nan_not_0():
    found = evaluation([[NAN], [NAN]])
    assert np.isnan(found.interval()).all() and np.isnan(found.metrics()["eval/pass@1"])
    assert np.isnan(compare(found, evaluation([[1], [1]]))).all()


def test_metrics():
    metrics = Evaluation(np.array([[1.0, 0], [1, NAN]]), 7.5, 0.25, ["a", "b"]).metrics()
    mean, low, high = bootstrap([0.5, 1])
    assert metrics == {
        "eval/pass@1": mean,
        "eval/pass@1_low": low,
        "eval/pass@1_high": high,
        "eval/length": 7.5,
        "eval/truncated": 0.25,
        "eval/unscored": 1.0,
    }


def test_examples_are_few_and_spread_over_the_prompts():
    found = evaluate(FixedSampler(), prompts(200), each(lambda prompt, text: {"reward": 1.0, "digits": prompt.answer}), samples=2)
    rows = found.examples()
    assert len(rows) == EXAMPLES and len({row["prompt"] for row in rows}) == EXAMPLES
    assert rows[0] == {"prompt": "0:", "completion": "a", "answer": 0, "reward": 1.0, "parts": {"digits": 0.0}, "failure": "", "finished": True}
    assert rows[-1]["answer"] > 150


def test_compare_is_paired_over_prompts_scored_in_both():
    before, after = evaluation([[0, 0], [0, 1], [1, NAN], [NAN, NAN]]), evaluation([[1, 0], [0, 1], [NAN, NAN], [1, 1]])
    assert compare(before, after) == paired_bootstrap([0.5, 0.5], [0, 0.5])
    assert compare(before, before) == Interval(0.0, 0.0, 0.0)


def test_compare_refuses_other_prompts():
    for other in (evaluation([[1], [1]]), evaluation([[1], [1], [1]], ["0", "1", "3"])):
        with pytest.raises(ValueError, match="only evaluations on the same prompts can be compared: these had 3 and"):
            compare(evaluation([[1], [1], [1]]), other)


def test_state_survives():
    found = evaluation([[1, NAN], [0, 1]])
    again = Evaluation.from_state_dict(found.state_dict())
    assert again.interval() == found.interval() and compare(found, again).mean == 0


def test_mistakes():
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate(FixedSampler(), [], each(lambda prompt, text: 1.0))
    with pytest.raises(ValueError, match="returned 1 scores for 4 completions"):
        evaluate(FixedSampler(), prompts(2), lambda asked, texts: [Score(1.0)], samples=2)


def test_with_a_real_sampler_equal_seeds_are_paired():
    """The same policy twice differs in nothing; another seed draws otherwise."""
    tokenizer = char_tokenizer("0123456789:")
    policy = Policy(tiny_model(TinyConfig(hidden=16, layers=1, heads=2, mlp=32, context=16), tokenizer), tokenizer)
    sampler = Sampler(TransformersDecoder(policy), policy, max_new_tokens=4)
    first, again, other = (evaluate(sampler, prompts(6), each(lambda p, text: len(text)), samples=4, seed=s) for s in (1, 1, 2))
    assert compare(first, again) == Interval(0.0, 0.0, 0.0)
    assert not np.array_equal(first.rewards, other.rewards)
    assert 1 <= first.length <= 4


def test_prompts_dealt_out_are_evaluated_as_in_one_place():
    tokenizer = char_tokenizer("0123456789:")
    policy = Policy(tiny_model(TinyConfig(hidden=16, layers=1, heads=2, mlp=32), tokenizer), tokenizer)
    sampler = Sampler(TransformersDecoder(policy), policy, max_new_tokens=6)
    asked, judge = prompts(7), each(lambda prompt, text: None if len(text) == 3 else len(text))
    whole = evaluate(sampler, asked, judge, samples=3, seed=1)
    for ranks in (1, 2, 3):
        parts = [evaluate(sampler, asked[r::ranks], judge, samples=3, seed=1, groups=range(r, 7, ranks)) for r in range(ranks)]
        found = Evaluation.dealt(parts)
        assert np.array_equal(found.rewards, whole.rewards, equal_nan=True) and found.ids == whole.ids
        assert (found.length, found.truncated) == pytest.approx((whole.length, whole.truncated))
        assert len(found.rows) == len(whole.rows) == 21
