from __future__ import annotations

import builtins
import math

import numpy as np
import pytest
import torch

from tacit.core.rollouts import Prompt
from tacit.rewards.base import Score, as_score, each, load_reward

PROMPTS = [Prompt("a", "1+1=", "2", {"level": 3, "completion": "a column of that name"}), Prompt("b", "2+2=", "4", {"level": 5})]


class Task:
    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return PROMPTS[0]

    def verify(self, prompt: Prompt, completion: str) -> float | None:
        return float(completion == prompt.answer) if completion else None


def own(tmp_path, source: str):
    path = tmp_path / "mine.py"
    path.write_text(source)
    return load_reward(f"{path}:score", Task())


def scores(tmp_path, source: str, *completions: str) -> list[Score]:
    return own(tmp_path, source)(PROMPTS[: len(completions)], list(completions))


def test_the_tasks_verifier_is_the_default():
    found = load_reward(None, Task())(PROMPTS, ["2", ""])
    assert found == [Score(1.0), Score(None, failure="the verifier could not judge this completion")]


@pytest.mark.parametrize(
    ("verdict", "value"),
    [(1, 1), (0.25, 0.25), (-3, -3), (True, 1), (False, 0), (np.float32(0.5), 0.5), (np.array(2), 2), (torch.tensor(0.5), 0.5)],
)
def test_numbers(verdict, value):
    score = as_score(verdict)
    assert score == Score(value) and type(score.value) is float


def test_parts():
    assert as_score({"reward": 0.5, "format": True, "length": 12}) == Score(0.5, {"format": 1.0, "length": 12.0})
    assert as_score({"reward": 1}) == Score(1.0)


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (None, "could not judge"),
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        ("0.5", "returned a str, expected a number, a dict or None"),
        (b"1", "returned a bytes"),
        ([1.0], "returned a list"),
        (1j, "returned a complex"),
        ({}, "dict without 'reward', only nothing"),
        ({"format": 1}, "dict without 'reward', only format"),
        ({"reward": 1, "format": "good"}, "part 'format': the reward function returned a str"),
        ({"reward": math.nan}, "part 'reward': the reward function returned nan"),
    ],
)
def test_what_is_no_number_is_unscored_with_a_reason_and_never_0(verdict, told):
    score = as_score(verdict)
    assert score.value is None and told in score.failure and not score.parts


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('no server')", "RuntimeError: no server"),
        ("raise SystemError", "SystemError"),
        ("return 10 ** 400", "OverflowError"),
        ("import torch; return torch.zeros(2)", "only one element"),
        ("import numpy; return numpy.zeros(2)", "TypeError"),
    ],
)
def test_a_failure_leaves_that_completion_unscored_and_the_others_stand(tmp_path, body, told):
    source = f"def score(prompt, completion, answer):\n    if completion == 'bad':\n        {body}\n    return 1.0\n"
    bad, good = scores(tmp_path, source, "bad", "good")
    assert bad.value is None and told in bad.failure
    assert good == Score(1.0)


def test_ctrl_c_is_not_a_failed_reward():
    def judge(prompt, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each(judge)(PROMPTS[:1], ["x"])


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("prompt, completion", {}),
        ("prompt, completion, answer", {"answer": "2"}),
        ("question, text, answer=None, level=0", {"answer": "2", "level": 3}),
        ("prompt, completion, *, level", {"level": 3}),
        ("prompt, completion, /, answer", {"answer": "2"}),
        ("prompt, completion, other=7", {"other": 7}),
        ("prompt, completion, **info", {"info": {"answer": "2", "level": 3}}),
        ("q, c, level, **info", {"level": 3, "info": {"answer": "2", "completion": "a column of that name"}}),
    ],
)
def test_a_function_gets_what_it_names(tmp_path, monkeypatch, signature, expected):
    source = f"import builtins\n\ndef score({signature}):\n    builtins.given = list(locals().items())\n    return 1\n"
    monkeypatch.setattr(builtins, "given", [], raising=False)
    assert own(tmp_path, source)(PROMPTS[:1], ["2"]) == [Score(1.0)]
    assert [value for _, value in builtins.given[:2]] == ["1+1=", "2"]
    assert dict(builtins.given[2:]) == expected


def test_an_object_that_can_be_called(tmp_path):
    source = "class Judge:\n    def __call__(self, prompt, completion, answer):\n        return completion == answer\n\nscore = Judge()\n"
    assert scores(tmp_path, source, "2", "3") == [Score(1.0), Score(0.0)]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("score = 3", "is a int, expected a function score"),
        ("def score(completion): ...", r"takes 1 arguments; write it as score\(prompt, completion, answer\)"),
        ("def score(*, prompt, completion): ...", "takes 0 arguments"),
        ("def score(prompt, completion, solution): ...", "asks for 'solution', and the task has answer, completion, level: rename"),
        ("def score(prompt, completion, *, solution): ...", "asks for 'solution'"),
        ("score = type", "does not say what it takes"),
        ("def scores(prompt, completion): ...", "did you mean 'scores'"),
        ("import nothing_of_that_name", "could not be imported: ModuleNotFoundError"),
    ],
)
def test_mistakes_are_told_when_the_reward_is_loaded(tmp_path, source, told):
    with pytest.raises(ValueError, match=told) as caught:
        own(tmp_path, source)
    assert "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(ValueError, match=r"there is no file gone\.py"):
        load_reward("gone.py:score", Task())


def test_each_needs_a_completion_for_every_prompt():
    with pytest.raises(ValueError, match="shorter"):
        each(lambda prompt, completion: 1.0)(PROMPTS, ["one"])
