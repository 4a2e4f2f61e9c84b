"""The whole RL step of tacit beside that of tuned TRL 1.16: the same work, in the same process, turn by turn.

Both start from the same weights and draw, score and train on the same prompts, with the same group size, temperature, length limit, reward,
loss (DAPO's, token-mean), AdamW, precision and threads. TRL runs its own `train()`; a callback lets tacit take one step after each of TRL's,
so that whatever else the machine does hits both. TRL is tuned first: no gradient checkpointing, nothing logged, fused AdamW, and as many
micro-batches as it is fastest with, here and now. Before the race each case proves that the work is the same: as many parameters, and TRL's
loss and gradient norm, on the rollouts of tacit's first step, equal to those that tacit reports.

The model decides when completions end: one constant dimension of the embedding makes EOS impossible (fixed length), or so likely that the mean
length is about 30 (variable). The learning rate is too small to change that. `ratio` is TRL's time / ours over adjacent steps, `ratio_cpu`
that of CPU time, which other jobs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from _common import load_tacit, only_json_on_stdout, saved_model, say, trl_trainer
from tacit.config import AlgorithmConfig, OptimiserConfig, SamplingConfig, TinyConfig
from tacit.core.rollouts import Prompt
from tacit.core.runtime import Runtime
from tacit.core.tiny import EOS_ID, PAD_ID
from tacit.rewards.base import each
from tacit.rl.agent import Agent
from tacit.rl.step import Step
from tacit.rl.trainer import Trainer

SEED = 0
LETTERS = "abcdefghijklmnop"
SMALL = TinyConfig(hidden=128, layers=5, heads=4, mlp=384, context=256)  # 1.1M parameters
LARGE = TinyConfig(hidden=384, layers=6, heads=6, mlp=1024, context=256)  # 10.6M
LEARNING_RATE, BETAS, CLIP = 1e-6, (0.9, 0.95), (0.2, 0.28)
NEVER = -5.0


@dataclass(frozen=True)
class Case:
    name: str
    model: TinyConfig
    prompts: int
    max_new_tokens: int
    prompt_length: tuple[int, int]
    end: float  # the weight of EOS in the constant dimension
    pairs: int  # steps of either side that count
    runs: tuple[tuple[int, str], ...] = ((1, "fp32"), (2, "fp32"))  # threads, precision
    group_size: int = 8

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


CASES = [
    Case("1.1M, fixed length", SMALL, prompts=4, max_new_tokens=64, prompt_length=(16, 16), end=NEVER, pairs=20),
    Case("1.1M, variable length", SMALL, prompts=16, max_new_tokens=128, prompt_length=(8, 24), end=0.91, pairs=8),
    Case("10.6M, fixed length", LARGE, 4, 64, (16, 16), end=NEVER, pairs=5, runs=((1, "fp32"), (2, "fp32"), (2, "bf16"))),
]


# --- the work, the same for both ---


def lean(model: PreTrainedModel, end: float) -> None:
    """Weights near 0, so that letters are about equally likely, and a first dimension that no layer writes to: there, `end` sets how likely EOS is.

    Padding is never drawn.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.02, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[0] = 0
        constant = model.get_input_embeddings().weight[:, 0]
        constant.fill_(1.0)
        constant[EOS_ID], constant[PAD_ID] = end, NEVER


