"""What TAB offers, asked as a shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tacit.completion
from tacit.completion import choices, fields, kind_of
from tacit.config import RLConfig, SFTConfig

SOURCE = str(Path(tacit.completion.__file__).parents[1])


def offered(line: str) -> list[str]:
    """What zsh is told for a command line."""
    environment = os.environ | {"PYTHONPATH": SOURCE, "_TACIT_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": line}
    environment["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    code = "import sys\nfrom tacit.cli import app\ntry:\n    app(prog_name='tacit')\nfinally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "AssertionError" not in done.stderr
    return done.stdout.split()


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sft.yaml").write_text("# mine\nkind: sft\noutput: out\n")


def test_keys_of_the_kind_of_the_recipe_and_values_where_they_are_few() -> None:
    assert {"model.path=", "model.dtype=", "model.lora.rank="} <= set(offered("tacit train sft.yaml mod"))
    assert offered("tacit train sft.yaml model.dtype=fl") == ["model.dtype=float32", "model.dtype=float64"]
    assert offered("tacit train sft.yaml samp") == []
    assert offered("tacit doctor none.yaml sampling.gr") == ["sampling.group_size="]  # not written yet: of any kind
    assert "grpo" in offered("tacit study g")


def test_sections_are_no_keys_and_lists_have_no_names_inside() -> None:
    found = dict(fields(RLConfig))
    assert "model" not in found and "components.name" not in found and "components" in found
    assert found["model.gradient_checkpointing"] == ("true", "false")
    assert "packing" in dict(fields(SFTConfig))
    assert list(choices(int)) == []


def test_the_kind_is_found_in_what_may_be_no_yaml() -> None:
    Path("half.yaml").write_text("kind: rl\nmodel: {")
    assert (kind_of("half.yaml"), kind_of("missing.yaml"), kind_of(None)) == ("rl", "", "")
