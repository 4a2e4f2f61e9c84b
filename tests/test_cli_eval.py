"""`tacit eval`, `tacit sample` and `tacit doctor` on what is on this machine, as a user types them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tacit.cli import app
from tacit.config import TinyConfig
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.job import PROBE_SEED

RECIPE = {
    "kind": "rl",
    "output": "run",
    "task": {"name": "reversal", "options": {"min_length": 2, "max_length": 3}},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
    "steps": 2,
    "sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": 4},
    "evaluation": {"prompts": 30, "samples": 3},
    "checkpoint": {"every": 1},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)


def tacit(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def train(**changes) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    told = tacit("train", "recipe.yaml")
    assert told.exit_code == 0, told.output


def done(*arguments: str) -> str:
    told = tacit(*arguments)
    assert told.exit_code == 0, (told.output, told.exception)
    return " ".join(told.stdout.split())


def sentence(*arguments: str) -> str:
    """The one line on stderr."""
    told = tacit(*arguments)
    assert told.exit_code == 2, (told.exit_code, told.output, told.exception)
    assert len(told.stderr.strip().splitlines()) == 1, told.stderr
    return told.stderr.strip()


def result(folder: str) -> dict:
    return json.loads(Path(folder, "result.json").read_text())


def test_a_finished_run_is_measured_as_training_measured_it():
    train()
    told = done("eval", "run", "-n", "3", "--prompts", "30", "--seed", str(PROBE_SEED), "-o", "out")
    found = result("out")["tasks"]["reversal"]
    assert found["metrics"]["avg@3"]["mean"] == pytest.approx(result("run")["after"]["mean"], abs=1e-12)
    assert list(found["metrics"]) == ["avg@3", "pass@1", "pass@3", "maj@3"] and list(found["by_difficulty"]) == ["2 letters", "3 letters"]
    assert f"reversal avg@3 {found['metrics']['avg@3']['mean']:.3f} [" in told and "Report: out/report.html" in told
    assert len(Path("out/items.jsonl").read_text().splitlines()) == 90
    assert sentence("eval", "run", "-n", "3", "-o", "out").startswith("out holds another evaluation, with prompts 30 and not None")
    assert sentence("eval", "run", "-n", "3", "--prompts", "30", "--seed", str(PROBE_SEED), "-o", "out").startswith("out already holds a run")


def test_several_tasks_a_reward_of_ones_own_and_the_default_folder():
    train(task={"name": "sorting"}, model={"tiny": RECIPE["model"]["tiny"] | {"context": 64}})
    Path("mine.py").write_text("def score(prompt, completion, answer):\n    return len(completion) > 1\n")
    Path("digits.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}:", "answer": str(i)}) for i in range(40)))
    told = done(
        "eval", "run", "--task", "{name: sorting, options: {max_length: 6}}", "--task", "digits.jsonl", "--reward", "mine.py:score", "--prompts", "4"
    )
    assert "digits.jsonl avg@1" in told and "Report: runs/eval-run-sorting-digits.jsonl/report.html" in told
    assert result("runs/eval-run-sorting-digits.jsonl")["settings"]["reward"] == "mine.py:score"


def test_a_run_that_is_not_finished_is_measured_at_its_newest_checkpoint():
    for kind, more in (("rl", {}), ("sft", {"kind": "sft", "batch_size": 4, "max_new_tokens": 4})):
        recipe = {k: v for k, v in RECIPE.items() if k != "sampling"} if kind == "sft" else RECIPE
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe | more | {"output": kind}))
        assert tacit("train", "recipe.yaml").exit_code == 0
        finished = done("eval", kind, "--prompts", "10", "-n", "2", "-o", f"{kind}-finished")
        Path(kind, "policy").rename(f"{kind}-policy")
        told = done("eval", kind, "--prompts", "10", "-n", "2", "-o", f"{kind}-checkpoint")
        assert f"{kind} is not finished: its checkpoint of step 2 is evaluated" in told and "avg@2" in finished
        assert result(f"{kind}-checkpoint")["policy"] == f"{kind} at step 2"
        assert result(f"{kind}-checkpoint")["tasks"] == result(f"{kind}-finished")["tasks"]


def test_the_reward_hears_what_the_recipe_says_of_the_sandbox():
    Path("mine.py").write_text(
        "from tacit.rewards.base import Score\n"
        "class Told:\n"
        "    def __init__(self, sandbox):\n        self.value = float(sandbox == 'unsafe')\n"
        "    def __call__(self, prompts, completions):\n        return [Score(self.value) for _ in prompts]\n"
    )
    train(reward="mine.py:Told", sandbox="unsafe")
    assert result("run")["after"]["mean"] == 1.0
    assert "reversal avg@1 1.000" in done("eval", "run", "--prompts", "4", "-o", "as-in-training")
    assert "reversal avg@1 0.000" in done("eval", "run", "--prompts", "4", "--sandbox", "required", "-o", "required")


def saved_model() -> None:
    tokenizer = char_tokenizer("0123456789:abc")
    model = tiny_model(TinyConfig(hidden=16, layers=1, heads=2, mlp=32, context=32), tokenizer)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")


def test_a_model_folder_and_greedy():
    saved_model()
    told = done("eval", "model", "--task", "sorting", "--temperature", "0", "--prompts", "5", "--max-new-tokens", "3", "--stop", "a")
    assert "sorting avg@1" in told and "maj@" not in told
    assert (
        result("runs/eval-model-sorting")["settings"] | {"max_new_tokens": 3, "stop": ["a"], "chat": False}
        == result("runs/eval-model-sorting")["settings"]
    )


def test_the_report_of_an_evaluation_can_be_written_again():
    saved_model()
    told = done("eval", "model", "--task", "sorting", "--prompts", "5", "--max-new-tokens", "3", "-o", "out")
    page = Path("out/report.html").read_text()
    assert done("report", "out", "-o", "again.html").removesuffix("again.html") == told[told.index("task metric") :].removesuffix("out/report.html")
    assert Path("again.html").read_text() == page
    assert sentence("report", "out", "model") == "out holds an evaluation; ask for the report of each on its own"
    Path("out/result.json").unlink()
    assert "not finished; continue it with tacit eval" in sentence("report", "out")


def test_ctrl_c_leaves_what_can_be_continued(monkeypatch):
    saved_model()
    monkeypatch.setattr("tacit.evaluation.answerers.ROWS", 4)
    import tacit.evaluation.run as job

    take = job.Judge.take

    def interrupted(self, answers):
        take(self, answers)
        if self.done == 8:
            signal.raise_signal(signal.SIGINT)

    command = ["eval", "model", "--task", "sorting", "--prompts", "10", "-n", "2", "--max-new-tokens", "3"]
    done(*command, "-o", "whole")
    monkeypatch.setattr(job.Judge, "take", interrupted)
    told = tacit(*command, "-o", "a folder")
    assert told.exit_code == 130
    line = told.stderr.strip().splitlines()[-1]
    assert line == "Stopped. Continue with: tacit eval model --task sorting --samples 2 --prompts 10 --max-new-tokens 3 --output 'a folder' --resume"
    assert len(Path("a folder/items.jsonl").read_text().splitlines()) == 8
    monkeypatch.setattr(job.Judge, "take", take)
    assert "8 of 20 items are there already" in done(*command, "-o", "a folder", "--resume")
    assert Path("a folder/items.jsonl").read_text() == Path("whole/items.jsonl").read_text()


def test_ctrl_c_before_anything_was_written_leaves_nothing_to_resume(monkeypatch):
    def interrupted(asked):
        raise KeyboardInterrupt

    monkeypatch.setattr("tacit.evaluation.front.plan", interrupted)
    told = tacit("eval", "model", "--task", "sorting", "--no-chat")
    assert (told.exit_code, told.stderr) == (130, "Stopped. Continue with: tacit eval model --task sorting --no-chat\n")


def test_sample_prints_completions_with_log_probs():
    saved_model()
    command = ["sample", "model", "--prompt", "31:", "--prompt", "2:", "-n", "2", "--max-new-tokens", "4"]
    told = tacit(*command)
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert [line[:3] for line in lines[::2]] == ["31:", "31:", "2:" + lines[4][2], "2:" + lines[6][2]]
    assert all("[log-prob -" in line and "a token" in line for line in lines[1::2])
    rows = [json.loads(line) for line in tacit(*command, "--json").stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["31:", "31:", "2:", "2:"]
    for row, line in zip(rows, lines[1::2], strict=True):
        assert sum(row["token_logps"]) == pytest.approx(row["logp"]) and f"[log-prob {row['logp']:.3f}, {len(row['token_logps'])} tokens" in line
        assert row["finished"] is ("cut off" not in line)
    assert "another task" in sentence("sample", "model", "--prompt", "xyz")


def test_doctor(monkeypatch):
    Path("data/gsm8k").mkdir(parents=True)
    monkeypatch.setenv("TACIT_DATA", "data")
    monkeypatch.setattr("tacit.doctor.active_guards", lambda: [("network", True, ""), ("memory", False, "no cgroup")])
    lines = dict(line.split(": ", 1) for line in tacit("doctor").stdout.splitlines())
    found = {name: how.strip() for name, how in lines.items()}
    assert "native decoder" in found
    assert found["tacit"].startswith("0.") and "torch 2." in found["packages"] and "threads" in found["processor"]
    assert found["data sets"] == "gsm8k" and found["not there"].startswith("math500, svamp")
    assert (found["sandbox, network"], found["sandbox, memory"]) == ("active", "NOT active: no cgroup")


def test_mistakes():
    saved_model()
    Path("empty").mkdir()
    assert sentence("eval").startswith("name what to evaluate")
    assert sentence("eval", "model", "--endpoint", "http://localhost/v1").startswith("name what to evaluate")
    assert "Give its name with --model" in sentence("eval", "--endpoint", "http://localhost/v1", "--task", "sorting")
    assert sentence("eval", "model") == "on what? Give a --task, such as --task gsm8k or --task my.jsonl"
    assert sentence("eval", "model", "--task", "sortin").startswith("unknown task 'sortin': did you mean 'sorting'?")
    assert "write it like a section of a recipe" in sentence("eval", "model", "--task", "{name: [")
    assert sentence("eval", "empty", "--task", "sorting").startswith("empty holds no policy")
    assert sentence("sample", "empty", "--prompt", "1").startswith("empty holds no policy")
    assert "no causal LM could be loaded from 'not/there'" in sentence("eval", "not/there", "--task", "sorting")
    assert "pass@4 needs 4 samples" in sentence("eval", "model", "--task", "sorting", "-n", "2", "--k", "1,4")
    assert "--k '1;4': write numbers" in sentence("eval", "model", "--task", "sorting", "--k", "1;4")
    assert "greedy completions are all alike" in sentence("eval", "model", "--task", "sorting", "-n", "2", "--temperature", "0")
    assert "'samples' must be at least 1" in sentence("eval", "model", "--task", "sorting", "-n", "0")
    assert "'dtype' must be float32, bfloat16 or float64, not 'float23'" in sentence("eval", "model", "--task", "sorting", "--dtype", "float23")
    assert "'dtype' must be" in sentence("sample", "model", "--prompt", "1", "--dtype", "float23")
    assert "no chat template" in sentence("eval", "model", "--task", "sorting", "--chat")
    assert tacit("eval", "model", "--task", "sorting", "--resune").exit_code == 2
