"""The replay buffer: what it holds, ages, uses, ratios, checkpoint. Claim 3 of section 6 of CBS's specification."""

from __future__ import annotations

import pytest
import torch

from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import Source
from tacit.rl.component import Component
from tacit.rl.replay import ReplayBuffer, identity
from tacit.rl.selectors import Selector


def rounds_of(lab, count: int, first: int = 0, **columns):
    """Round i: two rollouts of the prompts 2i and 2i + 1, drawn by version 10 i."""
    for i in range(first, first + count):
        yield i, lab.batch([([1], [2, 3]), ([1], [4])], group=[2 * i, 2 * i + 1], version=[10 * i] * 2, reward=[0.0, float(i)], **columns)


def test_claim_3_it_holds_exactly_the_last_rounds(lab):
    buffer = ReplayBuffer(3)
    for i, batch in rounds_of(lab, 6):
        buffer.push(i, batch)
        found = buffer.candidates(i, 10 * i)
        assert buffer.born(found).tolist() == [r for r in range(i, max(-1, i - 3), -1) for _ in range(2)]  # fresh first, then backwards
        assert found.group.tolist() == [g for r in range(i, max(-1, i - 3), -1) for g in (2 * r, 2 * r + 1)]
        assert set((i - buffer.born(found)).tolist()) <= {0, 1, 2}
        assert found.source.tolist() == [Source.SAMPLED] * 2 + [Source.REPLAYED] * (len(found) - 2)
        assert len(buffer) == len(found)


def test_rounds_that_are_missing_age_all_the_same(lab):
    buffer = ReplayBuffer(3)
    (_, first), (_, second) = rounds_of(lab, 2)
    buffer.push(0, first)
    buffer.push(4, second)
    assert buffer.born(buffer.candidates(4, 0)).tolist() == [4, 4]
    with pytest.raises(ValueError, match="push it first"):
        buffer.candidates(5, 0)


def test_stale_rollouts_are_no_candidates(lab):
    buffer = ReplayBuffer(3, stale=12)
    for i, batch in rounds_of(lab, 3):
        buffer.push(i, batch)
    assert buffer.born(buffer.candidates(2, 22)).tolist() == [2, 2, 1, 1]
    assert buffer.born(buffer.candidates(2, 23)).tolist() == [2, 2]
    assert len(buffer) == 6


def test_claim_3_uses_are_counted(lab):
    buffer = ReplayBuffer(2)
    for i, batch in rounds_of(lab, 2):
        buffer.push(i, batch)
    everything = buffer.candidates(1, 0)
    buffer.count(everything.select(torch.tensor([0, 3])))
    buffer.count(everything.select(torch.tensor([3, 3])))  # twice in one update is one use
    assert buffer.candidates(1, 0).usage.tolist() == [1, 0, 0, 2]
    assert len(set(identity(everything).tolist())) == 4


def test_prompts_are_told_apart_by_their_ids(lab):
    buffer = ReplayBuffer(2)
    for i, batch in rounds_of(lab, 2):
        buffer.push(i, batch)  # of the prompts "0" and "1", in both rounds
    assert (len(buffer), buffer.prompts) == (4, 2)


def test_hidden_states_are_not_kept(lab):
    buffer = ReplayBuffer(1)
    (_, batch), *_ = rounds_of(lab, 1)
    buffer.push(0, batch.with_columns(hidden=torch.zeros(3, 5), entropy=torch.ones(3)))
    assert "hidden" not in buffer.candidates(0, 0) and "entropy" in buffer.candidates(0, 0) and "hidden" not in batch


def test_it_survives_a_checkpoint(lab, tmp_path):
    buffer = ReplayBuffer(2)
    for i, batch in rounds_of(lab, 3):
        buffer.push(i, batch)
    buffer.count(buffer.candidates(2, 0))
    store = CheckpointStore(tmp_path)
    store.save(1, buffer.state_dict())
    again = ReplayBuffer(2)
    again.load_state_dict(store.latest().state)
    one, other = buffer.candidates(2, 0), again.candidates(2, 0)
    assert one.rows.keys() == other.rows.keys() and one.tokens.keys() == other.tokens.keys()
    assert all(torch.equal(one.rows[name].nan_to_num(-9), other.rows[name].nan_to_num(-9)) for name in one.rows)
    assert all(torch.equal(one.tokens[name], other.tokens[name]) for name in one.tokens)
    assert [p.id for p in one.prompts] == [p.id for p in other.prompts]
    again.clear()
    assert len(again) == 0


@pytest.mark.parametrize("algorithm", [{}, {"minibatch_rows": 8}], ids=["the sampler's log-probs", "the column old_logp"])
def test_replayed_rollouts_have_ratios_against_the_policy_that_drew_them(lab, algorithm):
    """In the first mini-batch of a step the weights are those that drew the fresh rows: their ratio is 1; that of a replayed row is what the
    weights of now say over what was stored when it was drawn."""
    seen = []

    class Spy(Component):
        def plan(self, step, agent, updates):
            (update,) = updates
            inner = update.loss

            def loss(x):
                seen.append((step.index, x.update, x.batch, x.logp.detach(), x.old_logp.detach()))
                return inner(x)

            update.loss = loss
            return updates

    agent = lab.agent(algorithm=algorithm, components=[Selector("random", "global", rounds=3), Spy()], optimiser={"lr": 0.05})
    list(lab.trainer(agent).steps(3))
    first = [next(s for s in seen if s[0] == index) for index in range(3)]
    batch, logp, old = first[2][2:]
    replayed = (batch.source == Source.REPLAYED)[batch.row_of_token]
    assert replayed.any() and not replayed.all()
    torch.testing.assert_close(old[~replayed], logp[~replayed], atol=1e-5, rtol=0)
    torch.testing.assert_close(old[replayed].float(), batch.behaviour_logp[replayed], atol=1e-5, rtol=0)
    assert (logp - old)[replayed].abs().max() > 1e-3
