"""The job with answerers and tasks that are stand-ins."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tacit.config import EvalConfig
from tacit.core.rollouts import Prompt
from tacit.core.runtime import Runtime
from tacit.evaluation.items import Answer
from tacit.evaluation.run import available, heldout, run


class Doubles:
    """Completion right when it is the number of the prompt, doubled."""

    name, alphabet = "doubles", "0123456789"

    def __init__(self, size: int = 6):
        self.size = size

    def prompt_at(self, ordinal, seed):
        return Prompt(f"train/{ordinal}", str(ordinal), str(2 * ordinal))

    def heldout(self, count):
        if count > self.size:
            raise ValueError("too many")
        return [Prompt(f"d{i}", str(i), str(2 * i), {"difficulty": f"level {i % 2}"}) for i in range(count)]

    def solve(self, prompt):
        return None

    def verify(self, prompt, completion):
        return None if completion == "?" else float(completion == prompt.answer)

    def baselines(self):
        return {}


class Twins(Doubles):
    def heldout(self, count):
        return [Prompt("same", "1", "2")] * min(count, 2)


class Answerer:
    """Right for even prompts; 3 gets no answer, 5 no verdict. Stops after `limit` items, by Ctrl-C."""

    def __init__(self, limit: int | None = None):
        self.asked: list[tuple] = []
        self.limit = limit

    def answer(self, items, take, stop):
        for item in items:
            if stop.is_set():
                return
            self.asked.append(item.key)
            number = int(item.prompt.text)
            known = {3: Answer(error="status 500"), 5: Answer("?")}
            take([(item, known.get(number, Answer(str(2 * number) if number % 2 == 0 else "1", tokens=1)))])
            if len(self.asked) == self.limit:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(**changes) -> EvalConfig:
    return EvalConfig(**({"policy": "p", "tasks": [{"name": f"{__file__}:Doubles"}], "samples": 2, "k": [1, 2]} | changes))


def evaluate(answerer, settings: EvalConfig | None = None, **how):
    return run(settings or config(), answerer, "out", runtime=Runtime(device="cpu"), **how)


def test_result_and_files():
    result = evaluate(Answerer())
    [task] = result["tasks"].values()
    assert (task["problems"], task["failed"], task["unscored"]) == (6, 2, 2)
    assert task["metrics"]["pass@1"] == pytest.approx({"mean": 0.75, "low": 0.3006, "high": 0.9544, "problems": 4}, abs=1e-4)  # Wilson, 3 of 4
    assert task["by_difficulty"]["level 0"]["pass@2"]["mean"] == 1.0
    assert [f["why"] for f in result["failures"]] == ["status 500"] * 2 + ["the verifier could not judge this completion"] * 2
    assert json.loads(Path("out/result.json").read_text())["tasks"].keys() == result["tasks"].keys()
    assert len(Path("out/items.jsonl").read_text().splitlines()) == 12


def test_interrupted_and_resumed_it_asks_for_no_item_twice():
    undisturbed = evaluate(whole := Answerer())
    Path("out").rename("first")
    first, second = Answerer(limit=5), Answerer()
    with pytest.raises(KeyboardInterrupt):
        evaluate(first)
    assert not Path("out/result.json").exists()
    with pytest.raises(ValueError, match="continue it with --resume"):
        evaluate(Answerer())
    resumed = evaluate(second, resume=True)
    assert first.asked + second.asked == whole.asked
    assert resumed == undisturbed
    evaluate(third := Answerer(), resume=True)
    assert third.asked == []


def test_interrupted_with_the_last_item_it_is_done():
    assert evaluate(Answerer(limit=12))["tasks"]


def test_failed_items_are_asked_again_only_when_told_so():
    evaluate(Answerer())
    evaluate(again := Answerer(), resume=True, retry_failed=True)
    assert [key[1] for key in again.asked] == ["d3", "d3"]


@pytest.mark.parametrize("change", [{"samples": 3}, {"seed": 1}, {"policy": "q"}, {"temperature": 0.5}])
def test_another_evaluation_is_not_mixed_up(change):
    evaluate(Answerer())
    with pytest.raises(ValueError, match=f"out holds another evaluation, with {next(iter(change))} .* choose another --output"):
        evaluate(Answerer(), config(**change), resume=True)


def test_a_training_run_is_no_evaluation():
    Path("out").mkdir()
    Path("out/config.yaml").write_text("kind: rl\n")
    with pytest.raises(ValueError, match="holds a run that is no evaluation"):
        evaluate(Answerer(), resume=True)


def test_an_evaluation_that_never_got_an_answer_may_begin_anew():
    class Nobody:
        def answer(self, items, take, stop):
            raise ValueError("cannot be reached")

    with pytest.raises(ValueError, match="cannot be reached"):
        evaluate(Nobody())
    assert evaluate(Answerer(), config(samples=4))["tasks"]


def test_no_answer_at_all_is_an_error():
    class Mute:
        def answer(self, items, take, stop):
            take([(item, Answer(error="status 500: no")) for item in items])

    with pytest.raises(ValueError, match="none of the 12 items was answered; 12 times: status 500: no"):
        evaluate(Mute())


def test_a_reward_that_answers_for_too_few(monkeypatch):
    monkeypatch.setattr("tacit.evaluation.run.load_reward", lambda spec, task, sandbox: lambda prompts, completions: [])
    with pytest.raises(ValueError, match="returned 0 scores for 1 completions"):
        evaluate(Answerer())


def test_how_many_prompts():
    assert [available(Doubles(size), 512) for size in (1, 2, 3, 100, 511)] == [1, 2, 3, 100, 511]
    assert len(heldout(Doubles(700), "d", None)) == 512 and len(heldout(Doubles(7), "d", None)) == 7 and len(heldout(Doubles(7), "d", 3)) == 3
    with pytest.raises(ValueError, match="task 'd' has 7 held-out prompts, 8 were asked for: lower --prompts to 7"):
        heldout(Doubles(7), "d", 8)
    with pytest.raises(ValueError, match="two held-out prompts with the id 'same'"):
        heldout(Twins(), "d", 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": [4]}, "pass@4 needs 4 samples of each prompt, not 2: set --samples 4"),
        ({"k": [0]}, "--k 0 is no number of completions"),
        ({"temperature": 0.0}, "greedy completions are all alike"),
        ({"tasks": [{"name": "sorting"}, {"name": "sorting"}]}, "task 'sorting' is given twice"),
    ],
)
def test_what_cannot_be_measured(change, words):
    with pytest.raises(ValueError, match=words):
        config(**change)
    assert config(k=[]).ks == [1, 2] and config(k=[], samples=1).ks == [1]
