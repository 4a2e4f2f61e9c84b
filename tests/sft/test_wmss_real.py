"""The recipe for Qwen3-4B-Base with a small model of its architecture in its place, and real text: GSM8K solutions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tacit.config import KINDS, TinyConfig, load
from tacit.core.progress import SilentReporter
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.job import run

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ.get("TACIT_DATA") or "data").resolve()


class Told(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_the_recipe_for_qwen3_takes_a_step_with_a_small_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n} + {n}?", "answer": f"<think>Twice {n}.</think> {2 * n}"} for n in range(20)]
    Path("math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = char_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    for name, seed in {"runs/sft-qwen3-4b/policy": 0, "base": 1}.items():
        model = tiny_model(TinyConfig(family="qwen3", hidden=16, layers=1, heads=2, kv_heads=1, mlp=32, context=8192), tokenizer, seed=seed)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    told = Told()
    config = load(RECIPES / "wmss_qwen3_4b.yaml", ["weak=base", "runtime.device=cpu"])
    metrics = run(config, dry_run=True, reporter=told).result["metrics"]
    assert "Qwen3ForCausalLM" in told.lines[0] and any("a step takes about 2.0 times as long" in line for line in told.lines)
    assert metrics["loss/train"] > 0 and metrics["optimiser/grad_norm_weak"] > 0 and 0 < metrics["wmss/c"] <= 1
    assert not Path("runs/wmss-qwen3-4b").exists()


def test_gsm8k_solutions_go_through_sft_and_wmss(tmp_path, monkeypatch):
    if not (DATA / "gsm8k").is_dir():
        pytest.skip(f"needs the real data set gsm8k: there is no {DATA / 'gsm8k'}; set TACIT_DATA to the folder that holds gsm8k/")
    monkeypatch.setenv("TACIT_DATA", str(DATA))
    shared: dict[str, Any] = {
        "task": {"name": "gsm8k"},
        "batch_size": 4,
        "examples": 8,
        "max_new_tokens": 8,
        "evaluation": {"prompts": 4, "temperature": 0},
        "optimiser": {"lr": 3e-3},
    }
    tiny = {"tiny": {"family": "qwen3", "hidden": 32, "layers": 1, "heads": 2, "mlp": 64, "context": 4096}}
    first = run(KINDS["sft"].model_validate(shared | {"output": str(tmp_path / "sft"), "model": tiny, "steps": 12, "keep": "every", "keep_every": 3}))
    weak = tmp_path / "sft/kept/step-00000003"
    second = run(
        KINDS["wmss"].model_validate(shared | {"output": str(tmp_path / "wmss"), "init": str(tmp_path / "sft"), "weak": str(weak), "steps": 4})
    )
    before, after = first.result["measured"], second.result["measured"]
    assert after["loss"] < before["loss"] < 5 and after["weak_loss"] > 0 and after["logits/gap"] > 0
