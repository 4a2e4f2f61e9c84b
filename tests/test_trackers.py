"""Trackers for real and offline: a run, and what they wrote read back. One that is not installed skips, with its name."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tacit.config import RLConfig
from tacit.job import run


def trained(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[int, dict[str, float]]:
    """Metrics of a short run into runs/it, by step, as its own log has them. Whatever reaches for another machine fails."""

    def refused(*_: Any, **__: Any) -> None:
        raise OSError("a tracker wants to leave the machine")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    recipe = {
        "output": "runs/it",
        "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 3}},
        "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
        "steps": 3,
        "sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": 4},
        "evaluation": {"prompts": 4},
        "runtime": {"trackers": [name], "device": "cpu"},
    }
    run(RLConfig.model_validate(recipe))
    found: dict[int, dict[str, float]] = {}
    for line in Path("runs/it/metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record.pop("step"), {}).update(record)
    assert sorted(found) == [0, 1, 2, 3]
    return found


def test_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    metrics = trained("tensorboard", monkeypatch, tmp_path)
    log = events.EventAccumulator("runs/it/tensorboard")
    log.Reload()
    names = {name for record in metrics.values() for name in record}
    assert names <= set(log.Tags()["scalars"])
    for name in names:
        written = {scalar.step: scalar.value for scalar in log.Scalars(name)}
        expected = {step: record[name] for step, record in metrics.items() if name in record and record[name] is not None}
        assert written.keys() >= expected.keys()
        assert {step: written[step] for step in expected} == pytest.approx(expected, rel=1e-6, nan_ok=True)
    parameters = "\n".join(path.read_text() for path in Path("runs/it/tensorboard").rglob("hparams.yml"))
    assert "sampling.group_size: 2" in parameters


def test_trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before it is imported: elsewhere it writes into the user's cache
    pytest.importorskip("trackio", reason="trackio is not installed: its pins and those of constraints.txt exclude each other")
    from trackio.sqlite_storage import SQLiteStorage

    metrics = trained("trackio", monkeypatch, tmp_path)
    written: dict[int, dict[str, Any]] = {}
    for record in SQLiteStorage.get_logs("tacit", "it"):  # the last step has two: what training said, and the evaluation after it
        written.setdefault(record["step"], {}).update(record)
    assert written.keys() == metrics.keys()
    for step, record in metrics.items():
        for name, value in record.items():
            assert written[step][name] == pytest.approx(value, nan_ok=True)
