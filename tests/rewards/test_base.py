"""User functions that wait or run in workers; test_reward_base.py has the contract of those that do neither."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from tacit.core.rollouts import Prompt
from tacit.rewards.base import InWorkers, Score, each, load_reward

PROMPTS = [Prompt("a", "1+1=", "2", {"level": 3}), Prompt("b", "2+2=", "4", {"level": 5})]


class Task:
    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return PROMPTS[0]

    def verify(self, prompt: Prompt, completion: str) -> float | None:
        return float(completion == prompt.answer)


def own(tmp_path, source: str):
    path = tmp_path / "mine.py"
    path.write_text(source)
    return load_reward(f"{path}:score", Task())


ASYNC = """
import asyncio
async def score(prompt, completion, answer):
    await asyncio.sleep(0.2)
    if completion == "raise":
        raise LookupError("gone")
    return completion == answer
"""


def test_coroutines_wait_together_and_fail_apart(tmp_path):
    reward = own(tmp_path, ASYNC)
    began = time.perf_counter()
    scores = reward(PROMPTS * 20, ["2", "raise"] * 20)
    assert scores == [Score(1.0), Score(None, failure="LookupError: gone")] * 20
    assert time.perf_counter() - began < 2  # one after the other, they would take 8 s


def test_coroutines_inside_a_running_loop(tmp_path):
    async def inside():
        return own(tmp_path, ASYNC)(PROMPTS, ["2", "2"])

    assert asyncio.run(inside()) == [Score(1.0), Score(0.0)]


def test_a_function_may_return_now_a_number_now_a_coroutine():
    async def later():
        return 0.5

    assert each(lambda prompt, completion: later() if completion else 1)(PROMPTS, ["x", ""]) == [Score(0.5), Score(1.0)]


ISOLATED = """
import os, time
from tacit.rewards.workers import isolated

@isolated(deadline=0.5, workers=2)
{kind} score(prompt, completion, answer, level, other=None):
    if completion == "hang":
        time.sleep(60)
    if completion == "exit":
        os._exit(1)
    if completion == "nothing":
        return None
    return {{"reward": completion == answer, "level": level}}
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_in_workers_the_contract_is_the_same_and_what_hangs_or_dies_is_unscored(tmp_path, kind):
    reward = own(tmp_path, ISOLATED.format(kind=kind))
    assert isinstance(reward, InWorkers)
    assert reward(PROMPTS * 2 + PROMPTS[:1], ["2", "hang", "exit", "4", "nothing"]) == [
        Score(1.0, {"level": 3.0}),
        Score(None, failure="timed out after 0.5 s"),
        Score(None, failure="the worker died (exit code 1)"),
        Score(1.0, {"level": 5.0}),
        Score(None, failure="the verifier could not judge this completion"),
    ]


def test_judging_goes_on_while_the_caller_does_something_else(tmp_path):
    reward = own(
        tmp_path, "import time\nfrom tacit.rewards.workers import isolated\n@isolated\ndef score(p, c):\n    time.sleep(0.3)\n    return 1\n"
    )
    assert isinstance(reward, InWorkers)
    reward(PROMPTS[:1], ["warm"])
    scores = reward.begin(PROMPTS[:1], ["x"])
    time.sleep(0.4)
    began = time.perf_counter()
    assert scores() == [Score(1.0)] and time.perf_counter() - began < 0.1


def test_what_an_isolated_function_asks_for_is_checked_as_ever(tmp_path):
    with pytest.raises(ValueError, match="asks for 'colour', and the task has answer, level"):
        own(tmp_path, "from tacit.rewards.workers import isolated\n@isolated\ndef score(p, c, colour): pass")


CLASS = """
from tacit.rewards.base import Score
class Length:
    def __init__(self, scale=1.0, sandbox="?"):
        self.scale, self.sandbox = scale, sandbox
    def __call__(self, prompts, completions):
        return [Score(self.scale * len(c)) for c in completions]
class Other:
    def __init__(self, scale): ...
class Mute: ...
"""


def test_a_class_judges_all_completions_at_once(tmp_path):
    path = tmp_path / "classes.py"
    path.write_text(CLASS)
    reward = load_reward(f"{path}:Length", Task(), sandbox="unsafe")
    assert reward(PROMPTS, ["a", "abc"]) == [Score(1.0), Score(3.0)] and reward.sandbox == "unsafe"  # pyright: ignore[reportAttributeAccessIssue]
    for name, told in (("Other", "is a class that needs 'scale'; give it a default"), ("Mute", "is a class whose objects cannot be called")):
        with pytest.raises(ValueError, match=told):
            load_reward(f"{path}:{name}", Task())


def test_a_task_may_name_its_reward(tmp_path):
    path = tmp_path / "named.py"
    path.write_text("def score(prompt, completion, answer): return 0.25")

    class Named(Task):
        reward = f"{path}:score"

    assert load_reward(None, Named())(PROMPTS[:1], ["2"]) == [Score(0.25)]
    assert load_reward(None, Task())(PROMPTS[:1], ["2"]) == [Score(1.0)]


def test_rewards_import_no_torch():
    code = "import tacit.rewards.base, tacit.rewards.workers, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], check=True)
