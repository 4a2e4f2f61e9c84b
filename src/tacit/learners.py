"""What a job of supervised training steps, saves and resumes: SFT, and rounds of WMSS."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tacit.config import SFTConfig, WMSSConfig
from tacit.core.fit import Fit
from tacit.core.policy import Policy, load_policy
from tacit.core.rollouts import Prompt
from tacit.core.runtime import Runtime
from tacit.sft.examples import CompletionLoss
from tacit.sft.measure import measured
from tacit.sft.noise import neftune
from tacit.sft.wmss import Chosen, JointLoss, check_vocabularies, choose_examples, cost, entropies, twin
from tacit.tasks.base import Task

logger = logging.getLogger("tacit")
CLOSE = 0.1  # relative entropy gap below which the weak model shows little

Dump = Callable[[dict[str, Any]], None]
Step = tuple[dict[str, float], list[dict[str, Any]]]


class SFTLearner:
    """`core.fit` on a task's own solutions."""

    notes: tuple[str, ...] = ()

    def __init__(self, config: SFTConfig, policy: Policy, mirror: Policy, task: Task, prompts: list[Prompt], runtime: Runtime):
        self.policy, self.mirror, self.prompts = policy, mirror, prompts
        self.options: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "packing": config.packing}
        self.options |= {"micro_batch_tokens": config.micro_batch_tokens, "label_smoothing": config.label_smoothing}
        self.neftune = config.neftune
        if config.label_smoothing and runtime.sharded:
            raise ValueError("label_smoothing needs whole weights in a process: set runtime.distributed: ddp, or label_smoothing: 0")
        self.job = CompletionLoss(policy, task, logit_scale=config.logit_scale, **self.options)
        self.fit = Fit(self.job, config.optimiser, steps=config.steps, runtime=runtime)

    @property
    def index(self) -> int:
        return self.fit.index

    def step(self, dump: Dump | None = None) -> Step:
        with neftune(self.policy.base_model, self.neftune):
            metrics = self.fit.step()
        self.policy.version += 1
        return metrics, []

    def heldout_metrics(self) -> dict[str, float]:
        return {"eval/loss": self.job.heldout_loss(self.prompts)}

    def sync(self) -> None:
        if self.mirror is not self.policy:
            self.mirror.load_state_dict(self.policy.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "fit": self.fit.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.fit.load_state_dict(state["fit"])


class WMSSLearner:
    """Rounds of: entropies of both models, choice of examples, joint training. The next weak model is the strong one that the round began with.

    Only the strong model is saved as the policy. Raises ValueError when the models have different vocabularies or are one and the same.
    """

    def __init__(self, config: WMSSConfig, policy: Policy, mirror: Policy, task: Task, prompts: list[Prompt], runtime: Runtime):
        if runtime.world_size > 1:
            raise ValueError("kind: wmss trains two models in one process: set runtime.processes: 1")
        del mirror  # of sharded weights only
        self.config, self.policy, self.task, self.prompts, self.runtime = config, policy, task, prompts, runtime
        self.weak = load_weak(config, task, runtime)
        check_vocabularies(policy, self.weak)
        self.notes = (cost(policy, self.weak, frozen=config.frozen),)
        self.options: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "packing": config.packing}
        self.options |= {"micro_batch_tokens": config.micro_batch_tokens, "label_smoothing": config.label_smoothing}
        self.per_round = config.steps // config.rounds
        self.round, self.start, self.chosen = -1, policy.state_dict(), list[int]()
        self.fit: Fit | None = None

    @property
    def index(self) -> int:
        return 0 if self.fit is None else self.round * self.per_round + self.fit.index

    def step(self, dump: Dump | None = None) -> Step:
        told: dict[str, float] = {}
        if self.fit is None or self.fit.index == self.per_round:
            told = self._begin()
        assert self.fit is not None
        with neftune(self.policy.base_model, self.config.neftune):
            metrics = self.fit.step()
        self.policy.version += 1
        return metrics | told, []

    def _begin(self) -> dict[str, float]:
        """The next round: its weak model, its examples, an optimiser of its own."""
        self.round += 1
        if self.round:
            self._past_self_becomes_weak(self.start)
        self.start = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}
        every = CompletionLoss(self.policy, self.task, **self.options)
        examples = every.encode([self.task.prompt_at(i, self.config.seed) for i in range(self.config.examples)])
        weak, strong = (entropies(policy, examples, self.config.micro_batch_tokens) for policy in (self.weak, self.policy))
        self.chosen, told = choose_examples(weak, strong, self.config.selection)
        if (gap := told["wmss/entropy_gap"]) < CLOSE:
            logger.warning(
                "the weak model is close to the strong one: entropy gap %.3f, where %.1f or more is wanted; take an earlier one", gap, CLOSE
            )
        self._prepare()
        return told

    def _past_self_becomes_weak(self, state: dict[str, Any]) -> None:
        self.weak = twin(self.policy)
        self.weak.load_state_dict(state)

    def _prepare(self) -> None:
        config = self.config
        how = {"lam": config.lam, "frozen": config.frozen, "shuffle": config.shuffle}
        job = JointLoss(self.policy, Chosen(self.task, self.chosen), self.weak, **how, **self.options)
        branches = {name: module for name, module in job.branches.items() if name == "strong" or not config.frozen}
        clip = config.clip == "branch"
        self.fit = Fit(job, config.optimiser, steps=self.per_round, runtime=self.runtime, branches=branches, clip_branches=clip)

    def heldout_metrics(self) -> dict[str, float]:
        """Loss, logits and calibration of both branches."""
        found: dict[str, float] = {}
        for name, policy in {"": self.policy, "weak_": self.weak}.items():
            job = CompletionLoss(policy, self.task, **self.options)
            found[f"eval/{name}loss"] = job.heldout_loss(self.prompts)
            found |= {f"eval/{name}{key}": value for key, value in measured(job, self.prompts).items()}
        return found

    def sync(self) -> None:
        """Completions are drawn from the very weights that are trained."""

    def state_dict(self) -> dict[str, Any]:
        weak = {name: p.detach().clone() for name, p in self.weak.model.named_parameters()}
        fit = None if self.fit is None else self.fit.state_dict()
        return {"policy": self.policy.state_dict(), "weak": weak, "start": self.start, "round": self.round, "chosen": self.chosen, "fit": fit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round, self.start, self.chosen = state["round"], state["start"], list(state["chosen"])
        self.policy.load_state_dict(state["policy"])
        if self.round > 0:
            self.weak = twin(self.policy)
        self.weak.model.load_state_dict(state["weak"], strict=False)
        if state["fit"] is not None:
            self._prepare()
            assert self.fit is not None
            self.fit.load_state_dict(state["fit"])


def load_weak(config: WMSSConfig, task: Task, runtime: Runtime) -> Policy:
    """The policy of a finished run, or of a folder or hub id that transformers loads."""
    run = Path(config.weak) / "policy"
    model = config.model.model_copy(update={"path": config.weak, "tiny": None, "lora": None})
    bf16 = config.runtime.precision == "bf16"
    folder = run if run.is_dir() else None
    return load_policy(model, alphabet=task.alphabet, seed=config.seed, device=runtime.device, bf16=bf16, folder=folder)