@dataclass(frozen=True)
class Letters:
    """Prompts of random letters."""

    lengths: tuple[int, int]

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        generator = torch.Generator().manual_seed(seed * 2**32 + ordinal)
        length = int(torch.randint(self.lengths[0], self.lengths[1] + 1, (1,), generator=generator))
        return Prompt(str(ordinal), "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (length,), generator=generator)))


def vowels(completion: str) -> float:
    """A reward that costs nothing and differs within a group."""
    return sum(completion.count(letter) for letter in "aeio") / (1 + len(completion))


# --- the two sides ---


class Clock:
    """Seconds and CPU seconds since it was made, as of `stop`."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()
        self.seconds = self.cpu = 0.0

    def stop(self) -> Clock:
        self.seconds, self.cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        return self


@dataclass
class Times:
    """Of each step that counts: seconds in all, of the CPU, of generation and of the update; completion tokens."""

    total: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    generate: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, clock: Clock, generate: float, update: float, tokens: int) -> None:
        for name, value in {"total": clock.seconds, "cpu": clock.cpu, "generate": generate, "update": update, "tokens": tokens}.items():
            getattr(self, name).append(value)

    def summary(self, rows: int) -> dict[str, float]:
        middle = {name: round(statistics.median(getattr(self, name)), 4) for name in ("total", "cpu", "generate", "update")}
        rate = round(sum(self.tokens) / sum(self.total))
        return {**middle, "useful_tokens_per_second": rate, "mean_length": round(statistics.mean(self.tokens) / rows, 1)}


def tacit_trainer(case: Case, folder: Path, precision: str = "fp32") -> Trainer:
    agent = Agent(
        load_tacit(folder, bf16=precision == "bf16"),
        algorithm=AlgorithmConfig(advantage="grpo", clip_low=CLIP[0], clip_high=CLIP[1], aggregation="token-mean"),
        optimiser=OptimiserConfig(lr=LEARNING_RATE, betas=BETAS),
        sampling=SamplingConfig(prompts=case.prompts, group_size=case.group_size, max_new_tokens=case.max_new_tokens),
    )
    reward = each(lambda _, completion: vowels(completion))
    return Trainer([agent], Letters(case.prompt_length), reward, seed=SEED, runtime=Runtime(device="cpu"))


class TimedTRL:
    """TRL's trainer with the time of its generation, and of generation with all scoring, taken at its own methods."""

    def __init__(self, case: Case, folder: Path, output: Path, steps: int, *, micro_batches: int = 1, precision: str = "fp32"):
        settings = {
            "per_device_train_batch_size": case.rows // micro_batches,
            "gradient_accumulation_steps": micro_batches,
            "num_generations": case.group_size,
            "max_completion_length": case.max_new_tokens,
            "max_steps": steps,
            "loss_type": "dapo",
            "epsilon": CLIP[0],
            "epsilon_high": CLIP[1],
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "seed": SEED,
            "bf16": precision == "bf16",
        }
        prompts = [Letters(case.prompt_length).prompt_at(i, SEED).text for i in range(case.prompts * steps)]
        self.trainer: GRPOTrainer = trl_trainer(folder, output, prompts, lambda completions, **_: [vowels(c) for c in completions], settings)
        self.rows = case.rows
        self.generate = self.before = 0.0
        self._time("_generate_single_turn", "generate")
        self._time("_generate_and_score_completions", "before")

    def _time(self, method: str, name: str) -> None:
        original = getattr(self.trainer, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = original(*arguments, **named)
            setattr(self, name, time.perf_counter() - start)
            return result

        setattr(self.trainer, method, timed)

    def train(self, after_step: Callable[[Clock], None]) -> None:
        """Calls `after_step` with the time of each step; what it takes itself is not TRL's."""

        class Turn(TrainerCallback):
            clock = Clock()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                after_step(self.clock.stop())
                self.clock = Clock()

        self.trainer.add_callback(Turn())
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.train()

    @property
    def tokens(self) -> int:
        """Of the latest generation."""
        return round(self.rows * self.trainer._metrics["train"]["completions/mean_length"][-1])


# --- the race ---


def race(case: Case, folder: Path, threads: int, precision: str, pairs: int, micro_batches: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    tacit = tacit_trainer(case, folder, precision)
    ours, theirs = Times(), Times()
    with tempfile.TemporaryDirectory() as output:
        trl = TimedTRL(case, folder, Path(output), 1 + pairs, micro_batches=micro_batches, precision=precision)
        proof = same_work(trl.trainer, tacit, tacit.step(), exact=precision == "fp32")

        def turn(clock: Clock) -> None:
            assert torch.get_num_threads() == threads
            our_clock = Clock()
            step = tacit.step()
            our_clock.stop()
            if trl.trainer.state.global_step > 1:  # the first of either warms up
                theirs.add(clock, trl.generate, clock.seconds - trl.before, trl.tokens)
                ours.add(our_clock, step.times["sample"], step.times["update"], int(step.drawn.lengths.sum()))

        trl.train(turn)
    if case.end == NEVER and {*ours.tokens, *theirs.tokens} != {case.rows * case.max_new_tokens}:
        raise SystemExit(f"the two sides did not draw the same number of tokens: {ours.tokens}, {theirs.tokens}")
    ratios = [t / o for t, o in zip(theirs.total, ours.total, strict=True)]
    spread = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
    name = f"{case.name}, {precision}, {threads} thread{'s' * (threads > 1)}"
    result = {"case": name, "pairs": pairs, "ratio": {k: round(v, 2) for k, v in spread.items()}}
    result["ratio_cpu"] = round(statistics.median(t / o for t, o in zip(theirs.cpu, ours.cpu, strict=True)), 2)
    result |= {f"ratio_{part}": round(statistics.median(getattr(theirs, part)) / statistics.median(getattr(ours, part)), 2) for part in PARTS}
    result |= {"ours": ours.summary(case.rows), "trl": theirs.summary(case.rows), "trl_micro_batches": micro_batches, "same_work": proof}
    say(line(result))
    return result


PARTS = ("generate", "update")


def line(result: dict[str, Any]) -> str:
    def side(name: str) -> str:
        x = result[name]
        return f"{name} {x['total'] * 1e3:5.0f} ms ({x['generate'] * 1e3:.0f} + {x['update'] * 1e3:.0f}), {x['useful_tokens_per_second']} tok/s"

    r = result["ratio"]
    head = f"{result['case']:38} {r['median']:.2f}x [{r['min']:.2f}, {r['max']:.2f}], CPU {result['ratio_cpu']:.2f}x"
    return f"{head}  {side('ours')}  {side('trl')}  length {result['ours']['mean_length']}"


def same_work(trl: GRPOTrainer, tacit: Trainer, step: Step, *, exact: bool) -> dict[str, Any]:
    """TRL's loss and gradient norm on the rollouts of tacit's first step, from the same weights, beside what tacit reported of it."""
    [agent], pool = tacit.agents, step.pool
    assert pool is not None
    prompts, completions = pool.prompt_tokens.to_lists(), pool.completions.to_lists()
    left = max(map(len, prompts))
    right = max(map(len, completions))
    inputs = {
        "prompt_ids": torch.tensor([[PAD_ID] * (left - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([c + [PAD_ID] * (right - len(c)) for c in completions]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (right - len(c)) for c in completions]),
        "advantages": pool.advantage.float(),
        "num_items_in_batch": pool.lengths.sum() * trl.args.steps_per_generation,
    }
    trl.current_gradient_accumulation_steps = 1
    model = trl.model.train()
    loss = trl._compute_loss(model, inputs)
    loss.backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    model.zero_grad()
    trl._metrics["train"].clear()
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [step.metrics["loss/policy"], float(loss.detach())],
        "gradient_norm": [step.metrics["optimiser/grad_norm"], norm],
    }
    tolerance = 1e-4 if exact else 2e-2
    agree = all(abs(a - b) <= tolerance * abs(b) + 1e-6 for a, b in (found["loss"], found["gradient_norm"]))
    if not agree or found["parameters"] != sum(p.numel() for _, p in agent.policy.trainable()):
        raise SystemExit(f"the two sides do not do the same work: {found}")
    return found


def tune(case: Case, folder: Path, threads: int) -> list[dict[str, Any]]:
    """How fast TRL is with one or four micro-batches, in fp32 and bf16."""
    torch.set_num_threads(threads)
    tried = []
    for precision in ("fp32", "bf16"):
        for micro_batches in (1, 4):
            seconds: list[float] = []
            with tempfile.TemporaryDirectory() as output:
                trl = TimedTRL(case, folder, Path(output), 3, micro_batches=micro_batches, precision=precision)
                trl.train(lambda clock: seconds.append(clock.seconds))  # noqa: B023 - called before the loop goes on
            tried.append({"precision": precision, "micro_batches": micro_batches, "seconds": round(min(seconds[1:]), 4)})
    say(f"{case.name}: TRL tuned: " + ", ".join(f"{t['precision']} in {t['micro_batches']}: {t['seconds'] * 1e3:.0f} ms" for t in tried))
    return tried


def fastest(tried: list[dict[str, Any]], precision: str) -> int:
    """The number of micro-batches TRL should have."""
    return min((t for t in tried if t["precision"] == precision), key=lambda t: t["seconds"], default={"micro_batches": 1})["micro_batches"]


def run(case: Case, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All races of a case, and how TRL was tuned for them."""
    with saved_model(case.model, LETTERS, SEED, partial(lean, end=case.end)) as folder:
        tried = [] if options.quick else tune(case, folder, options.threads or 2)
        runs = [(threads, precision) for threads, precision in case.runs if threads == (1 if options.quick else options.threads or threads)]
        pairs = min(case.pairs, 3) if options.quick else case.pairs
        return [race(case, folder, threads, precision, pairs, fastest(tried, precision)) for threads, precision in runs], tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: small model, one thread, few pairs, TRL not tuned")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--threads", type=int, help="only with so many threads")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.case in case.name and not (options.quick and case.model is LARGE)]
    with only_json_on_stdout() as result:
        done = {case.name: run(case, options) for case in chosen}
        found = [race for races, _ in done.values() for race in races]
        slower = [
            f"{f['case']}: {part}" for f in found for part in ("step", *PARTS) if (f["ratio"]["median"] if part == "step" else f[f"ratio_{part}"]) < 1
        ]
        result |= {"benchmark": "vs_trl_step", "quick": options.quick, "seed": SEED, "ratios": {f["case"]: f["ratio"]["median"] for f in found}}
        result |= {"holds": all(r >= 1 for r in result["ratios"].values()), "where_we_lose": slower}
        result |= {"cases": found, "trl_tuning": {name: tried for name, (_, tried) in done.items()}}
    return 0


if __name__ == "__main__":
    sys.exit(main())
