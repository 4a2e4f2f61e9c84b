from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from tacit.core.rundir import JsonLines, RunDirectory, RunDirectoryError, write_atomic


def started_run(path):
    """A run interrupted after step 4, checkpointed at step 3."""
    with RunDirectory(path) as run:
        run.write_config({"kind": "rl", "steps": 9})
        for step in range(5):
            run.metrics.append(step, {"reward": step / 2})
            run.samples.append(step, {"text": "a"})
            if step == 3:
                run.checkpoints.save(step, {"step": step})
    return path


def test_a_new_run(tmp_path):
    with RunDirectory(tmp_path / "runs" / "x") as run:
        run.write_config({"kind": "rl", "output": "runs/x", "nested": {"b": 1, "a": [1, 2]}})
        assert run.restore() is None
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == {"kind": "rl", "output": "runs/x", "nested": {"b": 1, "a": [1, 2]}}
    assert (run.path / "config.yaml").read_text().index("b:") < (run.path / "config.yaml").read_text().index("a:")


def failing(path, error, act):
    with RunDirectory(path) as run:
        run.write_config({})
        run.metrics.append(0, {"eval/loss": 1.0})
        run.checkpoints.save(0, {"step": 0})
        (run.path / "tensorboard").mkdir()
        act(run)
        raise error


def fails_in(path, error, act=lambda run: None):
    with pytest.raises(type(error)):
        failing(path, error, act)


def test_a_run_that_fails_before_its_first_step_leaves_nothing_that_it_made(tmp_path):
    (tmp_path / "there").mkdir()
    fails_in(tmp_path / "there" / "runs" / "x", ValueError())
    assert list((tmp_path / "there").iterdir()) == []
    fails_in(tmp_path / "there", RuntimeError())  # a folder that was there stays
    assert list((tmp_path / "there").iterdir()) == []


def test_folders_that_hold_something_else_stay(tmp_path):
    fails_in(tmp_path / "runs" / "x", ValueError(), lambda run: (tmp_path / "runs" / "mine").mkdir())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "act",
    [
        lambda run: run.metrics.append(1, {}),
        lambda run: (run.path / "dumps").mkdir(),
        lambda run: (run.path / "items.jsonl").write_text("{}"),
    ],
    ids=["a step was learnt from", "a dump", "answers of an evaluation"],
)
def test_what_was_worth_its_time_is_kept(act, tmp_path):
    fails_in(tmp_path / "x", ValueError(), act)
    assert {"config.yaml", "metrics.jsonl", "checkpoints"} <= {path.name for path in (tmp_path / "x").iterdir()}


def test_an_interrupted_run_and_a_resumed_one_are_kept(tmp_path):
    fails_in(tmp_path / "x", KeyboardInterrupt())
    assert (tmp_path / "x" / "config.yaml").exists()
    with pytest.raises(ValueError, match="later"), RunDirectory(tmp_path / "x", resume=True):
        raise ValueError("later")
    assert (tmp_path / "x" / "config.yaml").exists()


# --- who may write ---


def test_two_in_one_folder(tmp_path):
    with RunDirectory(tmp_path / "x") as first:
        first.write_config({})
        expected = rf"{tmp_path}/x is in use by process {os.getpid()} \(started \d+-\d+-\d+ \d+:\d+:\d+\); choose another output or stop it"
        for resume in (False, True):
            with pytest.raises(RunDirectoryError, match=f"^{expected}$"):
                RunDirectory(tmp_path / "x", resume=resume)
    first.close()
    RunDirectory(tmp_path / "x", resume=True).close()


HOLDER = """
import os, sys, time
from tacit.core.rundir import RunDirectory
run = RunDirectory(sys.argv[1])
if os.fork():
    print("held", flush=True)
time.sleep(60)
"""


def test_kill_9_frees_the_folder_though_a_forked_worker_lives(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match=f"in use by process {holder.pid} "):
            RunDirectory(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        RunDirectory(tmp_path).close()
        os.killpg(holder.pid, signal.SIGKILL)  # the worker


def test_an_earlier_run_is_not_overwritten(tmp_path):
    started_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="already holds a run; continue it with --resume, or choose another output"):
        RunDirectory(tmp_path)
    RunDirectory(tmp_path, resume=True).close()  # the refusal left no lock behind


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunDirectoryError, match=r"holds no run of tacit \(it has thesis.tex\)"):
        RunDirectory(tmp_path, resume=resume)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_way(tmp_path, inside):
    (tmp_path / "x").write_text("")
    with pytest.raises(RunDirectoryError, match="a file is in the way"):
        RunDirectory(tmp_path / "x" / inside)


