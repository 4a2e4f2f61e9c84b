"""Small float64 policies, a task of three letters and hand-made batches, as functions that tests ask for by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tacit.config import AlgorithmConfig, LoraConfig, OptimiserConfig, SamplingConfig, TinyConfig
from tacit.core.policy import Policy, add_lora
from tacit.core.rollouts import Prompt, Ragged, RolloutBatch
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.rl.agent import Agent
from tacit.rl.component import Component
from tacit.rl.step import Step
from tacit.rl.trainer import Trainer
from tacit.rl.update import Update

TINY = TinyConfig(family="qwen2", hidden=16, layers=1, heads=2, mlp=32, context=32)


@dataclass
class Score:
    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


class Letters:
    """Prompt "a:", "b:" or "c:", in turn; the answer is the letter that follows, c being followed by a."""

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        place = (ordinal + seed) % 3
        return Prompt(f"letter-{ordinal}", "abc"[place] + ":", answer="bca"[place])


def first_letter(prompts: list[Prompt], completions: list[str]) -> list[Score]:
    """1 where the completion begins with the answer, else 0."""
    return [Score(float(text.startswith(prompt.answer))) for prompt, text in zip(prompts, completions, strict=True)]


class ExactNorm(torch.nn.Module):
    """RMSNorm in the precision of its input; that of transformers goes through float32, whatever the model computes in."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def policy_of(seed: int = 0, *, lora: bool = False, dtype: torch.dtype = torch.float64, config: TinyConfig = TINY) -> Policy:
    tokenizer = char_tokenizer("abc:")
    model = tiny_model(config, tokenizer, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim == 2:  # small weights, so that every token is drawn now and then
            torch.nn.init.normal_(p, std=0.05, generator=generator)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.__class__ = ExactNorm
    if lora:
        torch.manual_seed(seed)
        model = add_lora(model, LoraConfig(rank=2, alpha=8, dropout=0.5))
    return Policy(model, tokenizer)


def agent_of(
    policy: Policy | None = None,
    *,
    algorithm: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    optimiser: dict[str, Any] | None = None,
    **more: Any,
) -> Agent:
    """4 prompts × 4 completions of at most 3 tokens, unless told otherwise."""
    return Agent(
        policy or policy_of(),
        algorithm=AlgorithmConfig(**(algorithm or {})),
        sampling=SamplingConfig(**{"prompts": 4, "group_size": 4, "max_new_tokens": 3, **(sampling or {})}),
        optimiser=OptimiserConfig(**{"lr": 1e-2, **(optimiser or {})}),
        **more,
    )


def trainer_of(agents: Agent | Sequence[Agent] | None = None, *, task: Any = None, reward: Any = first_letter, seed: int = 0) -> Trainer:
    agents = agents or agent_of()
    return Trainer([agents] if isinstance(agents, Agent) else agents, task or Letters(), reward, seed=seed)


def batch_of(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, tokens: dict[str, Any] | None = None, texts: Sequence[str] | None = None, **columns: Any
) -> RolloutBatch:
    """A batch of (prompt ids, completion ids); `columns` are row columns, `tokens` token columns, as lists."""
    completions = Ragged.from_lists([completion for _, completion in rows])
    total = len(completions.values)
    given = {name: torch.as_tensor(value) for name, value in {"behaviour_logp": [-1.0] * total, **(tokens or {})}.items()}
    filled = {name: torch.as_tensor(value) for name, value in {"group": [0] * len(rows), "scored": [True] * len(rows), **columns}.items()}
    reward = filled.get("reward", torch.zeros(len(rows))).double()
    filled.setdefault("reward/raw", reward.masked_fill(~filled["scored"], torch.nan))
    prompts = [Prompt(str(i), "a:", answer="a") for i in range(len(rows))]
    prompt_tokens = Ragged.from_lists([prompt for prompt, _ in rows])
    return RolloutBatch(prompts, prompt_tokens, completions.offsets, texts=texts, rows=filled, tokens={"token": completions.values, **given})


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.trainable()}


class Spy(Component):
    """Keeps the updates that each step had planned when its turn came, and the rollouts of the first of them."""

    def __init__(self) -> None:
        self.plans: list[list[Update]] = []

    def plan(self, step: Step, agent: Agent, updates: list[Update]) -> list[Update]:
        self.plans.append(list(updates))
        return updates

    @property
    def batches(self) -> list[RolloutBatch | None]:
        return [plan[0].batch if plan else None for plan in self.plans]


@dataclass(frozen=True)
class Lab:
    """What the tests of this room are made with."""

    policy: Callable[..., Policy] = policy_of
    agent: Callable[..., Agent] = agent_of
    trainer: Callable[..., Trainer] = trainer_of
    batch: Callable[..., RolloutBatch] = batch_of
    weights: Callable[[Policy], dict[str, torch.Tensor]] = weights_of
    score: type[Score] = Score
    first_letter: Callable[..., list[Score]] = first_letter
    letters: type[Letters] = Letters
    spy: type[Spy] = Spy


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


PROBLEMS = [{"problem": f"What is {a} + {b}?", "answer": str(a + b), "level": "Level 1"} for a in range(2, 12) for b in range(2, 12)]


@pytest.fixture
def qwen3_on_math(tmp_path, monkeypatch):
    """A folder to be in: a few problems in the place of MATH, a tiny model of Qwen3's architecture under model/, a reward in mine.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TACIT_DATA", str(tmp_path / "data"))
    for name, rows in (("math/train", PROBLEMS), ("math500/test", PROBLEMS[::4])):
        path = tmp_path / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text("def score(prompt, completion, answer):\n    return float(len(completion) % 2)\n")
    tokenizer = char_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    model = tiny_model(TinyConfig(family="qwen3", hidden=16, layers=1, heads=2, kv_heads=1, mlp=32, context=8192), tokenizer)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
