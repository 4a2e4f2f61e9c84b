from __future__ import annotations

import subprocess

from tacit.core import environment
from tacit.core.runtime import Runtime


def test_says_what_a_number_depends_on():
    found = environment.environment(Runtime())
    assert found["threads"] == 1 and found["processes"] == 1 and found["device"]
    assert {"tacit", "python", "torch", "transformers", "numpy", "commit", "cores", "precision"} <= set(found)


def test_commit_of_a_checkout_and_of_none(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "module.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "module.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit() is None  # no checkout
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], cwd=tmp_path, check=True)
    assert environment.commit() is None  # not a file of this checkout
    subprocess.run([*git, "add", "module.py"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "two"], cwd=tmp_path, check=True)
    clean = environment.commit()
    (tmp_path / "module.py").write_text("changed")
    assert environment.commit() == f"{clean}+"


def test_a_machine_that_tells_nothing(monkeypatch):
    monkeypatch.setattr(environment.Path, "exists", lambda self: False)
    assert environment.processor()
