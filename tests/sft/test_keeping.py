"""Runs of SFT: a fixed training set, early stopping with the best restored, and policies that are kept along the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tacit.config import KINDS
from tacit.core.policy import load_policy
from tacit.export import ExportError, export
from tacit.job import run
from tacit.learners import SFTLearner


def recipe(folder: Path, kind: str = "sft", **extra: Any) -> Any:
    data = {
        "output": str(folder),
        "task": {"name": "reversal"},
        "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 24, "context": 40}},
        "steps": 6,
        "batch_size": 4,
        "max_new_tokens": 8,
        "evaluation": {"prompts": 8, "every": 1, "samples": 2},
        "checkpoint": {"every": 1, "keep": 20},
        "optimiser": {"lr": 1e-2},
    }
    return KINDS[kind](**(data | extra))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}


def test_a_fixed_training_set_comes_round_again(tmp_path, monkeypatch):
    seen: list[str] = []
    encode = "tacit.sft.examples.CompletionLoss.encode"
    from tacit.sft.examples import CompletionLoss

    plain = CompletionLoss.encode
    monkeypatch.setattr(encode, lambda self, prompts: seen.extend(p.text for p in prompts) or plain(self, prompts))
    monkeypatch.setattr(SFTLearner, "heldout_metrics", lambda *a: {"eval/loss": 0.0})
    run(recipe(tmp_path / "run", examples=6, steps=3))
    assert len(seen) == 12 and len(set(seen)) == 6 and sorted(seen[:6]) == sorted(seen[6:]) and seen[:6] != seen[6:]


def test_policies_are_kept_and_each_is_an_ordinary_model(tmp_path):
    run(recipe(tmp_path / "run", keep="every", keep_every=2))
    kept = sorted(path.name for path in (tmp_path / "run" / "kept").iterdir())
    assert kept == ["step-00000002", "step-00000004", "step-00000006"]
    assert all(
        torch.equal(a, b) for a, b in zip(weights(tmp_path / "run/kept" / kept[-1]).values(), weights(tmp_path / "run/policy").values(), strict=True)
    )
    alone = run(recipe(tmp_path / "short", steps=2)).folder
    assert alone is not None
    assert all(torch.equal(weights(tmp_path / "run/kept" / kept[0])[name], tensor) for name, tensor in weights(alone / "policy").items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run/kept" / kept[1]).num_parameters() > 0
    second = run(recipe(tmp_path / "weak", "wmss", steps=2, init=str(tmp_path / "run"), weak=str(tmp_path / "run/kept" / kept[0]), examples=8))
    assert second.result["measured"]["weak_loss"] != second.result["measured"]["loss"]


def test_a_kept_policy_can_be_exported(tmp_path):
    run(recipe(tmp_path / "run", steps=4, keep="every", keep_every=2))
    folder = export(tmp_path / "run", step=2)
    assert folder == tmp_path / "run/export-2"
    assert all(torch.equal(weights(folder)[name], t) for name, t in weights(tmp_path / "run/kept/step-00000002").items())
    assert (
        "- step: 2, kept on the way" in (folder / "README.md").read_text() and "- step:" not in (export(tmp_path / "run") / "README.md").read_text()
    )
    with pytest.raises(ExportError, match="has not kept the policy of step 3; the steps that it kept: 2, 4"):
        export(tmp_path / "run", step=3)


@pytest.mark.parametrize("best_by", ["loss", "verifier"])
def test_training_ends_when_nothing_improves_and_the_best_is_what_remains(tmp_path, monkeypatch, best_by):
    course = {0: 0.9, 1: 0.5, 2: 0.6, 3: 0.7}  # of what is looked at, turned round for pass@1

    def measurements(self: SFTLearner, *_: Any) -> dict[str, float]:
        return {"eval/loss": course[self.index], "eval/pass@1": -course[self.index]}

    monkeypatch.setattr(SFTLearner, "heldout_metrics", measurements)
    found = run(recipe(tmp_path / "run", patience=2, best_by=best_by, keep="every", keep_every=1))
    assert (found.result["step"], found.result["steps"]) == (1, 3)
    assert all(torch.equal(weights(tmp_path / "run/kept/step-00000001")[name], t) for name, t in weights(tmp_path / "run/policy").items())


def test_the_best_is_restored_at_the_end_and_after_a_resume(tmp_path):
    options: dict[str, Any] = {"keep": "best", "optimiser": {"lr": 0.3}, "steps": 5}
    found = run(recipe(tmp_path / "alone", **options))
    course = losses(tmp_path / "alone")
    assert found.result["measured"]["loss"] == min(course.values()) < losses(tmp_path / "alone").get(4, 1e9)
    again = recipe(tmp_path / "cut", **options)

    class Cut(Exception):
        pass

    def stop(self: Any, *_: Any) -> None:
        if self.index == 4:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        plain = SFTLearner.step
        patch.setattr(SFTLearner, "step", lambda self, dump=None: stop(self) or plain(self, dump))
        with pytest.raises(Cut):
            run(again)
    resumed = run(again, resume=True)
    assert resumed.result["step"] == found.result["step"]
    assert all(torch.equal(weights(tmp_path / "cut/policy")[name], t) for name, t in weights(tmp_path / "alone/policy").items())


def test_what_is_measured_goes_to_the_result(tmp_path):
    result = json.loads((run(recipe(tmp_path / "run", steps=1)).folder / "result.json").read_text())  # pyright: ignore[reportOptionalOperand]
    assert {"loss", "pass@1", "pass@2", "ece", "logits/gap"} < set(result["measured"])
    assert any(name.startswith("pass@1/") and name.endswith("_letters") for name in result["measured"])
    policy = load_policy(recipe(tmp_path / "x").model, folder=tmp_path / "run/policy")
    assert policy.context == 40


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": "every"}, "keep: every and keep_every go together"),
        ({"keep_every": 3}, "keep: every and keep_every go together"),
        ({"patience": 2, "evaluation": {"prompts": 2}}, "set evaluation.every"),
        ({"keep": "best", "evaluation": {"prompts": 2}}, "set evaluation.every"),
    ],
)
def test_policies_of_keeping_that_make_no_sense_are_refused(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        recipe(tmp_path, **options)
