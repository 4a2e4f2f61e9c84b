"""kill -9 at random moments, resume, and end with the very weights of a run that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

# One life after another, forked from a process that has imported everything and computed nothing: each starts at once.
SERVER = """
import os, sys
import torch
torch.set_num_threads(1)
from tacit.config import load
from tacit.job import run
for line in sys.stdin:
    recipe, *overrides = line.split()
    child = os.fork()
    if child == 0:
        run(load(recipe, overrides), resume=True)
        os._exit(0)
    print("born", child, flush=True)
    print("dead", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

TINY = {"family": "qwen2", "hidden": 16, "layers": 2, "heads": 2, "mlp": 32, "context": 24}
PLAIN = {
    "kind": "rl",
    "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 4}},
    "model": {"tiny": TINY},
    "steps": 30,
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 6},
    "optimiser": {"lr": 1.0e-3, "warmup": 5, "schedule": "cosine"},
    "evaluation": {"prompts": 8},
    "checkpoint": {"every": 4},
}
# Redraws, gradient accumulation, several epochs and mini-batches, a reference, every stage that keeps state.
FULL = PLAIN | {
    "steps": 20,
    "algorithm": {
        "filter": {"drop_constant": True, "max_rounds": 3, "overlong_buffer": 2, "overlong_penalty": 0.5},
        "epochs": 2,
        "minibatch_rows": 8,
        "micro_batch_tokens": 40,
        "kl": {"coefficient": 0.01},
    },
}
PIPO = PLAIN | {
    "steps": 20,
    "components": [
        {"name": "pipo", "options": {"window": 3, "xi": "shuffled", "probes": 4}},
        {"name": "rollback", "options": {"probes": 4, "every": 2, "alpha": 0.99, "damping": 1.0, "most": 99}},
    ],
}
CBS = PLAIN | {
    "steps": 20,
    "components": [
        {"name": "cbs", "options": {"mode": "global", "rounds": 3, "warmup": 3, "probes": 4, "control": "difficulty", "window": 2}},
        {"name": "pipo", "options": {"window": 3}},
    ],
}
PPO = PLAIN | {"steps": 20, "algorithm": {"advantage": "gae"}, "components": [{"name": "pipo", "options": {"window": 3}}]}
# An untrained model never sorts: what it is paid for must be something that it does now and then, or no weight would move.
REWARD = "def score(prompt, completion, answer):\n    return float(sum(map(ord, completion)) % 2)\n"
SFT = PLAIN | {"kind": "sft", "batch_size": 8, "max_new_tokens": 6, "micro_batch_tokens": 40, "steps": 40}
del SFT["sampling"]


class Server:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.ask, self.answer = self.process.stdin, self.process.stdout
        self.seconds = 0.0

    def run(self, recipe: Path, output: Path, die_after: float | None = None) -> int:
        """Exit code of one life, -9 when it was killed; `seconds` is how long it took."""
        print(recipe, f"output={output}", file=self.ask, flush=True)
        child = int(self.answer.readline().split()[1])
        born = time.perf_counter()
        if die_after is not None:
            time.sleep(die_after)
            subprocess.run(["kill", "-9", str(child)], check=False)
        code = int(self.answer.readline().split()[1])
        self.seconds = time.perf_counter() - born
        return code

    def close(self) -> None:
        self.ask.close()
        self.process.wait()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("content", "kills"),
    [
        pytest.param(FULL, 3, id="dapo-accumulation"),
        pytest.param(PIPO, 2, id="pipo-rollback"),
        pytest.param(CBS, 2, id="cbs-pipo"),
        pytest.param(PPO, 2, id="ppo-pipo"),
        pytest.param(SFT, 2, id="sft"),
        pytest.param(FULL, 20, id="dapo-accumulation-20", marks=pytest.mark.slow),
        pytest.param(PLAIN, 20, id="grpo-20", marks=pytest.mark.slow),
    ],
)
def test_weights_are_those_of_an_uninterrupted_run(tmp_path, server, content, kills):
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "mine.py").write_text(REWARD)
    recipe.write_text(yaml.safe_dump(content | {"output": "set below", "reward": f"{tmp_path / 'mine.py'}:score"}))
    assert server.run(recipe, tmp_path / "alone") == 0
    whole = server.seconds
    expected = load_file(tmp_path / "alone" / "policy" / "model.safetensors")
    norms = [json.loads(line).get("optimiser/grad_norm", 0.0) for line in (tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()]
    assert sum(norm > 0 for norm in norms) > content["steps"] // 2, "nothing was learnt, so equal weights say nothing"

    rng, killed, life = random.Random(0), 0, 0
    while killed < kills:
        folder = tmp_path / f"killed-{life}"
        life += 1
        while True:  # until this run lives to its end
            code = server.run(recipe, folder, die_after=rng.uniform(0.05, 0.7) * whole if killed < kills else None)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
        found = load_file(folder / "policy" / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        metrics = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"reward/mean"' in line or '"loss/train"' in line]
        assert len(metrics) == content["steps"]  # each step logged once, whatever was cut off
