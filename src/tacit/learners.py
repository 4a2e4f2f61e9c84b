"""What a job of supervised training steps, saves and resumes: SFT, and rounds of WMSS."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tacit.config import SFTConfig, WMSSConfig
from tacit.core.fit import Fit
from tacit.core.policy import Policy, load_policy
from tacit.core.rollouts import Prompt
from tacit.core.runtime import Runtime
from tacit.rewards.evaluation import Evaluation
from tacit.sft.best import Best
from tacit.sft.examples import CompletionLoss
from tacit.sft.measure import measured, verified
from tacit.sft.noise import neftune
from tacit.sft.wmss import Chosen, JointLoss, check_vocabularies, choose_examples, cost, entropies, twin
from tacit.tasks.base import Task

logger = logging.getLogger("tacit")
CLOSE = 0.1  # relative entropy gap below which the weak model shows little

Dump = Callable[[dict[str, Any]], None]
Step = tuple[dict[str, float], list[dict[str, Any]]]


class Learner(Protocol):
    """What a job trains. `notes` are told before it starts."""

    notes: tuple[str, ...] = ()
    keeps = False  # whether the policy of this step is to be kept beside the last one
    ends = False  # whether there is no use in going on

    @property
    def index(self) -> int:
        """Steps done."""
        ...

    def step(self, dump: Dump | None = None) -> Step:
        """One step: metrics, and samples to log. `dump` takes what the step learns from, where it learns from rollouts."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def sync(self) -> None:
        """What draws completions catches up with what is trained. Here they are one."""

    def heldout_metrics(self, found: Evaluation, evaluate: Callable[[Policy], Evaluation]) -> dict[str, float]:
        """What it can say about held-out prompts beside pass@1. `found`: its policy's completions there; `evaluate` draws those of another one."""
        return {}

    def judge(self, metrics: dict[str, float]) -> None:
        """Takes note of an evaluation of the present policy."""

    def settle(self) -> int | None:
        """Training has ended: where an earlier policy was better, it comes back, and its step is returned."""
        return None


class Supervised(Learner):
    """What learners of solutions share: options of the loss, held-out measurements, which policies are kept, and the best one."""

    def __init__(self, config: SFTConfig, policy: Policy, prompts: list[Prompt]):
        self.policy, self.prompts, self.neftune = policy, prompts, config.neftune
        self.options: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "packing": config.packing}
        self.options |= {"micro_batch_tokens": config.micro_batch_tokens, "label_smoothing": config.label_smoothing}
        self.keep_every = config.keep_every
        self.best = Best(config.best_by, config.patience, restored=config.restores_best)

    @property
    def keeps(self) -> bool:
        return self.keep_every > 0 and self.index % self.keep_every == 0

    @property
    def ends(self) -> bool:
        return self.best.ends

    def judge(self, metrics: dict[str, float]) -> None:
        self.best.judge(self.index, metrics, self.policy.state_dict)

    def settle(self) -> int | None:
        if not self.best.weights or self.best.step == self.index:
            return None
        self.policy.load_state_dict(self.best.weights)
        return self.best.step

    def measured(self, policy: Policy, task: Task, found: Evaluation, prefix: str = "") -> dict[str, float]:
        """Loss, logits, calibration, pass@k and accuracy by difficulty of a policy whose held-out completions are `found`."""
        job = CompletionLoss(policy, task, **self.options)
        values = {"loss": job.heldout_loss(self.prompts), **measured(job, self.prompts), **verified(found.rewards, self.prompts)}
        return {f"eval/{prefix}{name}": value for name, value in values.items()}


