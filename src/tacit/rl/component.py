"""Component: one method, or a part of one. It overrides the stages it changes; methods that override different stages combine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tacit.core.rollouts import Prompt, RolloutBatch

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step
    from tacit.rl.trainer import Trainer
    from tacit.rl.update import Update

COMPONENTS = {
    "cbs": "tacit.rl.rollout_bandit:CBS",
    "pipo": "tacit.rl.pipo:PIPO",
    "rollback": "tacit.rl.rollback:Rollback",
    "selector": "tacit.rl.selectors:Selector",
    "true_value": "tacit.rl.true_value:TrueValue",
}  # the names a recipe may use, beside package.module:Class and file.py:Class


class Component:
    """Every hook takes what the stage has so far and returns what it should be; the defaults change nothing.

    Components of an agent are asked in the order in which the recipe lists them. A hook must depend on its arguments and on the
    component's own state only, and that state must be in `state_dict`: a resumed run continues bit for bit.
    """

    needs: frozenset[str] = frozenset()  # columns the annotate stage must fill: old_logp, ref_logp, entropy, hidden; with a critic: value
    per_rollout: bool = False  # goes by the column advantage, one number a rollout: not with a critic, whose advantages differ by token
    rounds: int = 1  # draws per step this component may ask for, through `keep`
    ended: str = ""  # why training must stop: the job ends with the step after which this says something

    def prepare(self, trainer: Trainer, agent: Agent) -> None:
        """Called once, when the trainer is made: what it needs to know of the task, the run or its own place among the components."""

    def note(self, agent: Agent) -> str:
        """What to tell before training starts, such as what it costs; nothing: ''."""
        return ""

    def sample(self, step: Step, agent: Agent, prompts: list[Prompt], groups: list[int], batch: RolloutBatch) -> RolloutBatch:
        """Which completions are drawn: `batch` is what the sampler and earlier components drew for these prompts."""
        return batch

    def score(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        """How good is each rollout: may change `reward`, `scored`, or add parts as columns named 'reward/...'."""
        return batch

    def keep(self, step: Step, agent: Agent, batch: RolloutBatch) -> Tensor | None:
        """(B,) bool: which of these may be trained on. Missing groups are drawn again, up to `rounds` draws. None: all."""
        return None

    def verify(self, step: Step, agent: Agent) -> None:
        """What did the previous update do? `step.drawn` is the fresh evidence."""

    def credit(self, step: Step, agent: Agent, pool: RolloutBatch) -> RolloutBatch:
        """Which advantage does each rollout get, for this learner: the `advantage` column over everything drawn, by all agents."""
        return pool

    def select(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        """Which rollouts, fresh or replayed, are trained on."""
        return batch

    def plan(self, step: Step, agent: Agent, updates: list[Update]) -> list[Update]:
        """Which updates, in which order, with which loss."""
        return updates

    def observe(self, step: Step, agent: Agent) -> None:
        """What must the next step know? Runs after the update."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""

    def on_rollback(self) -> None:
        """The policy went back to an earlier version: what was learnt about its later updates is void."""
