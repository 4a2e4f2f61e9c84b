"""One step of a run again, alone: from the rollouts it had and the state it began with. For looking into a step, or trying another loss on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers

from tacit.config import RLConfig, SFTConfig
from tacit.core.checkpoint import CheckpointStore
from tacit.core.rundir import JsonLines
from tacit.core.runtime import Runtime
from tacit.job import DUMPS, Parts, RLLearner
from tacit.rl.step import Step

UNCOMPARED = ("time/", "throughput/", "eval/")  # what no two runs have in common, and what a replay does not measure


@dataclass
class Replay:
    """The metrics of a step as they were recorded and as they came out now; `equal` ones agree to the last bit."""

    step: int
    recorded: dict[str, float | None]
    now: dict[str, float]

    @property
    def equal(self) -> list[str]:
        return [name for name in self.now if same(self.now[name], self.recorded.get(name))]

    @property
    def differing(self) -> list[str]:
        return [name for name in self.now if name not in self.equal]


def replay(config: RLConfig | SFTConfig, number: int) -> Replay:
    """Learns from step `number` of the run in `config.output` again, as `config` says, and writes nothing.

    The policy, optimiser and components begin as they did then; sampling, annotation and scoring are what was recorded. Raises ValueError when the
    step was not written out (see `dump` in the recipe), or when the recipe no longer fits it.
    """
    run = Path(config.output)
    if not isinstance(config, RLConfig):
        raise ValueError("--replay-step replays rollouts, and a run of kind sft has none")
    state = dumped(run, number)
    transformers.utils.logging.disable_progress_bar()
    runtime = Runtime(**config.runtime.model_dump(exclude={"processes", "trackers"}), seed=config.seed)
    try:
        learner = Parts(config, runtime).learner
        assert isinstance(learner, RLLearner)
        try:
            learner.trainer.load_state_dict(state["trainer"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"step {number} does not fit this recipe, which must have the same model, optimiser and components: {error}") from error
        metrics = learner.trainer.learn(Step.from_state_dict(state["step"])).metrics
    finally:
        runtime.close()
    recorded = next((line for line in JsonLines(run / "metrics.jsonl").records() if line["step"] == number), {})
    return Replay(number, comparable(recorded), {name: value for name, value in comparable(metrics).items() if value is not None})


def dumped(run: Path, number: int) -> dict:
    """The state that the run wrote out before it learnt from step `number`."""
    store = CheckpointStore(run / DUMPS)
    there = store.steps()
    if number not in there:
        have = f"it has {', '.join(map(str, there))}" if there else "it has none; set dump.steps or dump.every in the recipe and run it again"
        raise ValueError(f"{run} has no dump of step {number}: {have}")
    return store.read(number)


def comparable(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value for name, value in metrics.items() if name != "step" and not name.startswith(UNCOMPARED)}


def same(now: float, recorded: float | None) -> bool:
    return recorded == now or (recorded is None and not math.isfinite(now))  # JSON has no NaN


def lines(found: Replay) -> list[str]:
    """What the terminal says: what differs, and how many metrics do not."""
    said = [f"step {found.step} again: {len(found.equal)} of {len(found.now)} metrics as recorded, to the last bit"]
    for name in found.differing:
        before = found.recorded.get(name)
        said.append(f"  {name}: {found.now[name]:.6g}, recorded {'not at all' if before is None else format(before, '.6g')}")
    return said
