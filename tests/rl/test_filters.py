from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tacit.rl.update as update_module
from tacit.core.rollouts import Prompt, Role
from tacit.rl.filters import DynamicSampling, Overlong, has_signal, overlong_penalty

# --- formulas ---


def test_has_signal_by_hand():
    """DAPO eq. 11: 0 < right answers < G. Group 7: .. right and wrong; 3: all right; 5: all wrong; 9: alone; 2: right, wrong unscored."""
    groups = torch.tensor([7, 3, 7, 5, 9, 3, 5, 2, 2, 7])
    rewards = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 1, torch.nan, torch.nan], dtype=torch.float64)
    scored = rewards.isfinite()
    assert has_signal(rewards, groups, scored).tolist() == [True, False, True, False, False, False, False, False, False, False]
    assert has_signal(rewards[:0], groups[:0], scored[:0]).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=12))
def test_has_signal_is_two_different_scored_rewards(rows):
    expected = [scored and len({r for g, r, s in rows if s and g == group}) > 1 for group, _, scored in rows]
    groups, rewards, scored = (torch.tensor([row[i] for row in rows], dtype=t) for i, t in enumerate((torch.int64, torch.float64, torch.bool)))
    assert has_signal(rewards, groups, scored).tolist() == expected


@pytest.mark.parametrize(("penalty", "expected"), [(1.0, [0, 0, -0.25, -0.5, -0.75, -1]), (0.5, [0, 0, -0.125, -0.25, -0.375, -0.5])])
def test_overlong_penalty_by_hand(penalty, expected):
    """DAPO eq. 13 with a limit of 10 and a buffer of 4: (6 - length) / 4 from 6 to 10."""
    found = overlong_penalty(torch.tensor([1, 6, 7, 8, 9, 10]), 10, 4, penalty)
    assert found.dtype == torch.float64 and found.tolist() == expected


# --- dynamic sampling in the loop ---


class Numbered:
    """The prompt says its own ordinal, and whether its group is to have signal."""

    def __init__(self, signal: set[int]):
        self.signal = signal

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        return Prompt(str(ordinal), "a:", answer="a", info={"signal": ordinal in self.signal})


@pytest.fixture
def run(lab):
    """Steps of a trainer with 3 prompts × 2 completions whose rewards are given: 1 and 0 where there is signal, else 1 and 1."""

    def reward(prompts: list[Prompt], completions: list[str]) -> list[Any]:
        return [lab.score(float(row % 2 == 0 or not prompt.info["signal"])) for row, prompt in enumerate(prompts)]

    def trainer(signal: set[int], rounds: int = 4, components: tuple = (), **filters: Any):
        agent = lab.agent(
            algorithm={"filter": {"drop_constant": True, "max_rounds": rounds, **filters}},
            sampling={"prompts": 3, "group_size": 2},
            components=components,
        )
        return lab.trainer(agent, task=Numbered(signal), reward=reward)

    return trainer


def kept_groups(step: Any) -> list[int]:
    return step.drawn.group[step.kept].unique().tolist()


def test_draws_again_until_the_batch_is_full(run):
    trainer = run(signal={1, 4, 6})
    step = trainer.step()
    assert step.rounds == 3 and trainer.cursor == 9
    assert step.drawn.group.tolist() == [i for i in range(9) for _ in range(2)]
    assert kept_groups(step) == [1, 4, 6]
    assert {name: step.metrics[f"data/{name}"] for name in ("drawn", "kept", "rounds")} == {"drawn": 18, "kept": 6, "rounds": 3}
    assert step.metrics["health/constant_groups"] == pytest.approx(6 / 9)  # of everything drawn
    assert step.metrics["optimiser/steps"] == 1
    assert trainer.step().drawn.group.min() == 9


def test_a_full_batch_is_not_drawn_again(run):
    step = run(signal={0, 1, 2}).step()
    assert step.rounds == 1 and kept_groups(step) == [0, 1, 2]


def test_what_a_redraw_brings_beyond_the_batch_is_trimmed(run):
    step = run(signal={0, 2, 3, 4, 5}).step()
    assert step.rounds == 2
    assert kept_groups(step) == [0, 2, 3]
    assert len(step.drawn) == 12 and step.metrics["data/kept"] == 6


def test_stops_after_the_last_round_with_what_there_is(run, lab):
    step = run(signal={4}, rounds=3).step()
    assert step.rounds == 3 and kept_groups(step) == [4] and step.metrics["optimiser/steps"] == 1

    trainer = run(signal=set(), rounds=3)
    before = lab.weights(trainer.agents[0].policy)
    step = trainer.step()
    assert step.rounds == 3 and not step.kept.any() and step.metrics["data/drawn"] == 18
    assert "optimiser/steps" not in step.metrics and trainer.agents[0].policy.version == 0
    assert all(torch.equal(p, before[n]) for n, p in trainer.agents[0].policy.trainable())


