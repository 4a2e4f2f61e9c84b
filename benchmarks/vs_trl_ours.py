"""tacit's side of `vs_trl.py`: makes the model that both load, takes steps when told, shows its first one for the proof, measures the floor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from _work import BETAS, CASES, CLIP, LEARNING_RATE, LETTERS, MAX_GRAD_NORM, SEED, Case, lean, vowels
from _worker import Line, arguments, place, resident
from tacit.config import AlgorithmConfig, ModelConfig, OptimiserConfig, SamplingConfig, TinyConfig
from tacit.core.environment import commit
from tacit.core.policy import Policy, load_policy
from tacit.core.rollouts import Prompt, RolloutBatch
from tacit.core.runtime import Runtime
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.rewards.base import each
from tacit.rl import update
from tacit.rl.agent import Agent
from tacit.rl.trainer import Trainer

CHUNK = 4096  # rows of a product of the floor


class Stream:
    """The case's prompts."""

    def __init__(self, case: Case):
        self.case = case

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return Prompt(str(ordinal), self.case.prompt(ordinal))


def make(case: Case, folder: Path) -> None:
    """The model that both sides load."""
    tokenizer = char_tokenizer(LETTERS)
    model = tiny_model(TinyConfig.model_validate(case.model), tokenizer, seed=SEED)
    lean(model, case.end)
    Policy(model, tokenizer).save(folder)


def trainer_of(case: Case, folder: Path, runtime: Runtime, precision: str) -> Trainer:
    agent = Agent(
        load_policy(ModelConfig(path=str(folder)), bf16=precision == "bf16"),
        algorithm=AlgorithmConfig(advantage="grpo", clip_low=CLIP[0], clip_high=CLIP[1], aggregation="token-mean"),
        optimiser=OptimiserConfig(lr=LEARNING_RATE, betas=BETAS, max_grad_norm=MAX_GRAD_NORM),
        sampling=SamplingConfig(prompts=case.prompts, group_size=case.group_size, max_new_tokens=case.max_new_tokens),
    )
    return Trainer([agent], Stream(case), each(lambda _, completion: vowels(completion)), seed=SEED, runtime=runtime)


def step(trainer: Trainer) -> dict[str, Any]:
    start = time.perf_counter()
    done = trainer.step()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rollout": done.times["sample"], "update": done.times["update"], "tokens": int(done.drawn.lengths.sum())}


def shown(trainer: Trainer) -> dict[str, Any]:
    """The first step, with all that TRL needs to repeat its update, and what came out of it."""
    [agent], gradients = trainer.agents, list[Tensor]()
    before, clip_and_step = flat(agent.policy), update.clip_and_step

    def watched(optimiser: Any, scheduler: Any, params: list[torch.nn.Parameter], max_norm: float | None) -> float:
        gradients.append(torch.cat([torch.empty(0) if p.grad is None else p.grad.flatten().clone() for p in params]))
        return clip_and_step(optimiser, scheduler, params, max_norm)

    with mock.patch.object(update, "clip_and_step", watched):
        done = trainer.step()
    assert done.pool is not None
    return {
        "prompts": done.pool.prompt_tokens.to_lists(),
        "completions": done.pool.completions.to_lists(),
        "advantages": done.pool.advantage.float(),
        "loss": done.metrics["loss/policy"],
        "gradient": gradients[0],
        "change": flat(agent.policy) - before,
    }


def flat(policy: Policy) -> Tensor:
    return torch.cat([p.detach().flatten() for _, p in policy.trainable()])


def floor(trainer: Trainer, case: Case, batch: RolloutBatch) -> dict[str, Any]:
    """Seconds of the update's matrix products alone, in torch: of every weight, forward and both backward ones, for this rank's share of the tokens.

    Each prompt counts once, and the last token of a completion, which predicts nothing, not at all; attention is left out.
    """
    [agent], share = trainer.agents, 1 / trainer.runtime.world_size
    tokens = int(share * (int(batch.prompt_tokens.lengths[:: case.group_size].sum()) + int(batch.lengths.sum()) - len(batch)))
    model, dtype = agent.policy.base_model, torch.bfloat16 if agent.policy.bf16 else torch.float32
    head = model.get_output_embeddings().weight
    body = [p for name, p in agent.policy.trainable() if p.ndim == 2 and p is not head and "embed" not in name]
    total = 0.0
    for weight, count in [*((w, tokens) for w in body), (head, int(share * int(batch.lengths.sum())))]:
        w = weight.detach().to(dtype)
        for size in [CHUNK] * (count // CHUNK) + ([count % CHUNK] if count % CHUNK else []):
            x, g = torch.randn(size, w.shape[1]).to(dtype), torch.randn(size, w.shape[0]).to(dtype)
            total += sum(median_seconds(product) for product in (lambda: x @ w.T, lambda: g @ w, lambda: g.T @ x))  # noqa: B023 - called at once
    return {"tokens": tokens, "seconds": total}


def median_seconds(work: Callable[[], Any], times: int = 7) -> float:
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def main() -> None:
    line, options = Line(), arguments()
    case, shared = CASES[options.case], options.folder
    if options.job == "make":
        make(case, shared / "model")
        return
    runtime = Runtime(device="cpu", threads=options.threads)
    trainer = trainer_of(case, shared / "model", runtime, options.precision)
    line.tell({"rank": runtime.rank, "memory": resident("VmRSS"), "commit": commit(), **place()})
    last: RolloutBatch | None = None
    while (command := line.hear()) is not None:
        match command["do"]:
            case "step":
                line.tell(step(trainer))
            case "show":
                found = shown(trainer)
                if runtime.is_main:
                    torch.save(found, shared / "first.pt")
                line.tell({})
            case "floor":
                last = last or trainer.collect().drawn
                line.tell(floor(trainer, case, last))
            case "memory":
                line.tell({"peak": resident("VmHWM")})
    runtime.close()


if __name__ == "__main__":
    main()
