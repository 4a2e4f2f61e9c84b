"""`tacit doctor RECIPE`: what it finds, what it refuses, and that its forecast of memory is right to a quarter."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tacit import checkup
from tacit.checkup import Finding, memory_of_machine, nearest, resident, size, verdict
from tacit.cli import app
from tacit.config import TinyConfig
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.forecast import MIB

RECIPE: dict[str, Any] = {
    "kind": "rl",
    "output": "runs/it",
    "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 3}},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
    "steps": 2,
    "sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": 4},
    "evaluation": {"prompts": 4},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)


def doctor(*overrides: str, **changes: Any) -> tuple[int, dict[str, str]]:
    """Exit code, and what was said of each thing."""
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    result = CliRunner().invoke(app, ["doctor", "recipe.yaml", *overrides])
    assert result.exit_code in (0, 2), (result.output, result.exception)
    return result.exit_code, dict(re.split(r": +", line, maxsplit=1) for line in result.stdout.splitlines())  # type: ignore[misc]


def test_a_recipe_that_runs() -> None:
    code, said = doctor()
    assert code == 0, said
    assert said["run"] == "kind: rl, 2 steps, into runs/it"
    assert said["task"] == "sorting: an endless stream of prompts, 4 held out to evaluate on"
    assert said["reward"] == "the task's own verifier; it gives the task's own solution 1"
    assert re.fullmatch(r"LlamaForCausalLM, 2,\d\d\d parameters in float32, all trained, built from scratch", said["model"])
    assert "the longest 4; a completion at most 4; the context holds 24" in said["tokens"]
    assert "MiB are free" in said["disk"] or "GiB are free" in said["disk"]
    assert said["memory, weights"].endswith("x 4 bytes")
    assert "while learning" in said["memory, activations"]
    assert re.match(r"[\d,]+ MiB  of [\d.,]+ .iB that are there", said["memory in all"])
    assert said["small step"].startswith("taken in")
    assert not Path("runs").exists()


def test_everything_that_is_wrong_is_told_at_once() -> None:
    code, said = doctor("sampling.max_new_tokens=400", "reward=nothing.py:score", "runtime.device=gpu")
    assert code == 2
    assert said["lengths"].startswith("WRONG: sampling.max_new_tokens (400) goes beyond the model's context of 24 tokens")
    assert said["reward"].startswith("WRONG: ") and "nothing.py" in said["reward"]
    assert said["device"].startswith("WRONG: device 'gpu'")
    assert "memory in all" not in said  # neither lengths nor device are known
    assert said["small step"] == "not tried, since something is wrong above"


def test_what_stands_on_a_task_that_is_wrong_is_left_out() -> None:
    code, said = doctor("task.name=sortin")
    assert code == 2
    assert "did you mean 'sorting'?" in said["task"]
    assert set(said) == {"run", "device", "task", "small step"}


def test_a_mistake_of_the_recipe_itself_is_one_sentence() -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    result = CliRunner().invoke(app, ["doctor", "recipe.yaml", "stepz=1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'steps'?" in result.stderr


def test_a_step_that_fails_is_told() -> None:
    code, said = doctor("algorithm.advantage=gropo")
    assert code == 2
    assert said["small step"].startswith("WRONG: unknown advantage 'gropo'")


@pytest.mark.parametrize(("model", "words"), [("nothing/here", "there is no such folder"), ("empty", "no causal LM could be loaded")])
def test_a_model_that_is_not_there(model: str, words: str) -> None:
    Path("empty").mkdir()
    code, said = doctor(model={"path": model})
    assert code == 2
    assert words in said["model"]
    assert doctor(model={}, init="never")[1]["model"].startswith("WRONG: init: never holds no finished run")


def test_a_model_of_a_folder_with_an_adapter() -> None:
    tokenizer = char_tokenizer("0123456789:")
    model = tiny_model(TinyConfig(hidden=16, layers=1, heads=2, mlp=32, context=24), tokenizer)
    model.save_pretrained("saved")
    tokenizer.save_pretrained("saved")
    code, said = doctor(model={"path": "saved", "lora": {"rank": 2}})
    assert code == 0, said
    trained = 2 * (4 * (16 + 16) + 3 * (16 + 32))  # four matrices of attention, three of the MLP
    assert f"{trained} trained, saved" in said["model"]
    assert said["memory, gradients"].endswith(f"while learning: {trained} x 4 bytes")
    assert "memory, weights of the native decoder" not in said


def test_supervised_training_needs_solutions() -> None:
    Path("open.jsonl").write_text("".join(json.dumps({"prompt": f"{i}:"}) + "\n" for i in range(40)))
    changes = {"kind": "sft", "sampling": None, "task": {"name": "open.jsonl"}, "max_new_tokens": 4, "evaluation": {"prompts": 1}}
    recipe = {key: value for key, value in (RECIPE | changes).items() if value is not None}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(app, ["doctor", "recipe.yaml"])
    assert result.exit_code == 2
    assert "kind: sft learns from solutions, and task 'open.jsonl' knows none" in result.stdout


def test_a_reward_that_cannot_judge_a_solution_is_wrong() -> None:
    Path("mine.py").write_text("def score(prompt, completion, answer):\n    raise RuntimeError('no server')\n")
    code, said = doctor("reward=mine.py:score")
    assert code == 2
    assert "no server" in said["reward"]


def test_a_folder_that_holds_a_run_is_told() -> None:
    Path("runs/it").mkdir(parents=True)
    Path("runs/it/config.yaml").write_text("")
    code, said = doctor()
    assert code == 0
    assert said["folder"].startswith("runs/it holds a run already")


def test_too_much_for_the_machine_is_wrong_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "memory_of_machine", lambda: 10 * MIB)
    code, said = doctor()
    assert code == 2
    assert said["memory in all"].startswith("WRONG: ") and "too much" in said["memory in all"]
    assert said["small step"] == "not tried, since something is wrong above"


def test_a_disk_that_is_too_small_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    code, said = doctor()
    assert code == 2
    assert said["disk"].startswith("WRONG: a checkpoint takes 0 MiB")


def test_near_the_limit_is_told_and_is_not_wrong() -> None:
    assert verdict("memory", 79, 100, 1).how.endswith("that are there")
    assert verdict("memory", 81, 100, 2).how.endswith("by 2 processes: tight, for a forecast may be off by a quarter")
    assert not verdict("memory", 100, 100, 1).wrong
    assert verdict("memory", 101, 100, 1).wrong


def test_small_helpers(tmp_path: Path) -> None:
    assert (size(3 * MIB), size(20 * 1024 * MIB)) == ("3 MiB", "20.0 GiB")
    assert nearest(Path("not/yet/there")).resolve() == tmp_path.resolve()
    assert MIB * 20 < resident() < memory_of_machine()
    assert Finding("a", "b").wrong is False


# --- the forecast beside real runs ---

RUN = (
    "import sys\nfrom pathlib import Path\nfrom tacit.cli import app\ntry:\n    app(sys.argv[1:])\n"
    "finally:\n    print('PEAK', int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)"
)
LARGE = {"tiny": {"hidden": 384, "layers": 3, "heads": 6, "mlp": 1024, "context": 64}}  # 5.3 million parameters; activations are what is large
MEASURED = {
    "sft": {"kind": "sft", "batch_size": 100, "max_new_tokens": 12, "micro_batch_tokens": 4096},
    "rl": {"sampling": {"prompts": 16, "group_size": 8, "max_new_tokens": 20}, "reward": "mine.py:score"},
    "lora": {"kind": "sft", "batch_size": 100, "max_new_tokens": 12, "micro_batch_tokens": 4096, "model": LARGE | {"lora": {"rank": 8}}},
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("name", ["sft", pytest.param("rl", marks=pytest.mark.slow), pytest.param("lora", marks=pytest.mark.slow)])
def test_the_forecast_is_right_to_a_quarter(name: str) -> None:
    write_texts()
    Path("mine.py").write_text("def score(prompt, completion, answer):\n    return float(len(completion) % 2)\n")  # half the rows have a say
    recipe = RECIPE | {"model": LARGE, "task": {"name": "texts.jsonl"}, "runtime": {"threads": 1}} | MEASURED[name]
    if recipe["kind"] == "sft":
        del recipe["sampling"]
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = started("doctor", "recipe.yaml")
    found = re.search(r"^memory in all: +([\d,]+) MiB", told, re.MULTILINE)
    assert found is not None, told
    peak = re.search(r"^PEAK (\d+)", started("train", "recipe.yaml"), re.MULTILINE)
    assert peak is not None
    forecast, measured = int(found[1].replace(",", "")), int(peak[1])
    assert measured > 700, "training must take more than the process"
    assert abs(forecast / measured - 1) <= 0.25, f"forecast {forecast} MiB, measured {measured} MiB"


def write_texts() -> None:
    """Texts over 90 characters: a model that has learnt nothing seldom draws the end, so that completions are as long as the forecast assumes."""
    letters, numbers = [chr(code) for code in range(33, 123)], random.Random(0)
    with open("texts.jsonl", "w") as file:
        for _ in range(600):
            text = "".join(numbers.choice(letters) for _ in range(numbers.randint(16, 20)))
            file.write(json.dumps({"prompt": text, "answer": text[::-1]}) + "\n")


def started(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
