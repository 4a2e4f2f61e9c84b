"""PIPO and CBS over GSPO in one agent: what each makes of the other, cell by cell of the composition table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import Role
from tacit.rl.component import Component
from tacit.rl.pipo import ATTRIBUTION, PIPO, attribution
from tacit.rl.replay import identity
from tacit.rl.rollback import Rollback
from tacit.rl.rollout_bandit import CBS

GSPO: dict[str, Any] = {
    "advantage": "grpo",
    "loss": "gspo",
    "clip_low": 3e-4,
    "clip_high": 4e-4,
    "aggregation": "seq-mean-token-mean",
}
W = 2


def run(lab, steps: int, *, cbs: dict[str, Any] | None = None, pipo: dict[str, Any] | None = None, order: str = "cbs first", after=()):
    parts = [CBS(**({"warmup": 2, "epochs": 1} | (cbs or {}))), PIPO(**({"window": W} | (pipo or {})))]
    spy = lab.spy()
    components = [*(parts if order == "cbs first" else parts[::-1]), *after, spy]
    trainer = lab.trainer(lab.agent(algorithm=GSPO, sampling={"group_size": 8}, components=components))
    return trainer, list(trainer.steps(steps)), spy


def part(trainer, kind):
    return next(c for c in trainer.agents[0].components if isinstance(c, kind))


def same(lab, one, other) -> bool:
    expected = lab.weights(other.agents[0].policy)
    return all(torch.equal(p, expected[name]) for name, p in lab.weights(one.agents[0].policy).items())


@pytest.mark.parametrize("order", ["cbs first", "pipo first"])
def test_both_switched_off_it_is_plain_gspo_bit_for_bit(lab, order):
    plain = lab.trainer(lab.agent(algorithm=GSPO, sampling={"group_size": 8}))
    list(plain.steps(6))
    off, steps, _ = run(lab, 6, cbs={"share": 1.0}, pipo={"constant": 0.0}, order=order)
    assert same(lab, off, plain) and all(s.metrics["cbs/confounded"] == 0 for s in steps)
    on, steps, _ = run(lab, 6, order=order)
    assert not same(lab, on, plain) and {"pipo/xi", "cbs/label"} <= steps[-1].metrics.keys()


@pytest.mark.parametrize("order", ["cbs first", "pipo first"])
def test_what_pipo_replays_is_what_cbs_chose_attributed_among_whole_groups(lab, order):
    _, steps, spy = run(lab, 5, pipo={"constant": 0.5}, order=order)
    for t in range(W, 5):
        replay, base = spy.plans[t]
        assert (replay.tag, base.tag) == ("replay", "policy")
        before = spy.plans[t - 1][-1].batch
        assert identity(replay.batch).tolist() == identity(before).tolist() and len(before) == 16
        pool = steps[t - 1].pool
        whole = attribution(pool.advantage, pool.group, pool.scored)
        rows = {name: i for i, name in enumerate(identity(pool).tolist())}
        torch.testing.assert_close(replay.batch.rows[ATTRIBUTION], whole[[rows[name] for name in identity(before).tolist()]])


def test_xi_is_from_everything_drawn_whatever_cbs_chose(lab):
    _, steps, _ = run(lab, 4)
    assert all(s.metrics["pipo/mean"] == s.metrics["cbs/value"] == float(s.drawn.rows["reward/raw"].mean()) for s in steps)


@pytest.mark.parametrize("confounded", ["keep", "drop"])
def test_labels_of_steps_with_a_replay_are_marked_and_dropped_where_asked(lab, confounded):
    _, steps, spy = run(lab, 6, cbs={"confounded": confounded}, pipo={"constant": 0.5})
    replayed = [len(plan) == 2 for plan in spy.plans]
    assert replayed == [False] * W + [True] * 4
    assert [s.metrics["cbs/confounded"] == 1 for s in steps] == replayed
    assert ["cbs/label" in s.metrics for s in steps[1:]] == [confounded == "keep" or not r for r in replayed[:-1]]


@pytest.mark.parametrize("order", ["cbs first", "pipo first"])
def test_a_replay_is_a_use(lab, order):
    """What was chosen at steps 1 and 2 and is replayed one step later was used twice; the fresh choice of the last step once."""
    trainer, _, spy = run(lab, 4, cbs={"mode": "global", "rounds": 4, "count": 0.25}, pipo={"constant": 0.5}, order=order)
    uses: dict[int, int] = {}
    for updates in spy.plans:
        for update in updates:
            for name in identity(update.batch).tolist():
                uses[name] = uses.get(name, 0) + 1
    for batch in part(trainer, CBS).buffer.held.values():
        assert batch.usage.tolist() == [uses.get(name, 0) for name in identity(batch).tolist()]
    assert max(uses.values()) >= 2


def test_a_replay_of_buffered_rollouts_keeps_the_attribution_of_their_groups(lab):
    _, steps, spy = run(lab, 6, cbs={"mode": "global", "rounds": 3, "count": 0.5}, pipo={"constant": 0.5})
    whole = {}
    for step in steps:
        values = attribution(step.pool.advantage, step.pool.group, step.pool.scored)
        whole |= dict(zip(identity(step.pool).tolist(), values.tolist(), strict=True))
    for updates in spy.plans[W:]:
        batch = updates[0].batch
        assert batch.rows[ATTRIBUTION].tolist() == pytest.approx([whole[name] for name in identity(batch).tolist()])


def test_each_has_probes_of_its_own(lab):
    trainer, steps, _ = run(lab, 3, cbs={"probes": 5}, pipo={"probes": 7})
    drawn = steps[-1].drawn
    assert (drawn.role == Role.PROBE).sum() == 12 and len(drawn.group[drawn.role == Role.PROBE].unique()) == 12
    assert {"cbs/gain", "pipo/gain"} <= steps[-1].metrics.keys()
    assert part(trainer, CBS).probes.first_group != part(trainer, PIPO).probes.first_group


def test_a_rollback_voids_what_both_remember(lab):
    class Back(Component):
        def verify(self, step, agent):
            if step.index == 4:
                for component in agent.components:
                    component.on_rollback()

        def select(self, step, agent, batch):
            return batch.select(torch.empty(0, dtype=torch.int64)) if step.index == 4 else batch

    trainer, _, _ = run(lab, 5, cbs={"mode": "global", "rounds": 3}, pipo={"constant": 0.5}, after=[Back()])
    cbs, pipo = part(trainer, CBS), part(trainer, PIPO)
    assert cbs.pending is None and not cbs.buffer.held and pipo.cache is None and not pipo.window
    assert cbs.scheduler.labelled == 4, "what the choices before it taught stays"
    assert "cbs/label" not in trainer.step().metrics and "cbs/label" in trainer.step().metrics


def test_with_the_guard_it_resumes_bit_for_bit(lab, tmp_path):
    def made():
        return run(lab, 0, cbs={"mode": "global", "rounds": 3, "count": 0.5, "probes": 4}, after=[Rollback(probes=4, every=2)])[0]

    whole, first, second = made(), made(), made()
    list(whole.steps(8))
    list(first.steps(5))
    store = CheckpointStore(tmp_path)
    store.save(5, first.state_dict())
    second.load_state_dict(store.latest().state)
    list(second.steps(3))
    assert same(lab, second, whole)
