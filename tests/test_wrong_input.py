"""What a new user does wrong, each answered by one clear sentence on stderr, exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tacit.cli import app
from tacit.config import TinyConfig
from tacit.core import checkpoint
from tacit.core.rundir import RunDirectory
from tacit.core.tiny import char_tokenizer, tiny_model

RECIPE = {
    "kind": "rl",
    "output": "run",
    "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 3}},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
    "steps": 2,
    "sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": 4},
    "evaluation": {"prompts": 4},
    "checkpoint": {"every": 1},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)


def train(*arguments: str, **changes):
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    return CliRunner().invoke(app, ["train", "recipe.yaml", *arguments])


def sentence(result) -> str:
    """The one line a user sees; a traceback or a second line fails the test."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_unknown_key():
    assert "did you mean 'sampling.group_size'" in sentence(train("sampling.group_sise=4")).replace("'group_size'", "'sampling.group_size'")


def test_data_that_is_not_there(monkeypatch):
    monkeypatch.setenv("TACIT_DATA", "nowhere")
    told = sentence(train(task={"name": "gsm8k_steps"}))
    assert "gsm8k/train.jsonl.gz" in told and "TACIT_DATA" in told


def test_too_few_heldout_prompts_for_the_evaluation():
    write_records(5)
    assert "lower evaluation.prompts to 1" in sentence(train(task={"name": "small.jsonl"}))


def write_records(count: int, broken: int | None = None) -> None:
    lines = [f'{{"prompt": "{i}:", "answer": "{i}"}}' for i in range(count)]
    if broken is not None:
        lines[broken] = '{"prompt": "1:", "ans'
    Path("small.jsonl").write_text("\n".join(lines))


def test_empty_data_set():
    Path("empty.jsonl").write_text("")
    assert "empty.jsonl" in sentence(train(task={"name": "empty.jsonl"}))


def test_json_line_broken_in_the_middle():
    write_records(50, broken=20)
    told = sentence(train(task={"name": "small.jsonl"}))
    assert "small.jsonl" in told and "21" in told


