"""Components of one agent: each fills its stages, in the order of the recipe, and their effects add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tacit.core.rollouts import Role, RolloutBatch
from tacit.rl.component import Component
from tacit.rl.losses import PolicyLoss
from tacit.rl.step import Step
from tacit.rl.update import Update

HOOKS = ["sample", "score", "keep", "verify", "credit", "select", "plan", "observe"]


class Recorder(Component):
    """Writes down every hook that is called, with what it was given."""

    def __init__(self, name: str, log: list[tuple[str, str]]):
        for hook in HOOKS:
            setattr(self, hook, self._recording(hook, getattr(self, hook), name, log))

    def _recording(self, hook, default, name, log):
        def called(*args):
            log.append((hook, name))
            return default(*args)

        return called


def test_every_hook_is_called_once_a_step_and_in_order(lab):
    log: list[tuple[str, str]] = []
    trainer = lab.trainer(lab.agent(components=[Recorder("first", log), Recorder("second", log)]))
    trainer.step()
    assert log == [(hook, name) for hook in HOOKS for name in ("first", "second")]


def test_a_component_that_overrides_nothing_changes_nothing(lab):
    plain, with_one = lab.trainer(), lab.trainer(lab.agent(components=[Component()]))
    for trainer in (plain, with_one):
        list(trainer.steps(3))
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(*(t.agents[0].policy.trainable() for t in (plain, with_one)), strict=True))
    assert Component().state_dict() == {} and Component().load_state_dict({}) is None and Component().on_rollback() is None


class LengthReward(Component):
    """Score: half a point for each token."""

    def score(self, step: Step, agent: Any, batch: RolloutBatch) -> RolloutBatch:
        bonus = batch.lengths.double() / 2
        return batch.with_columns(**{"reward": batch.reward + bonus, "reward/length": bonus})


class Doubled(Component):
    """Credit: advantages times two."""

    def credit(self, step: Step, agent: Any, pool: RolloutBatch) -> RolloutBatch:
        return pool.with_columns(advantage=pool.advantage * 2)


class Shifted(Component):
    """Credit: advantages plus one."""

    def credit(self, step: Step, agent: Any, pool: RolloutBatch) -> RolloutBatch:
        return pool.with_columns(advantage=pool.advantage + 1)


class Half(Component):
    """Select: even samples."""

    def select(self, step: Step, agent: Any, batch: RolloutBatch) -> RolloutBatch:
        return batch.select(batch.sample % 2 == 0)


class Replay(Component):
    """Select, plan and observe: trains on the previous batch first, with a loss of its own."""

    def __init__(self) -> None:
        self.previous: RolloutBatch | None = None
        self.seen: list[tuple[str, int, int]] = []

    def plan(self, step: Step, agent: Any, updates: list[Update]) -> list[Update]:
        def loss(x: Any) -> PolicyLoss:
            self.seen.append((x.tag, x.update, len(x.batch)))
            return PolicyLoss(-x.advantages * x.logp, torch.ones_like(x.logp), torch.zeros_like(x.mask))

        if self.previous is None:
            return updates
        batch = self.previous
        return [Update(batch, batch.advantage[batch.row_of_token], loss, tag="replay"), *updates]

    def observe(self, step: Step, agent: Any) -> None:
        self.previous = step.pool.select(step.kept)
        step.metrics["replay/rows"] = float(len(self.previous))


def test_components_on_different_stages_all_act(lab):
    replay = Replay()
    agent = lab.agent(algorithm={"advantage": "dr_grpo"}, components=[LengthReward(), Doubled(), Half(), replay])
    trainer = lab.trainer(agent)
    first, second = trainer.steps(2)

    shaped = first.drawn.rows["reward/raw"] + first.drawn.lengths / 2
    assert first.drawn.reward.tolist() == shaped.tolist()
    mean = shaped.view(4, 4).mean(1, keepdim=True)
    torch.testing.assert_close(first.pool.advantage, 2 * (shaped.view(4, 4) - mean).flatten())
    assert first.metrics["reward/length"] == float(first.drawn.lengths.double().mean() / 2)

    assert "agent0/replay/loss/policy" not in first.metrics and first.metrics["replay/rows"] == 16
    assert replay.seen == [("replay", 0, 16)]
    assert second.metrics["agent0/replay/optimiser/steps"] == second.metrics["optimiser/steps"] == 1
    assert agent.policy.version == 3
    assert "health/logp_gap" in first.metrics and "health/logp_gap" not in second.metrics  # the replay came before: nothing is fresh any more


def test_order_is_that_of_the_recipe(lab):
    pools = [
        lab.trainer(lab.agent(algorithm={"advantage": "dr_grpo"}, components=c)).step().pool for c in ([Doubled(), Shifted()], [Shifted(), Doubled()])
    ]
    base = lab.trainer(lab.agent(algorithm={"advantage": "dr_grpo"})).step().pool.advantage
    assert pools[0].advantage.tolist() == (base * 2 + 1).tolist()
    assert pools[1].advantage.tolist() == ((base + 1) * 2).tolist()


def test_keeps_of_components_are_joined(lab):
    class Keep(Component):
        def __init__(self, remainder: int):
            self.remainder = remainder

        def keep(self, step, agent, batch):
            return batch.sample % 3 != self.remainder

    step = lab.trainer(lab.agent(components=[Keep(0), Keep(1), Component()])).step()
    assert step.drawn.sample[step.kept].tolist() == [2] * 4
    assert step.metrics["data/drawn"] == 16 and step.metrics["data/kept"] == 4


def test_probes_are_drawn_and_never_trained_on(lab):
    class Probing(Component):
        def sample(self, step, agent, prompts, groups, batch):
            probes = batch.select(batch.sample == 0).with_columns(role=torch.full((len(prompts),), int(Role.PROBE)))
            return RolloutBatch.cat([batch, probes])

    trained = []

    class Spy(Component):
        def plan(self, step, agent, updates):
            trained.extend(updates)
            return updates

    step = lab.trainer(lab.agent(components=[Probing(), Spy()])).step()
    assert (step.metrics["data/drawn"], len(trained[0].batch)) == (20, 16)
    assert step.drawn.select(step.drawn.role == Role.PROBE).advantage.tolist() == [0] * 4
    alone = lab.trainer().step()
    assert step.metrics["reward/mean"] == alone.metrics["reward/mean"]
    assert step.metrics["optimiser/grad_norm"] == alone.metrics["optimiser/grad_norm"]


def test_a_component_may_plan_other_updates(lab):
    class TwoHalves(Component):
        def plan(self, step, agent, updates):
            (update,) = updates
            return [
                replace(update, batch=part, advantages=part.advantage[part.row_of_token], tag=f"half{i}")
                for i in range(2)
                for part in [update.batch.select(update.batch.sample % 2 == i)]
            ]

    step = lab.trainer(lab.agent(components=[TwoHalves()])).step()
    assert step.metrics["agent0/half0/optimiser/steps"] == step.metrics["agent0/half1/optimiser/steps"] == 1
    assert "optimiser/steps" not in step.metrics
