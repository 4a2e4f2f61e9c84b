from __future__ import annotations

import pytest

from tacit.core.rollouts import Prompt
from tacit.rewards.base import as_score, load_reward
from tacit.rewards.combine import gated, scorer, weighted
from tacit.rewards.verifiers import exact, multiple_choice, numeric


def brief(prompt, completion):
    return 1 - len(completion) / 10


def seen(prompt, completion, *, level, answer):
    return {"reward": float(level), "prompt": float(len(prompt)), "answer": float(len(answer))}


def unknown(prompt, completion):
    return None


def everything(prompt, completion, **columns):
    return float(sorted(columns) == ["answer", "level", "other"])


def test_a_verdict_becomes_a_scorer():
    score = scorer(numeric, absolute=0.5)
    assert score("?", "it is 3.5", 3) == 1 and score("?", "it is 4", "3") == 0
    assert score("?", "3") is None and scorer(multiple_choice)("?", "B", "x") is None


def test_a_weighted_sum_logs_every_part():
    score = weighted(right=(1.0, scorer(exact)), short=(0.5, brief))
    assert score("?", "abcd", answer="abcd") == {"right": 1, "short": 0.6, "reward": 1.3}
    assert score("?", "abcde", answer="abcd", level=3) == {"right": 0, "short": 0.5, "reward": 0.25}


def test_parts_get_the_columns_that_they_name():
    score = weighted(a=(1.0, seen), b=(2.0, everything))
    assert score("?", "x", "yes", level=3, other=4) == {"a.prompt": 1, "a.answer": 3, "a": 3, "b": 1, "reward": 5}


def test_a_gate_decides_alone_when_it_is_closed():
    score = gated(brief, scorer(exact), threshold=0.5)
    assert score("?", "abc", "abc") == {"gate": 0.7, "passed": 1, "reward": 1}
    assert score("?", "abc", "abd") == {"gate": 0.7, "passed": 0, "reward": 0}
    assert score("?", "abcdef", "abcdef") == {"gate": 0.4, "passed": 1, "reward": 0}
    assert gated(brief, unknown, threshold=0.5)("?", "abcdef") == {"gate": 0.4, "reward": 0}
    assert gated(brief, scorer(exact))("?", "", "")["reward"] == 1  # the threshold itself passes


def test_a_part_without_a_verdict_leaves_the_whole_unscored_with_its_name():
    for score in (weighted(right=(1.0, scorer(exact)), odd=(1.0, unknown)), gated(unknown, brief), gated(brief, unknown, threshold=0)):
        verdict = score("?", "a", "a")
        assert verdict["reward"] is None
        assert as_score(verdict).value is None and as_score(verdict).failure.startswith(("part 'odd'", "part 'gate'", "part 'passed'"))


def test_combinations_nest():
    score = gated(brief, weighted(right=(1.0, scorer(exact)), short=(0.5, brief)), threshold=0.1)
    assert score("?", "abcd", "abcd") == {"gate": 0.6, "passed.right": 1, "passed.short": 0.6, "passed": 1.3, "reward": 1.3}
    with pytest.raises(ValueError, match=r"weighted\(\) needs at least one part"):
        weighted()


def test_a_recipe_can_name_a_combination(tmp_path):
    (tmp_path / "graded.py").write_text(
        "from tacit.rewards.combine import scorer, weighted\n"
        "from tacit.rewards.verifiers import exact\n"
        "def hard(prompt, completion, level): return float(level > 1)\n"
        "score = weighted(right=(1.0, scorer(exact)), hard=(0.5, hard))\n"
    )

    class Task:
        def prompt_at(self, ordinal, seed):
            return Prompt("1", "?", "a", {"level": 2, "other": 3})

    reward = load_reward(f"{tmp_path / 'graded.py'}:score", Task())
    (score,) = reward([Task().prompt_at(0, 0)], ["a"])
    assert score.value == 1.5 and score.parts == {"right": 1, "hard": 1}


def test_a_part_that_is_async_is_refused():
    async def slow(prompt, completion):
        return 1.0

    with pytest.raises(ValueError, match="'slow' is async, and parts of a combined reward are called one after the other"):
        weighted(slow=(1.0, slow))