def saved_model(folder: str, **special) -> None:
    tokenizer = char_tokenizer("0123456789:")
    model = tiny_model(TinyConfig(hidden=16, layers=1, heads=2, mlp=32, context=12), tokenizer)
    for name, value in special.items():
        setattr(tokenizer, name, value)
        setattr(model.generation_config, f"{name}_id", None)
        setattr(model.config, f"{name}_id", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_tokenizer_without_pad_works():
    saved_model("nopad", pad_token=None)
    assert train(model={"path": "nopad"}).exit_code == 0


def test_tokenizer_without_eos():
    saved_model("noeos", eos_token=None)
    assert "no EOS token" in sentence(train(model={"path": "noeos"}))


def test_prompt_longer_than_the_context():
    saved_model("short")
    task = {"name": "sorting", "options": {"min_length": 14, "max_length": 15}}
    told = sentence(train(model={"path": "short"}, task=task))
    assert "prompt 'sorting/" in told and "context holds 12" in told


def test_no_model_there():
    assert "no causal LM could be loaded from 'nothing/here'" in sentence(train(model={"path": "nothing/here"}))


def test_start_from_a_run_that_is_not_finished():
    assert "holds no finished run" in sentence(train(init="never"))


def test_tiny_model_of_another_alphabet():
    saved_model("digits")
    Path("words.jsonl").write_text("\n".join(f'{{"prompt": "word {i}", "answer": "w"}}' for i in range(50)))
    assert "built for another task: it knows only the characters" in sentence(train(model={"path": "digits"}, task={"name": "words.jsonl"}))


def test_reward_that_does_not_exist():
    assert "there is no file mine.py" in sentence(train(reward="mine.py:score"))


def test_component_that_does_not_exist():
    Path("mine.py").write_text("class Other: ...\n")
    assert "must derive from" in sentence(train(components=[{"name": "mine.py:Other"}]))


def test_reward_that_always_fails_is_loud_and_nothing_is_trained():
    Path("mine.py").write_text("def score(prompt, completion, answer):\n    raise RuntimeError('no server')\n")
    result = train(reward="mine.py:score")
    assert result.exit_code == 0
    assert "health/unscored is 1" in result.output
    assert "no server" in Path("run/samples.jsonl").read_text()


def test_output_that_holds_a_run():
    assert train().exit_code == 0
    assert "--resume" in sentence(train())


def test_two_runs_in_one_directory():
    with RunDirectory("run"):
        assert "in use by process" in sentence(train("--resume"))


def test_full_disk(monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write", full)
    assert "no space left" in sentence(train())


SLOW_REWARD = "import time\n\ndef score(prompt, completion, answer):\n    time.sleep(0.02)\n    return float(completion == answer)\n"


@pytest.mark.parametrize(
    ("steps", "wait_for"),
    [
        pytest.param(2000, "evaluation before", id="evaluation before"),
        pytest.param(2000, "training 1/", id="training"),
        pytest.param(3, "evaluation after", id="evaluation after"),
    ],
)
def test_ctrl_c_in_each_phase(steps, wait_for):
    Path("mine.py").write_text(SLOW_REWARD)
    recipe = RECIPE | {"reward": "mine.py:score", "steps": steps, "evaluation": {"prompts": 40, "samples": 4}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "tacit", "train", "recipe.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(wait_for):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip() == "Stopped. Continue with: tacit train recipe.yaml --resume"
    done = subprocess.run([*command, "--resume", "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if steps == 3:  # short enough to be finished
        finished = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert Path("run/result.json").exists()


# What is wrong, as a user writes it on the command line -> words of the sentence that lead to the fix.
MISTAKES = {
    "sampling.group_sise=4": "did you mean 'sampling.group_size'?",
    "algorithm.lr=0.1": "did you mean 'algorithm.critic.lr' or 'optimiser.lr'?",
    "steps": "write key=value",
    "steps=many": "'steps' must be a whole number",
    "steps=0": "'steps' must be at least 1",
    "optimiser.lr='1e-4 '": "'optimiser.lr' must be a number, not '1e-4 '",
    "optimiser.lr=-1": "'optimiser.lr' must be more than 0",
    "sampling.temperature=0": "'sampling.temperature' must be more than 0",
    "sampling.stop=abc": "'sampling.stop' must be a list",
    "sampling.stop=[a": "this is not valid YAML",
    "sampling.group_size=1": "set sampling.group_size to 2 or more",
    "algorithm.filter.overlong_buffer=5": "must be at most sampling.max_new_tokens (4)",
    "sampling.max_new_tokens=30": "set sampling.max_new_tokens to 20 or less, leave long prompts out, or raise model.tiny.context",
    "algorithm.aggregation=token_mean": "did you mean 'token-mean'?",
    "algorithm.advantage=gropo": "unknown advantage 'gropo': choose one of",
    "algorithm.loss=clipp": "unknown loss 'clipp': choose one of",
    "algorithm.advantage=mine.py:number": "is no function but of type int",
    "components=[{name: pipoo}]": "or file.py:Class, not 'pipoo'; did you mean 'pipo'?",
    "kind=ppo": "must be rl, sft, wmss or retrieval",
    "model.path=somewhere": "give either model.path or model.tiny, not both",
    "model.tiny=null": "name the policy: model.path, model.tiny or init",
    "model.tiny.heads=3": "must be an even multiple of heads (3)",
    "model.tiny.kv_heads=3": "must be a multiple of kv_heads (3)",
    "model.chat=true": "set model.chat: false",
    "model.lora={target: nothing}": "its linear ones are down_proj",
    "init=never": "holds no finished run",
    "task.name=sortin": "did you mean 'sorting'?",
    "task.options.max_lenght=4": "did you mean 'max_length'?",
    "task={name: missing.jsonl}": "missing.jsonl",
    "task={name: records.jsonl, columns: {prompt: question}}": "there is no column 'question', only prompt, answer",
    "task={name: records.jsonl, columns: {prmpt: prompt}}": "task.columns maps prompt, answer, id",
    "reward=mine.py:scor": "did you mean 'score'?",
    "reward=mine.py:score": "write it as score(prompt, completion, answer)",
    "runtime.device=gpu": "set runtime.device to auto or cpu",
    "runtime.trackers=[mlflow]": "must be trackio, tensorboard or wandb",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_answered_by_one_sentence_that_names_the_fix(override):
    Path("records.jsonl").write_text("\n".join(f'{{"prompt": "{i}:", "answer": "{i}"}}' for i in range(50)))
    Path("mine.py").write_text("number = 1\n\n\ndef score(prompt):\n    return 1.0\n")
    assert MISTAKES[override] in sentence(train(override))
    assert not Path("run").exists()


def test_a_mistake_that_shows_in_the_first_step_leaves_nothing_and_one_that_shows_later_leaves_the_run():
    Path("first.py").write_text("def loss(logp, *_, **__):\n    return logp.mean()\n")
    changes = {"algorithm": {"loss": "first.py:loss", "skip_silent": False, "advantage": "reinforce_pp"}, "reward": "mine.py:score"}
    Path("mine.py").write_text("def score(prompt, completion, answer):\n    return float(len(completion))\n")
    assert "must return a PolicyLoss" in sentence(train(**changes))
    assert not Path("run").exists()
    Path("late.py").write_text(
        "from tacit.rl.component import Component\n\n\nclass Late(Component):\n    def verify(self, step, agent):\n"
        "        if step.index == 1:\n            raise OSError(28, 'no space left')\n"
    )
    assert "no space left" in sentence(train(components=[{"name": "late.py:Late"}]))
    assert Path("run/checkpoints").exists()


def test_a_recipe_that_was_mended_runs_in_the_same_folder():
    assert "unknown advantage" in sentence(train("algorithm.advantage=gropo"))
    assert train().exit_code == 0


@pytest.mark.parametrize(("name", "package"), [("trackio", "trackio"), ("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed(name, package, monkeypatch):
    monkeypatch.setattr("tacit.core.trackers.PACKAGES", {name: (f"no_{package}_here",)})
    assert "pip install 'tacit[trackers]'" in sentence(train(f"runtime.trackers=[{name}]"))
