"""Jobs end to end: the recipes of the repository, what a run leaves behind, stopping and going on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tacit.config import TinyConfig, load
from tacit.core.progress import SilentReporter
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.job import run

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SMALL = ["steps=2", "evaluation.prompts=4", "evaluation.samples=2", "checkpoint.every=1"]
TINY = ["model.tiny.hidden=16", "model.tiny.layers=1", "model.tiny.heads=2", "model.tiny.mlp=32"]
GSM8K = [
    {"question": f"Ann has {a} pens and buys {b}. How many pens are there?", "answer": f"{a} and {b}: <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
    for a in range(2, 12)
    for b in range(2, 12)
]
CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    for name, rows in (("train", GSM8K), ("test", GSM8K[::4])):  # what is held out is not trained on
        (tmp_path / "data" / "gsm8k" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("TACIT_DATA", str(tmp_path / "data"))


class Recorder(SilentReporter):
    def __init__(self):
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)

    def step(self, index, metrics) -> None:
        self.on_step(index)

    def on_step(self, index: int) -> None: ...


@pytest.mark.parametrize("job", ["sorting", "gsm8k_steps"])
def test_the_demo_in_small(job):
    warm = run(load(RECIPES / "demo" / f"{job}_sft.yaml", [*SMALL, *TINY, "batch_size=4"]))
    rl = load(RECIPES / "demo" / f"{job}_grpo.yaml", [*SMALL, "sampling.prompts=2", "sampling.group_size=2"])
    result = run(rl).result
    assert warm.folder == Path("runs/demo-sft")
    losses = [m["eval/loss"] for m in map(json.loads, Path("runs/demo-sft/metrics.jsonl").read_text().splitlines()) if "eval/loss" in m]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert result["gain"]["low"] <= result["gain"]["mean"] <= result["gain"]["high"]
    assert result["before"] == warm.result["after"], "the second job starts from the policy of the first, judged with the same numbers"
    assert result["prompts"] == 4 and result["samples"] == 2 and len(result["examples"]) == 8
    assert set(result["baselines"]) == ({"lookup", "majority", "nearest"} if job == "gsm8k_steps" else set())
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl", "result.json"):
        assert (Path("runs/demo-grpo") / name).stat().st_size > 0
    steps = [json.loads(line)["step"] for line in Path("runs/demo-grpo/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 2]  # evaluation, two steps, evaluation
    AutoModelForCausalLM.from_pretrained("runs/demo-grpo/policy")
    AutoTokenizer.from_pretrained("runs/demo-grpo/policy")


def test_the_recipe_for_a_real_model_takes_a_step_with_a_tiny_one_of_its_architecture():
    tokenizer = char_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tokenizer.chat_template = CHAT
    model = tiny_model(TinyConfig(family="qwen2", hidden=16, layers=1, heads=2, kv_heads=1, mlp=32, context=1024), tokenizer)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    recorder = Recorder()
    outcome = run(load(RECIPES / "gsm8k_qwen2.5_0.5b_grpo.yaml", ["model.path=model", "runtime.device=cpu"]), dry_run=True, reporter=recorder)
    assert outcome.folder is None and not Path("runs").exists()
    assert "Qwen2ForCausalLM" in recorder.told[0]
    assert outcome.result["metrics"]["optimiser/steps"] == 1 and outcome.result["metrics"]["health/unscored"] == 0


def small_recipe(**changes) -> Path:
    content = {
        "kind": "rl",
        "output": "run",
        "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 3}},
        "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
        "steps": 6,
        "sampling": {"prompts": 2, "group_size": 4, "max_new_tokens": 4},
        "evaluation": {"prompts": 4, "every": 2},
        "checkpoint": {"every": 100},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(content | changes))
    return Path("recipe.yaml")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_goes_on_as_if_nothing_had_happened(number):
    recipe = small_recipe()
    expected = run(load(recipe, ["output=whole"])).result
    recorder = Recorder()
    recorder.on_step = lambda index: os.kill(os.getpid(), number) if index == 2 else None
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(load(recipe), reporter=recorder)
    assert signal.getsignal(number) == before
    assert any("stopping after this step" in text for text in recorder.told)

    recorder = Recorder()
    result = run(load(recipe), resume=True, reporter=recorder).result
    assert any(text.startswith("resumed after step 3 of 6") for text in recorder.told)
    for name in ("before", "after", "gain", "examples"):
        assert result[name] == expected[name]


def test_lora_on_a_run_trains_the_adapter_and_saves_a_whole_model():
    Path("mine.py").write_text("def score(prompt, completion, answer):\n    return len(set(completion))\n")
    run(load(small_recipe(steps=1, output="first")))
    changes = {"model": {"lora": {"rank": 2}}, "algorithm": {"kl": {"coefficient": 0.1}}, "reward": "mine.py:score"}
    run(load(small_recipe(steps=2, init="first", output="second", **changes)))
    first, second = (AutoModelForCausalLM.from_pretrained(f"{name}/policy").state_dict() for name in ("first", "second"))
    assert first.keys() == second.keys()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all("proj" in name for name in changed)
    assert Path("second/policy/adapter/adapter_model.safetensors").exists()


def test_greedy_evaluation():
    result = run(load(small_recipe(evaluation={"prompts": 4, "temperature": 0, "samples": 3}))).result
    assert result["temperature"] == 0
    assert result["samples"] == 1, "greedy completions are all alike"
