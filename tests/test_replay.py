"""A step that was written out can be learnt from again: the same numbers, or those of another loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tacit.cli import app
from tacit.config import load
from tacit.core.rundir import JsonLines
from tacit.replay import lines, replay

RECIPE = {
    "kind": "rl",
    "output": "run",
    "task": {"name": "reversal", "options": {"min_length": 2, "max_length": 2}},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
    "steps": 5,
    "sampling": {"prompts": 8, "group_size": 8, "max_new_tokens": 3},
    "algorithm": {"minibatch_rows": 16, "epochs": 2, "filter": {"drop_constant": True, "max_rounds": 2}},
    "optimiser": {"lr": 3e-3},
    "evaluation": {"prompts": 4},
    "dump": {"steps": [3], "every": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    (folder / "reward.py").write_text("def score(prompt, completion):\n    return len(set(completion)) / 3\n")
    recipe = RECIPE | {"output": str(folder / "run"), "reward": f"{folder / 'reward.py'}:score"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = CliRunner().invoke(app, ["train", str(folder / "recipe.yaml")])
    assert told.exit_code == 0, told.output
    assert "holds its rollouts and the state before it" in told.output
    return folder


def test_what_was_asked_for_is_written_out(folder):
    assert sorted(path.name for path in (folder / "run" / "dumps").iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("step", [3, 4])
def test_the_same_recipe_gives_the_same_numbers_to_the_last_bit(folder, step):
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    found = replay(load(folder / "recipe.yaml"), step)
    assert found.differing == [] and len(found.equal) > 15 and found.now["loss/policy"] == found.recorded["loss/policy"] != 0
    recorded = next(line for line in JsonLines(folder / "run" / "metrics.jsonl").records() if line["step"] == step)
    assert found.now["optimiser/grad_norm"] == recorded["optimiser/grad_norm"] > 0
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before  # nothing was written


def test_another_loss_on_the_same_rollouts(folder):
    found = replay(load(folder / "recipe.yaml", ["algorithm.loss=policy_gradient", "algorithm.epochs=1"]), 3)
    assert "loss/policy" in found.differing and "reward/mean" in found.equal and "length/mean" in found.equal
    assert any(line.startswith("  loss/policy: ") and ", recorded " in line for line in lines(found))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--replay-step", "2"], "has no dump of step 2: it has 3, 4"),
        (["--replay-step", "3", "output=elsewhere"], "elsewhere has no dump of step 3: it has none; set dump.steps or dump.every"),
        (["--replay-step", "3", "model.tiny.hidden=32"], "step 3 does not fit this recipe, which must have the same model, optimiser and components"),
    ],
)
def test_mistakes_are_told_in_one_sentence(folder, arguments, sentence):
    told = CliRunner().invoke(app, ["train", str(folder / "recipe.yaml"), *arguments])
    assert told.exit_code == 2 and sentence in told.stderr, told.stderr


def test_from_the_command_line(folder):
    told = CliRunner().invoke(app, ["train", str(folder / "recipe.yaml"), "--replay-step", "4"])
    assert told.exit_code == 0 and told.stdout.startswith("step 4 again: ") and "as recorded, to the last bit" in told.stdout
