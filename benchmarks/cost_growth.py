"""How the cost of tacit's RL step grows: with useful tokens, completion length, group size, prompt length, padding and vocabulary.

The 1.1M body of `vs_trl.py`, fp32, one process of one thread; median seconds of a step, or of its update, the points of a curve in turns. Every
vocabulary and batch is a process of its own, whose peak memory counts: `above_mb` is what two steps add to the process with its weights loaded,
gradients and moments included, beside `logits_mb`, the (batch, time, vocabulary) tensor that is never made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _work import LETTERS, SEED, SMALL
from _worker import place, resident
from tacit.config import OptimiserConfig, SamplingConfig, TinyConfig
from tacit.core.environment import commit
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Ragged, RolloutBatch
from tacit.core.runtime import Runtime
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.generation.decoders import decoder_for
from tacit.rewards.base import each
from tacit.rl.agent import Agent
from tacit.rl.trainer import Trainer
from tacit.rl.update import Update, run_update

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks" / "cost_growth.json"
MB = 2**20
ROUNDS = 5
Point = dict[str, int]
DEFAULT: Point = {"prompts": 4, "group": 8, "prompt": 16, "new": 64, "vocabulary": 2 + len(LETTERS)}
CURVES: dict[str, list[Point]] = {
    "useful tokens": [{"prompts": n} for n in (2, 4, 8, 12, 16, 24)],
    "completion length": [{"new": n} for n in (16, 32, 64, 128, 256)],
    "group size": [{"prompts": 64 // g, "group": g, "prompt": 64} for g in (2, 4, 8, 16, 32)],
    "prompt length": [{"prompt": n} for n in (16, 32, 64, 128, 256)],
}
VOCABULARIES = [{"vocabulary": v} for v in (2_000, 10_000, 50_000, 150_000)] + [{"vocabulary": 150_000, "prompts": n} for n in (2, 8, 16)]


class Stream:
    """Random letters."""

    def __init__(self, length: int):
        self.length = length

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        generator = torch.Generator().manual_seed(seed * 2**32 + ordinal)
        return Prompt(str(ordinal), "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (self.length,), generator=generator)))


def agent_of(point: Point) -> Agent:
    """Nothing ends a completion but its limit."""
    model = tiny_model(TinyConfig.model_validate(SMALL), point["vocabulary"], seed=SEED)
    policy = Policy(model, char_tokenizer(LETTERS))
    policy.stop_ids = frozenset()
    sampling = SamplingConfig(prompts=point["prompts"], group_size=point["group"], max_new_tokens=point["new"])
    return Agent(policy, optimiser=OptimiserConfig(lr=1e-6), sampling=sampling, decoder=decoder_for(policy, threads=1))


def trainer_of(point: Point) -> Trainer:
    calls = itertools.count()
    reward = each(lambda *_: next(calls) % 3)  # whatever was drawn: a group that agreed would not be computed
    return Trainer([agent_of(point)], Stream(point["prompt"]), reward, seed=SEED, runtime=Runtime(device="cpu"))


def curve(points: list[Point]) -> list[dict[str, Any]]:
    """Median seconds of step, rollout and update at each point."""
    trainers = [trainer_of(DEFAULT | point) for point in points]
    found: list[dict[str, list[float]]] = [{"seconds": [], "rollout": [], "update": []} for _ in points]
    for turn in range(1 + ROUNDS):
        for trainer, times in zip(trainers, found, strict=True):
            start = time.perf_counter()
            step = trainer.step()
            for name, value in {"seconds": time.perf_counter() - start, "rollout": step.times["sample"], "update": step.times["update"]}.items():
                times[name] += [value] if turn else []
    return [
        {
            **point,
            "useful_tokens": (p := DEFAULT | point)["prompts"] * p["group"] * p["new"],
            **{k: round(statistics.median(v), 4) for k, v in times.items()},
        }
        for point, times in zip(points, found, strict=True)
    ]


def padding() -> list[dict[str, Any]]:
    """Seconds of an update of 64 completions of 32 tokens in the mean, more and more unlike: what padding to the longest would multiply."""
    agent, runtime = agent_of(DEFAULT | {"prompts": 8}), Runtime(device="cpu")
    batches = {longest: batch_of(lengths) for longest, lengths in unlike(rows=64, mean=32)}
    times: dict[int, list[float]] = {longest: [] for longest in batches}
    for turn in range(1 + 2 * ROUNDS):
        for longest, batch in batches.items():
            advantages = torch.linspace(-1, 1, len(batch)).repeat_interleave(batch.lengths)
            start = time.perf_counter()
            run_update(agent, Update(batch, advantages, agent.loss), 0, runtime, (SEED,))
            times[longest] += [time.perf_counter() - start] if turn else []
    middle = {longest: statistics.median(t) for longest, t in times.items()}
    return [
        {
            "longest": longest,
            "useful_tokens": 64 * 32,
            "padded_tokens": 64 * longest,
            "update": round(seconds, 4),
            "over_equal": round(seconds / middle[32], 3),
        }
        for longest, seconds in middle.items()
    ]


def unlike(rows: int, mean: int) -> list[tuple[int, Tensor]]:
    """Lengths with one sum: alike, spread evenly, and mostly short with an eighth of the rows long."""
    alike, even = torch.full((rows,), mean), torch.arange(rows) % (2 * mean - 1) + 1
    even[-1] += rows * mean - int(even.sum())
    long, short = 4 * mean, (rows * mean - rows // 8 * 4 * mean) // (rows - rows // 8)
    mixed = torch.full((rows,), short)
    mixed[::8] = long
    mixed[1] += rows * mean - int(mixed.sum())
    return [(int(lengths.max()), lengths[torch.randperm(rows, generator=torch.Generator().manual_seed(SEED))]) for lengths in (alike, even, mixed)]


def batch_of(lengths: Tensor) -> RolloutBatch:
    generator = torch.Generator().manual_seed(SEED)
    prompts = [torch.randint(2, DEFAULT["vocabulary"], (16,), generator=generator).tolist() for _ in range(8)]
    completions = Ragged.from_lists([torch.randint(2, DEFAULT["vocabulary"], (n,), generator=generator).tolist() for n in lengths.tolist()])
    rows = {"group": torch.arange(8).repeat_interleave(8), "scored": torch.ones(64, dtype=torch.bool)}
    tokens = {"token": completions.values, "behaviour_logp": torch.full((len(completions.values),), -3.0)}
    prompt_tokens = Ragged.from_lists([prompts[i // 8] for i in range(64)])
    return RolloutBatch([Prompt(str(i), "a") for i in range(64)], prompt_tokens, completions.offsets, rows=rows, tokens=tokens)


def alone(point: Point) -> dict[str, Any]:
    """Seconds and peak memory of two steps in a process of their own."""
    told = subprocess.run([sys.executable, __file__, "--point", json.dumps(DEFAULT | point)], capture_output=True, text=True, check=True)
    return {**point, **json.loads(told.stdout)}


def of_point(point: Point) -> dict[str, Any]:
    trainer = trainer_of(point)
    loaded, steps = resident("VmRSS"), []
    for _ in range(3):
        start = time.perf_counter()
        step = trainer.step()
        steps.append({"seconds": time.perf_counter() - start, "update": step.times["update"]})
    tokens = point["prompts"] * point["group"] * point["new"]
    weights = sum(p.numel() for _, p in trainer.agents[0].policy.trainable()) * 4 / MB
    found = {name: round(min(s[name] for s in steps[1:]), 4) for name in ("seconds", "update")}
    sizes = {"weights_mb": round(weights), "above_mb": round(resident("VmHWM") - loaded), "logits_mb": round(tokens * point["vocabulary"] * 4 / MB)}
    return {"useful_tokens": tokens, **found, **sizes}


def line_through(points: list[dict[str, Any]], x: str, y: str) -> dict[str, float]:
    """Least squares, and how much of the variance it explains."""
    xs, ys = ([float(p[name]) for p in points] for name in (x, y))
    slope, intercept = statistics.linear_regression(xs, ys)
    return {"slope": slope, "intercept": round(intercept, 4), "r_squared": round(statistics.correlation(xs, ys) ** 2, 4)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", choices=[*CURVES, "padding", "vocabulary"], action="append", help="only this one (several times: these)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.point:
        print(json.dumps(of_point(json.loads(options.point))))
        return
    result = json.loads(options.output.read_text()) if options.output.exists() else {"benchmark": "cost_growth", "seed": SEED, "curves": {}}
    for name in options.curve or [*CURVES, "padding", "vocabulary"]:
        points = padding() if name == "padding" else [alone(p) for p in VOCABULARIES] if name == "vocabulary" else curve(CURVES[name])
        for point in points:
            say(f"{name}: {point}")
        result["curves"][name] = points
    curves = result["curves"]
    if "useful tokens" in curves:
        result["linear_in_useful_tokens"] = line_through(curves["useful tokens"], "useful_tokens", "seconds")
    result |= {"threads": 1, "commit": commit(), **place()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
