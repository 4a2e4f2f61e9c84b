from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tacit
from tacit import job, processes
from tacit.config import load
from tacit.processes import CompanionError, companions

RECIPE = """
kind: rl
output: OUTPUT
task: {name: sorting, options: {min_length: 2, max_length: 3}}
model: {tiny: {hidden: 16, layers: 1, heads: 2, mlp: 32, context: 32}, dtype: float64}
steps: STEPS
sampling: {prompts: 4, group_size: 4, max_new_tokens: 4}
optimiser: {lr: 5.0e-3}
evaluation: {prompts: 8}
checkpoint: {every: 1}
"""


def tacit_train(folder: Path, *arguments: str, output: str = "run", steps: int = 3) -> subprocess.Popen[str]:
    recipe = folder / f"{output}.yaml"
    recipe.write_text(RECIPE.replace("OUTPUT", str(folder / output)).replace("STEPS", str(steps)))
    environment = os.environ | {"PYTHONPATH": str(Path(tacit.__file__).parents[1])}
    command = [sys.executable, "-m", "tacit", "train", str(recipe), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, out + errors
    return out, errors


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, "it ended, or never came so far"
        time.sleep(0.02)


def test_two_processes_train_as_one_does_and_with_one_voice(tmp_path):
    out, _ = finished(tacit_train(tmp_path, "runtime.processes=2", output="two"))
    assert out.count("Report: ") == 1
    recipe = tmp_path / "one.yaml"
    recipe.write_text((tmp_path / "two.yaml").read_text().replace(str(tmp_path / "two"), str(tmp_path / "one")))
    job.run(load(recipe))
    one, both = (load_file(next((tmp_path / name / "policy").glob("*.safetensors"))) for name in ("one", "two"))
    assert all(torch.allclose(one[name], both[name], rtol=0, atol=1e-9) for name in one)
    assert json.loads((tmp_path / "two" / "result.json").read_text())["environment"]["processes"] == 2


def test_a_mistake_is_told_once(tmp_path):
    process = tacit_train(tmp_path, "runtime.processes=2", "task={name: nowhere.jsonl}")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("there is no file nowhere.jsonl") == 1 and len(errors.strip().splitlines()) == 1, out + errors


@pytest.mark.slow
def test_stopped_in_the_middle_it_goes_on(tmp_path):
    two = tacit_train(tmp_path, "runtime.processes=2", steps=3000)
    steps = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: steps.exists() and len(steps.read_text().splitlines()) >= 3, two)
    two.send_signal(signal.SIGINT)  # to the first process alone: the other hears of it from it
    out, errors = two.communicate(timeout=60)
    assert two.returncode == 130, out + errors
    assert errors.count("Stopped. Continue with") == 1 and "runtime.processes=2 --resume" in errors
    done = len(steps.read_text().splitlines())
    out, _ = finished(tacit_train(tmp_path, "runtime.processes=2", "--resume", f"steps={done + 3}", steps=3000))
    assert f"resumed after step {done - 1}" in out and out.count("Report: ") == 1


@pytest.mark.slow
def test_when_another_process_dies_the_job_ends_with_an_error(tmp_path):
    process = tacit_train(tmp_path, "runtime.processes=2", steps=10_000)
    steps = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: steps.exists() and steps.stat().st_size > 0, process)
    [other] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[:1]
    os.kill(int(other), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors


def test_one_process_or_one_that_has_its_rank_starts_nobody(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    before = dict(os.environ)
    with companions(1, ["--version"]):
        assert dict(os.environ) == before
    monkeypatch.setenv("RANK", "0")
    with companions(4, ["--version"]):
        assert "MASTER_PORT" not in os.environ


def test_what_the_others_say_when_they_fail(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    seen: dict[str, str] = {}
    with (
        pytest.raises(CompanionError, match=r"(?s)process 2 of 3 failed with exit code 2; it said: .*no-such-command"),
        companions(3, ["no-such-command"]),
    ):
        seen |= os.environ
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"]) == ("0", "3", "3")
    assert "RANK" not in os.environ


def test_who_waits_for_one_that_has_failed_is_ended(tmp_path):
    """As in a rendezvous to which the other never comes."""
    code = "import time; from tacit import processes; processes.PATIENCE = 0.5\nwith processes.companions(2, ['no-such-command']): time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(Path(tacit.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == 1 and "process 2 of 2 failed with exit code 2" in done.stderr


def test_one_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: started.append(real(["sleep", "60"], **rest)) or started[-1])
    with pytest.raises(KeyboardInterrupt), companions(2, ["train"]):
        raise KeyboardInterrupt
    assert started[0].returncode == -signal.SIGKILL
