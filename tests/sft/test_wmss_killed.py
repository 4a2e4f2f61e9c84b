"""kill -9 in every phase of SFT and WMSS, resume, and end with the very weights of a run that was left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

# One life after another, forked from a process that has imported everything; each dies in the given call of a function, or of none.
SERVER = """
import functools, importlib, os, signal, sys
import torch
torch.set_num_threads(1)
from tacit.config import load
from tacit.job import run
for line in sys.stdin:
    recipe, output, where, count = line.split()
    child = os.fork()
    if child == 0:
        if where != "-":
            module, _, path = where.partition(":")
            owner = importlib.import_module(module)
            *classes, name = path.split(".")
            owner = functools.reduce(getattr, classes, owner)
            plain, calls = getattr(owner, name), []
            def dies(*args, **kwargs):
                calls.append(None)
                if len(calls) == int(count):
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(*args, **kwargs)
            setattr(owner, name, dies)
        run(load(recipe, [f"output={output}"]), resume=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
BASE: dict[str, Any] = {
    "output": "set below",
    "task": {"name": "reversal"},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 24, "context": 40}},
    "steps": 4,
    "batch_size": 4,
    "micro_batch_tokens": 24,
    "max_new_tokens": 4,
    "evaluation": {"prompts": 4, "every": 2},
    "checkpoint": {"every": 1},
    "optimiser": {"lr": 1.0e-2, "warmup": 2, "schedule": "linear"},
    "examples": 12,
    "keep": "best",
}
PHASES = [
    ("sft", "tacit.sft.examples:CompletionLoss.loss", 5),
    ("sft", "tacit.core.policy:Policy.save", 1),
    ("wmss", "tacit.learners:entropies", 2),  # between the two models of the first round
    ("wmss", "tacit.sft.wmss:JointLoss.loss", 3),
    ("wmss", "tacit.learners:entropies", 3),  # of the second round
    ("wmss", "tacit.core.checkpoint:_write_marker", 4),
    ("wmss", "tacit.learners:measured", 4),  # in an evaluation on the way
]


class Server:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, recipe: Path, output: Path, where: str = "-", count: int = 0) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(recipe, output, where, count, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """A server, the recipes, and the weights of undisturbed runs, by kind."""
    folder, server = tmp_path_factory.mktemp("lives"), Server()
    weak = {"kind": "sft", **BASE, "keep": "last", "steps": 1, "seed": 5}
    joint = {"kind": "wmss", **BASE, "weak": str(folder / "weak"), "rounds": 2, "shuffle": True, "neftune": 1.0}
    for name, content in {"weak": weak, "sft": {"kind": "sft", **BASE}, "wmss": joint}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        assert server.run(folder / f"{name}.yaml", folder / name) == 0
    yield server, folder
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait()


@pytest.mark.parametrize(("kind", "where", "count"), PHASES)
def test_weights_are_those_of_an_undisturbed_run(tmp_path, lives, kind, where, count):
    server, folder = lives
    assert server.run(folder / f"{kind}.yaml", tmp_path / "run", where, count) == -signal.SIGKILL
    assert server.run(folder / f"{kind}.yaml", tmp_path / "run") == 0
    expected, found = (load_file(f / "policy" / "model.safetensors") for f in (folder / kind, tmp_path / "run"))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
