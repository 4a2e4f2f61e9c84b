"""The user's own parts: loaded from a file or a module, and every way to go wrong is told in one sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tacit
from tacit.core.imports import is_own_part, load_object


@pytest.fixture
def part(tmp_path) -> Path:
    path = tmp_path / "my_reward.py"
    path.write_text(
        "from dataclasses import dataclass\n\ndef score(prompts, completions):\n    return 7\n\n@dataclass\nclass Task:\n    size: int = 3\n"
    )
    return path


def message(spec: str, kind: str = "reward") -> str:
    with pytest.raises(ValueError, match=f"^{kind} {re.escape(repr(spec))}: ") as caught:
        load_object(spec, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value).split(": ", 1)[1]


def test_what_is_an_own_part():
    assert is_own_part("reward.py:score") and is_own_part("package.module:Class") and not is_own_part("sorting")


def test_from_a_file(part, monkeypatch):
    assert load_object(f"{part}:score", "reward")([], []) == 7
    monkeypatch.chdir(part.parent)
    assert load_object("my_reward.py:Task", "task")(4).size == 4
    assert load_object("my_reward.py:Task", "task") is load_object(f"{part}:Task", "task"), "one file is one module, however it is spelt"


def test_two_files_of_one_name_are_two_modules(part, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/my_reward.py").write_text("def score(prompts, completions):\n    return 8\n")
    assert [load_object(f"{path}:score", "reward")([], []) for path in (part, tmp_path / "other/my_reward.py")] == [7, 8]


def test_a_file_has_the_same_module_name_in_every_process(part):
    """Ranks exchange objects by pickle, which names their module."""
    code = f"from tacit.core.imports import load_object; print(load_object({str(part)!r} + ':Task', 'task').__module__)"
    environment = {**os.environ, "PYTHONPATH": str(Path(tacit.__file__).parents[1]), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == load_object(f"{part}:Task", "task").__module__


def test_from_a_module(tmp_path, monkeypatch):
    assert load_object("collections.abc:Mapping", "component").__name__ == "Mapping"
    package = tmp_path / "my_package_for_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("raise OSError('no such thing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert message("my_package_for_tests.parts:x") == "module my_package_for_tests.parts could not be imported: OSError: no such thing"


def test_malformed_names():
    for spec in ("my_reward.py", ":score", "my_reward.py:", ":"):
        assert message(spec) == "write file.py:name or package.module:name"


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message("gone.py:score") == f"there is no file gone.py (looked in {tmp_path})"
    (tmp_path / "folder.py").mkdir()
    assert message("folder.py:score").startswith("there is no file folder.py")


def test_a_module_that_is_not_there():
    assert message("no_such_package.module:Class", "component") == (
        "module no_such_package.module could not be imported: ModuleNotFoundError: No module named 'no_such_package'"
    )


def test_a_name_that_is_not_there(part):
    assert message(f"{part}:scor") == f"{part} defines no 'scor'; did you mean 'score'?"
    assert message(f"{part}:entirely_else") == f"{part} defines no 'entirely_else'"
    assert message("collections.abc:Maping", "task") == "collections.abc defines no 'Maping'; did you mean 'Mapping'?"


def test_an_exception_while_a_file_is_imported(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1 / 0\n")
    assert message(f"{path}:x") == f"{path} could not be imported: ZeroDivisionError: division by zero"
    path.write_text("def x(:\n")
    assert message(f"{path}:x").startswith(f"{path} could not be imported: SyntaxError: ")
    path.write_text("x = 5\n")
    assert load_object(f"{path}:x", "reward") == 5, "once mended it loads"