def test_greedy_and_dropped_rows_do_not_fill_the_batch(lab):
    """A component that keeps the greedy row of every group, and of group 4 alone the training rows."""

    class Picky(DynamicSampling):
        def keep(self, step, agent, batch):
            return (batch.role == Role.GREEDY) | (batch.group == 4)

    agent = lab.agent(algorithm={"advantage": "remax"}, sampling={"prompts": 3, "group_size": 2}, components=(Picky(2),))
    step = lab.trainer(agent).step()
    assert step.rounds == 2 and step.kept_groups.tolist() == kept_groups(step) == [4]


def test_the_filter_looks_at_the_raw_reward(run):
    """The over-long penalty tells completions of a group apart, but the verifier does not: no signal."""
    step = run(signal={1}, rounds=2, overlong_buffer=3).step()
    assert step.drawn.reward.unique().numel() > 2
    assert kept_groups(step) == [1]


def test_advantages_are_those_of_whole_groups(run):
    step = run(signal={0, 1, 2, 3, 4}, rounds=1).step()
    torch.testing.assert_close(step.pool.advantage, torch.tensor([1.0, -1] * 3).double() / (2**0.5 + 2e-4))


def test_a_filter_is_its_own_agents(lab):
    """Two agents, one of them filtered: groups whose rewards all agree are lost to that one alone."""
    agents = [lab.agent(index=i, algorithm={"filter": {"drop_constant": i == 0, "max_rounds": 1}}) for i in range(2)]

    def reward(prompts: list[Prompt], completions: list[str]) -> list[Any]:
        return [lab.score(float(prompt.id < "letter-2") * (row % 2)) for row, prompt in enumerate(prompts)]

    step = lab.trainer(agents, reward=reward).step()
    kept = step.drawn.select(step.kept)
    assert kept.group[kept.agent == 0].unique().tolist() == [0, 1]
    assert kept.group[kept.agent == 1].unique().tolist() == [0, 1, 2, 3]


# --- over-long completions ---


def test_overlong_shapes_its_own_agents_rows(lab):
    agents = [lab.agent(index=i) for i in range(2)]
    batch = lab.batch([([2], [3] * n) for n in (2, 4, 2, 4)], agent=[0, 0, 1, 1], reward=[1.0, 1, 0, 0])
    for agent, penalty in zip(agents, (1.0, 0.5), strict=True):
        batch = Overlong(limit=4, buffer=4, penalty=penalty, drop=False).score(None, agent, batch)
    assert batch.reward.tolist() == [0.5, 0.0, -0.25, -0.5]
    assert batch.rows["reward/overlong"].tolist() == [-0.5, -1, -0.25, -0.5]
    assert batch.rows["reward/raw"].tolist() == [1, 1, 0, 0]
    assert "reward/overlong" not in Overlong(4, 0, 1.0, drop=True).score(None, agents[0], lab.batch([([2], [3])]))


def test_cut_off_completions_lose_their_tokens_and_keep_their_place(lab):
    batch = lab.batch(
        [([2], [3, 1]), ([2], [3, 4, 5]), ([2], [1])], finished=[True, False, True], tokens={"action": [False, True, True, True, True, True]}
    )
    dropped = Overlong(3, 0, 1.0, drop=True).select(None, None, batch)
    assert len(dropped) == 3 and dropped.action.tolist() == [False, True, False, False, False, True]
    assert Overlong(3, 2, 1.0, drop=False).select(None, None, batch) is batch


def test_truncated_rows_count_as_sequences_but_not_as_tokens(lab, monkeypatch):
    counted = []
    count = update_module.aggregation.denominators
    monkeypatch.setattr(update_module.aggregation, "denominators", lambda *args: counted.append(count(*args)) or counted[-1])
    step = lab.trainer(lab.agent(algorithm={"filter": {"drop_truncated": True}})).step()
    finished = step.drawn.finished
    assert 0 < finished.sum() < 16
    assert (counted[0].sequences, counted[0].tokens) == (16, float(step.drawn.lengths[finished].sum()))


def test_filters_come_before_the_given_components(lab):
    given = DynamicSampling(2)
    agent = lab.agent(algorithm={"filter": {"drop_constant": True, "max_rounds": 3, "overlong_buffer": 1}}, components=[given])
    assert [type(c) for c in agent.components] == [Overlong, DynamicSampling, DynamicSampling]
    assert agent.components[-1] is given and agent.components[1].rounds == 3
    assert lab.agent().components == []