def test_other_failures_to_open_are_explained(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunDirectoryError, match="cannot be an output folder: No space left on device"):
        RunDirectory(tmp_path)
    monkeypatch.undo()
    RunDirectory(tmp_path).close()


# --- resuming ---


def test_resume_cuts_the_logs_back_to_the_checkpoint(tmp_path):
    started_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')
    with RunDirectory(tmp_path, resume=True) as run:
        assert run.restore() == (3, {"step": 3})
        assert [r["step"] for r in run.metrics.records()] == [r["step"] for r in run.samples.records()] == [0, 1, 2, 3]
        run.metrics.append(4, {"reward": 9.0})
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-2:] == [
        {"step": 3, "reward": 1.5},
        {"step": 4, "reward": 9.0},
    ]


def test_resume_before_the_first_checkpoint_starts_over(tmp_path):
    with RunDirectory(tmp_path) as run:
        run.write_config({})
        run.metrics.append(0, {})
    with RunDirectory(tmp_path, resume=True) as run:
        assert run.restore() is None and list(run.metrics.records()) == []


def test_resume_of_nothing_is_a_new_run(tmp_path):
    with RunDirectory(tmp_path / "x", resume=True) as run:
        assert run.restore() is None


def test_resume_does_not_start_over_when_every_checkpoint_is_damaged(tmp_path):
    started_run(tmp_path)
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_text("{")
    with RunDirectory(tmp_path, resume=True) as run:
        with pytest.raises(RunDirectoryError, match="none of its checkpoints is whole"):
            run.restore()
        assert len(list(run.metrics.records())) == 5


# --- what is written ---


def test_json_lines_hold_numbers_of_every_library_and_nulls_for_nan(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl")
    log.append(1, {"a": float("nan"), "b": np.float32(0.5), "c": torch.tensor(2), "d": [float("inf"), (np.arange(2), {1: "é\n"})]})
    text = (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert text == '{"step": 1, "a": null, "b": 0.5, "c": 2, "d": [null, [[0, 1], {"1": "é\\n"}]]}\n'
    assert list(log.records()) == [json.loads(text)]
    assert list(JsonLines(tmp_path / "none.jsonl").records()) == []


def test_lines_are_on_file_at_once(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl")
    for step in range(3):
        log.append(step, {})
        assert len((tmp_path / "m.jsonl").read_bytes().splitlines()) == step + 1


@pytest.mark.parametrize("torn", [b'{"step": 1', b"\x00\x00\x00\n", b"[1]\n", b'{"other": 1}\n', b"\xff\xfe\n"])
def test_torn_lines_are_left_out(tmp_path, torn):
    log = JsonLines(tmp_path / "m.jsonl")
    log.append(0, {"x": 1})
    with open(log.path, "ab") as file:
        file.write(torn)
    assert list(log.records()) == [{"step": 0, "x": 1}]
    log.cut(5)
    assert log.path.read_text() == '{"step": 0, "x": 1}\n'


def test_a_line_without_its_end_is_torn(tmp_path):
    """It reads well, but the next line would be written onto it."""
    log = JsonLines(tmp_path / "m.jsonl")
    log.path.write_text('{"step": 0}\n{"step": 1}')
    log.cut(1)
    log.append(1, {})
    assert log.path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_write_json_is_whole_or_not_at_all(tmp_path, monkeypatch):
    with RunDirectory(tmp_path) as run:
        assert json.loads(run.write_json("result.json", {"gain": float("nan"), "n": 3}).read_text()) == {"gain": None, "n": 3}

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunDirectoryError, match=r"result.json could not be written: No space left on device"):
            run.write_json("result.json", {"gain": 1})
        assert json.loads((tmp_path / "result.json").read_text()) == {"gain": None, "n": 3}
        with pytest.raises(RunDirectoryError, match=re.escape(str(tmp_path / "no" / "m.jsonl"))):
            JsonLines(tmp_path / "no" / "m.jsonl").append(0, {})


def test_atomic_write_never_shows_half(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, "old")
    child = os.fork()
    if child == 0:
        while True:
            write_atomic(path, "x" * 100_000)
    seen, end = set(), time.time() + 0.3
    while time.time() < end:
        seen.add(len(path.read_bytes()))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert seen <= {3, 100_000}