class SFTLearner(Supervised):
    """`core.fit` on a task's own solutions."""

    def __init__(self, config: SFTConfig, policy: Policy, mirror: Policy, task: Task, prompts: list[Prompt], runtime: Runtime):
        super().__init__(config, policy, prompts)
        self.mirror, self.task = mirror, task
        if config.label_smoothing and runtime.sharded:
            raise ValueError("label_smoothing needs whole weights in a process: set runtime.distributed: ddp, or label_smoothing: 0")
        stream = task if config.examples is None else Chosen(task, range(config.examples))
        self.job = CompletionLoss(policy, stream, logit_scale=config.logit_scale, **self.options)
        self.fit = Fit(self.job, config.optimiser, steps=config.steps, runtime=runtime)

    @property
    def index(self) -> int:
        return self.fit.index

    def step(self, dump: Dump | None = None) -> Step:
        with neftune(self.policy.base_model, self.neftune):
            metrics = self.fit.step()
        self.policy.version += 1
        return metrics, []

    def heldout_metrics(self, found: Evaluation, evaluate: Callable[[Policy], Evaluation]) -> dict[str, float]:
        return self.measured(self.mirror, self.task, found)  # whose weights are whole, and the same once synced

    def sync(self) -> None:
        if self.mirror is not self.policy:
            self.mirror.load_state_dict(self.policy.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "fit": self.fit.state_dict(), "best": self.best.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.fit.load_state_dict(state["fit"])
        self.best.load_state_dict(state["best"])


class WMSSLearner(Supervised):
    """Rounds of: entropies of both models, choice of examples, joint training. The next weak model is the strong one that the round began with.

    Only the strong model is saved as the policy. Raises ValueError when the models have different vocabularies or are one and the same.
    """

    def __init__(self, config: WMSSConfig, policy: Policy, mirror: Policy, task: Task, prompts: list[Prompt], runtime: Runtime):
        if runtime.world_size > 1:
            raise ValueError("kind: wmss trains two models in one process: set runtime.processes: 1")
        del mirror  # of sharded weights only
        super().__init__(config, policy, prompts)
        self.config, self.task, self.runtime = config, task, runtime
        self.weak = load_weak(config, task, runtime)
        check_vocabularies(policy, self.weak)
        self.notes = (cost(policy, self.weak, frozen=config.frozen),)
        self.per_round = config.steps // config.rounds
        self.round, self.start, self.chosen = -1, dict[str, Tensor](), list[int]()
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
        again = self.round + 1 < self.config.rounds  # else nobody asks for it, and it takes as much memory as the model
        self.start = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()} if again else {}
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

    def heldout_metrics(self, found: Evaluation, evaluate: Callable[[Policy], Evaluation]) -> dict[str, float]:
        """The same of both branches."""
        weak = evaluate(self.weak)
        told = {"eval/weak_pass@1": weak.interval().mean} | self.measured(self.weak, self.task, weak, "weak_")
        return self.measured(self.policy, self.task, found) | told

    def state_dict(self) -> dict[str, Any]:
        weak = {name: p.detach() for name, p in self.weak.model.named_parameters()}
        fit = None if self.fit is None else self.fit.state_dict()
        state = {"policy": self.policy.state_dict(), "weak": weak, "start": self.start, "round": self.round, "chosen": self.chosen, "fit": fit}
        return state | {"best": self.best.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round, self.start, self.chosen = state["round"], state["start"], list(state["chosen"])
        self.policy.load_state_dict(state["policy"])
        self.best.load_state_dict(state["best"])
        if self.round > 0:
            self.weak = twin(self.policy)
        self.weak.model.load_state_dict(state["weak"], strict=False)
        if state["fit"] is not None:
            self._prepare()
            assert self.fit is not None
            self.fit.load_state_dict(state["fit"])


def load_weak(config: WMSSConfig, task: Task, runtime: Runtime) -> Policy:
    """The policy of a finished run, or of a folder or hub id that transformers loads. Where adapters train, and it trains too, it gets its own."""
    run = Path(config.weak) / "policy"
    model = config.model.model_copy(update={"path": config.weak, "tiny": None} | ({"lora": None} if config.frozen else {}))
    bf16 = config.runtime.precision == "bf16"
    folder = run if run.is_dir() else None
    return load_policy(model, alphabet=task.alphabet, seed=config.seed, device=runtime.device, bf16=bf16, folder=folder)
