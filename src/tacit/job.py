"""A job from recipe to result: build the parts, evaluate, train with checkpoints, evaluate again, write down what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tacit.config import RLConfig, SFTConfig, WMSSConfig
from tacit.core.checkpoint import CheckpointStore
from tacit.core.environment import environment
from tacit.core.imports import is_own_part, load_object
from tacit.core.options import checked
from tacit.core.policy import Policy, load_policy
from tacit.core.progress import Reporter, SilentReporter
from tacit.core.rollouts import RolloutBatch
from tacit.core.rundir import RunDirectory, finished_policy
from tacit.core.runtime import Runtime
from tacit.core.stopping import stop_after_step
from tacit.core.thresholds import alarms
from tacit.core.tokentext import token_texts
from tacit.generation.decoders import choose
from tacit.generation.sampler import Sampler
from tacit.learners import Dump, Learner, SFTLearner, WMSSLearner
from tacit.lengths import check_room, first_prompts
from tacit.mistakes import choice
from tacit.rewards.base import RewardFunction, load_reward
from tacit.rewards.evaluation import Evaluation, compare, evaluate
from tacit.rl.agent import Agent
from tacit.rl.component import COMPONENTS, Component
from tacit.rl.trainer import Trainer
from tacit.tasks.base import Task, resolve_task

ONE_THREAD = 5_000_000  # parameters up to which a single CPU thread is the fastest: the products are too small to share
SAMPLES_LOGGED = 16  # rollouts of a step that go to samples.jsonl
DUMPS = "dumps"  # below the run, see config.DumpConfig
PROBE_SEED = 2**31  # held-out completions are drawn apart from training ones, and with the same numbers before and after


@dataclass
class Outcome:
    """How a run ended: the content of result.json, and where it lies. A dry run has no folder."""

    result: dict[str, Any]
    folder: Path | None


def run(config: RLConfig | SFTConfig, *, resume: bool = False, dry_run: bool = False, reporter: Reporter | None = None) -> Outcome:
    """Trains what the recipe says. Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; `resume` continues bit for bit on the CPU.

    `dry_run` builds everything, takes one small step and writes nothing. Mistakes in the recipe raise ValueError in one sentence.
    """
    transformers.utils.logging.disable_progress_bar()
    reporter = reporter or SilentReporter()
    started = time.monotonic()
    runtime = Runtime(**config.runtime.model_dump(exclude={"processes"}), seed=config.seed, folder=config.output)
    try:
        if dry_run:
            return _dry_run(config, runtime, reporter)
        with RunDirectory(config.output, resume=resume, keep=config.checkpoint.keep) if runtime.is_main else _nobody() as folder:
            parts = Parts(config, runtime)
            check_room(config, parts.policy, first_prompts(parts.task, parts.prompts, config.seed))
            return _run(config, parts, folder, reporter, started)
    finally:
        runtime.close()


class Parts:
    """The live parts of a job, made from its recipe."""

    def __init__(self, config: RLConfig | SFTConfig, runtime: Runtime):
        self.runtime = runtime
        self.task: Task = resolve_task(config.task)
        self.reward: RewardFunction = load_reward(config.reward, self.task, sandbox=config.sandbox)
        self.prompts = self.task.heldout(config.evaluation.prompts)
        self.policy = self._policy(config)
        if config.runtime.threads is None:
            suit_threads(self.policy)
        self.mirror = self.policy
        if runtime.sharded:
            self.mirror = self._policy(config)
        runtime.distribute(self.policy.scorer)
        self.decoder, self.decoding = choose(self.mirror, config.runtime.threads)
        if isinstance(config, RLConfig):
            self.learner: Learner = RLLearner(config, self)
        else:
            learner = WMSSLearner if isinstance(config, WMSSConfig) else SFTLearner
            self.learner = learner(config, self.policy, self.mirror, self.task, self.prompts, runtime)  # pyright: ignore[reportArgumentType]
        stop = config.sampling.stop if isinstance(config, RLConfig) else []
        self.sampler = Sampler(self.decoder, self.mirror, max_new_tokens=config.completion_limit, top_p=config.evaluation.top_p, stop=stop)

    def _policy(self, config: RLConfig | SFTConfig) -> Policy:
        folder = None if config.init is None else finished_policy(config.init, "init")
        bf16 = config.runtime.precision == "bf16"
        return load_policy(config.model, alphabet=self.task.alphabet, seed=config.seed, device=self.runtime.device, bf16=bf16, folder=folder)

    def evaluate(self, config: RLConfig | SFTConfig) -> tuple[Evaluation, dict[str, float]]:
        """Held-out completions of the present policy, each process drawing its share, judged by the reward; and the metrics to log."""
        self.learner.sync()
        found = self._drawn(config, self.sampler)

        def another(policy: Policy) -> Evaluation:
            sampler = Sampler(
                choose(policy, config.runtime.threads)[0], policy, max_new_tokens=config.completion_limit, top_p=config.evaluation.top_p
            )
            return self._drawn(config, sampler)

        return found, found.metrics() | self.learner.heldout_metrics(found, another)

    def _drawn(self, config: RLConfig | SFTConfig, sampler: Sampler) -> Evaluation:
        how: dict[str, Any] = {"samples": config.evaluation.samples, "temperature": config.evaluation.temperature, "seed": PROBE_SEED}
        ranks = min(self.runtime.world_size, len(self.prompts))
        mine = range(self.runtime.rank % ranks, len(self.prompts), ranks)
        found = evaluate(sampler, [self.prompts[i] for i in mine], self.reward, groups=mine, **how)
        return Evaluation.dealt(self.runtime.gather_objects(found)[:ranks])

    def whole_policy(self) -> Policy:
        """The policy with all its weights in this process, to be saved."""
        if self.runtime.sharded:
            self.learner.sync()
            return self.mirror
        return self.policy


def suit_threads(policy: Policy) -> None:
    """One thread for a small model on the CPU."""
    if policy.device.type == "cpu" and sum(p.numel() for p in policy.model.parameters()) <= ONE_THREAD:
        torch.set_num_threads(1)


class RLLearner(Learner):
    """A Trainer with one agent."""

    def __init__(self, config: RLConfig, parts: Parts):
        components = [make_component(c.name, c.options) for c in config.components]
        self.agent = Agent(
            parts.policy,
            algorithm=config.algorithm,
            optimiser=config.optimiser,
            sampling=config.sampling,
            components=components,
            decoder=parts.decoder,
            steps=config.steps,
            mirror=parts.mirror,
        )
        self.trainer = Trainer([self.agent], parts.task, parts.reward, seed=config.seed, runtime=parts.runtime)
        self.notes = tuple(note for component in self.agent.components if (note := component.note(self.agent)))

    @property
    def index(self) -> int:
        return self.trainer.index

    @property
    def ends(self) -> bool:
        return bool(self.trainer.ended)

    def step(self, dump: Dump | None = None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        step = self.trainer.collect()
        if dump is not None:
            dump({"trainer": self.trainer.state_dict(), "step": step.state_dict()})
        step = self.trainer.learn(step)
        assert step.pool is not None
        return step.metrics, samples_to_log(step.pool, self.agent.policy.decode)

    def sync(self) -> None:
        self.agent.sync()

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state)


def _run(config: RLConfig | SFTConfig, parts: Parts, folder: RunDirectory | None, reporter: Reporter, started: float) -> Outcome:
    runtime, learner = parts.runtime, parts.learner
    if folder is not None:
        folder.write_config(config.model_dump(mode="json"))
    runtime.log_config(config.model_dump(mode="json"))
    for note in (parts.decoding, *parts.learner.notes):
        reporter.message(note)
    saved = runtime.broadcast_object(folder.restore() if folder is not None else None)

    if saved is not None:
        learner.load_state_dict(saved.state["learner"])
        before, seconds = Evaluation.from_state_dict(saved.state["before"]), saved.state["seconds"]
        reporter.message(f"resumed after step {learner.index} of {config.steps}")
    else:
        reporter.phase("evaluation before training", None)
        (before, metrics), seconds = parts.evaluate(config), 0.0
        learner.judge(metrics)
        _log(runtime, folder, 0, metrics)
        reporter.message(f"held-out {before}")

    def save() -> None:
        state = {"learner": learner.state_dict(), "before": before.state_dict(), "seconds": seconds + time.monotonic() - started}
        if folder is not None:
            folder.checkpoints.save(learner.index, state)

    def dump(state: dict[str, Any]) -> None:
        """Beside the checkpoints, of which only the newest stay."""
        if folder is not None:
            written = CheckpointStore(folder.path / DUMPS, keep=config.steps).save(learner.index + 1, state)
            size = sum(file.stat().st_size for file in written.iterdir())
            reporter.message(f"step {learner.index + 1}: {written} holds its rollouts and the state before it, {size / 2**20:.1f} MiB")

    if saved is None:
        save()
    reporter.phase("training", config.steps)
    told: set[str] = set()
    with stop_after_step(reporter) as stop:
        while learner.index < config.steps and not learner.ends:
            wanted = isinstance(config, RLConfig) and config.dump.wants(learner.index + 1)
            metrics, samples = learner.step(dump if wanted else None)
            done = learner.index
            if config.evaluation.every and done % config.evaluation.every == 0 and done < config.steps:
                metrics |= parts.evaluate(config)[1]
                learner.judge(metrics)
            _log(runtime, folder, done, metrics, samples)
            reporter.step(done - 1, metrics)
            for name, sentence in alarms(metrics).items():
                if name not in told:  # once a run: the report shows how it went on
                    reporter.warning(f"step {done}: {sentence}")
                    told.add(name)
            asked = runtime.all_reduce_max(stop.is_set())
            if learner.keeps:
                policy = parts.whole_policy()
                if folder is not None:
                    policy.save_whole(folder.path / "kept" / f"step-{done:08d}")
            if asked or done % config.checkpoint.every == 0 or done == config.steps or learner.ends:
                save()
            if asked:
                raise KeyboardInterrupt
    reporter.phase("evaluation after training", None)
    after, metrics = parts.evaluate(config)
    learner.judge(metrics)
    if (best := learner.settle()) is not None:
        reporter.message(f"the policy of step {best} is the best; it is what the run ends with, after {learner.index} of {config.steps} steps")
        after, metrics = parts.evaluate(config)
    _log(runtime, folder, learner.index, metrics)

    result = {
        "kind": config.kind,
        "task": config.task.name,
        "metric": "pass@1",
        "before": before.interval()._asdict(),
        "after": after.interval()._asdict(),
        "gain": compare(before, after)._asdict(),
        "baselines": parts.task.baselines() if runtime.is_main else {},
        "prompts": len(parts.prompts),
        "samples": after.rewards.shape[1],
        "temperature": config.evaluation.temperature,
        "unscored": after.unscored,
        "measured": {name.removeprefix("eval/"): value for name, value in metrics.items()},
        "steps": learner.index,
        "step": learner.index if best is None else best,
        "examples": after.examples(),
        "seconds": seconds + time.monotonic() - started,
        "environment": environment(runtime),
    }
    policy = parts.whole_policy()
    if folder is None:
        return Outcome(result, None)
    policy.save(folder.path / "policy")
    folder.write_json("result.json", result)
    return Outcome(result, folder.path)


def _dry_run(config: RLConfig | SFTConfig, runtime: Runtime, reporter: Reporter) -> Outcome:
    """One step of the smallest size: everything is built and run once, nothing is written."""
    asked = config
    small: dict[str, Any] = {"evaluation": config.evaluation.model_copy(update={"prompts": 2})}
    if isinstance(config, RLConfig):
        limits = {"prompts": 2, "group_size": 2, "max_new_tokens": min(8, config.sampling.max_new_tokens)}
        small["sampling"] = config.sampling.model_copy(update=limits)
    else:
        small |= {"batch_size": 2, "max_new_tokens": min(8, config.max_new_tokens)} | ({"examples": 2} if isinstance(config, WMSSConfig) else {})
    config = config.model_copy(update=small)
    parts = Parts(config, runtime)
    check_room(asked, parts.policy, first_prompts(parts.task, parts.prompts, config.seed))
    count = sum(p.numel() for p in parts.policy.model.parameters())
    trained = sum(p.numel() for _, p in parts.policy.trainable())
    reporter.message(f"policy: {type(parts.policy.base_model).__name__}, {count:,} parameters, {trained:,} trained, on {runtime.device}")
    for note in (parts.decoding, *parts.learner.notes):
        reporter.message(note)
    metrics, _ = parts.learner.step()
    reporter.message(f"one small step took {metrics['time/step']:.2f} s; nothing was written")
    return Outcome({"parameters": count, "trained": trained, "metrics": metrics}, None)


def make_component(name: str, options: dict[str, Any]) -> Component:
    """The component that a recipe names: a registered one, package.module:Class or file.py:Class."""
    if not is_own_part(name) and name not in COMPONENTS:
        raise ValueError(choice("component", name, [*COMPONENTS, "file.py:Class"]))
    made = load_object(COMPONENTS.get(name, name), "component")
    try:
        component = made(**checked(made, f"component {name!r}", options))
    except TypeError as error:
        raise ValueError(f"component {name!r} does not take these options: {error}") from error
    if not isinstance(component, Component):
        raise ValueError(f"component {name!r} is a {type(component).__name__}; it must derive from tacit.rl.component.Component")
    return component


def samples_to_log(pool: RolloutBatch, decode: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    """The first rollouts of a step, as lines for samples.jsonl: `tokens` are the texts of the tokens as drawn, `logps` their log-probs then."""
    lines = []
    for row in range(min(SAMPLES_LOGGED, len(pool))):
        prompt, scored = pool.prompts[row], bool(pool.scored[row])
        start, end = pool.offsets[row : row + 2].tolist()
        parts = {name.removeprefix("reward/"): float(column[row]) for name, column in pool.rows.items() if name.startswith("reward/")}
        lines.append(
            {
                "group": int(pool.group[row]),
                "prompt": prompt.text,
                "completion": pool.texts[row],
                "answer": prompt.answer,
                "reward": float(pool.reward[row]) if scored else None,
                "parts": parts,
                "advantage": float(pool.advantage[row]) if scored else None,
                "failure": pool.failures[row],
                "finished": bool(pool.finished[row]),
                "tokens": token_texts(pool.token[start:end].tolist(), decode),
                "logps": [round(logp, 4) for logp in pool.behaviour_logp[start:end].tolist()],
            }
        )
    return lines


def _log(runtime: Runtime, folder: RunDirectory | None, step: int, metrics: dict[str, float], samples: list[dict[str, Any]] | None = None) -> None:
    runtime.log(metrics, step)
    if folder is not None:
        folder.metrics.append(step, metrics)
        for sample in samples or ():
            folder.samples.append(step, sample)


@contextmanager
def _nobody() -> Iterator[None]:
    """The run folder of every rank but the first."""
    yield None
