"""What the second model costs: in training at most 2.1 times the memory of SFT, in generation nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
import yaml

from tacit.config import ModelConfig, TinyConfig
from tacit.core.policy import Policy, load_policy
from tacit.core.rollouts import Prompt, Role
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.generation.decoders import choose
from tacit.generation.sampler import Sampler

PEAK = """
import sys
import torch, transformers.models.llama.modeling_llama
torch.set_num_threads(1)
from tacit.config import load
from tacit.job import run
from tacit.core.policy import AutoModelForCausalLM
def memory(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) / 1024
before = memory("VmRSS")
run(load(sys.argv[1]))
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_peak_memory_is_at_most_2_1_times_that_of_sft(tmp_path):
    """30M parameters: weights, gradients and moments are 460 MiB, far above what a process has besides."""
    tokenizer = char_tokenizer("".join(chr(c) for c in range(97, 123)) + ":")
    shape = TinyConfig(hidden=512, layers=8, heads=8, mlp=1792, context=64)
    for name, seed in (("strong", 0), ("weak", 1)):
        model = tiny_model(shape, tokenizer, seed=seed)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    shared = {"task": {"name": "reversal"}, "model": {"path": str(tmp_path / "strong")}, "steps": 3, "batch_size": 16, "max_new_tokens": 4}
    shared |= {"evaluation": {"prompts": 4}, "checkpoint": {"every": 100, "keep": 1}, "optimiser": {"lr": 1e-4}, "examples": 16}
    peaks = {}
    for kind, extra in {"sft": {}, "wmss": {"weak": str(tmp_path / "weak")}}.items():
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump({"kind": kind, "output": str(tmp_path / f"run-{kind}"), **shared, **extra}))
        done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / f"{kind}.yaml")], capture_output=True, text=True, check=True)
        peaks[kind] = float(done.stdout.split()[-1])
    assert peaks["sft"] > 400 and peaks["wmss"] <= 2.1 * peaks["sft"], peaks


@pytest.mark.slow
def test_15_generation_is_as_fast_as_that_of_a_model_of_its_own(tmp_path):
    tokenizer = char_tokenizer("0123456789:")
    shape = TinyConfig(hidden=64, layers=2, heads=4, mlp=192, context=64)
    made = {name: Policy(tiny_model(shape, tokenizer, seed=0), tokenizer) for name in ("strong", "weak", "alone")}
    branches = torch.nn.ModuleDict({"strong": made["strong"].model, "weak": made["weak"].model})
    assert sum(p.numel() for p in branches.parameters()) == 2 * sum(p.numel() for p in made["alone"].model.parameters())
    made["strong"].save(tmp_path / "policy")
    extracted = load_policy(ModelConfig(), folder=Path(tmp_path / "policy"))
    samplers = [Sampler(choose(p, 1)[0], p, max_new_tokens=48) for p in (extracted, made["alone"])]
    prompts = [Prompt(str(i), f"{i}:") for i in range(32)]
    seconds: list[list[float]] = [[], []]
    for turn in range(12):
        for place, sampler in enumerate(samplers):
            begun = time.perf_counter()
            sampler.sample(prompts, 4, seed=0, step=turn, groups=range(32), temperature=1.0, role=Role.PROBE)
            seconds[place].append(time.perf_counter() - begun)
    assert sum(p.numel() for p in extracted.model.parameters()) == sum(p.numel() for p in made["alone"].model.parameters())
    assert 0.8 < median(a / b for a, b in zip(*seconds, strict=True)) < 1.25
