"""Rollout batches: every column is selected, joined and saved alike, and ragged data behaves like lists of lists."""

from __future__ import annotations

import copy
import pickle
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import ROW_COLUMNS, TOKEN_COLUMNS, Prompt, Ragged, Role, RolloutBatch, Source, lengths_to_offsets, token_index

ROWS = st.lists(st.lists(st.integers(-5, 99), max_size=4), min_size=1, max_size=6)


@st.composite
def rows_and_index(draw) -> tuple[list[list[int]], list[int]]:
    rows = draw(ROWS)
    return rows, draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=8))


def make(completions: list[list[int]], groups: list[int] | None = None, **columns: Tensor) -> RolloutBatch:
    """A batch whose behaviour log-probs tell every token apart, with prompts of unequal length."""
    size, total = len(completions), sum(map(len, completions))
    prompts = [Prompt(f"p{i}", f"text {i}", answer=i, info={"level": [i]}) for i in range(size)]
    flat = Ragged.from_lists(completions)
    batch = RolloutBatch(
        prompts,
        Ragged.from_lists([[7] * (1 + i % 3) for i in range(size)]),
        flat.offsets,
        texts=[f"completion {i}" for i in range(size)],
        failures=["" if i % 2 else "timed out" for i in range(size)],
        rows={"group": torch.tensor(groups if groups is not None else list(range(size)), dtype=torch.int64)},
        tokens={"token": flat.values, "behaviour_logp": -torch.arange(total, dtype=torch.float32) / 8},
    )
    return batch.with_columns(**columns) if columns else batch


def assert_equal(a: RolloutBatch, b: RolloutBatch) -> None:
    assert (a.prompts, a.texts, a.failures) == (b.prompts, b.texts, b.failures)
    assert a.prompt_tokens.to_lists() == b.prompt_tokens.to_lists()
    assert torch.equal(a.offsets, b.offsets)
    assert list(a.rows) == list(b.rows) and list(a.tokens) == list(b.tokens)
    for name, column in (a.rows | a.tokens).items():
        torch.testing.assert_close(column, (b.rows | b.tokens)[name], rtol=0, atol=0, equal_nan=True)


# --- ragged data ---


@given(ROWS)
def test_ragged_is_a_list_of_lists(rows):
    ragged = Ragged.from_lists(rows)
    assert ragged.to_lists() == rows
    assert [row.tolist() for row in ragged] == rows
    assert [ragged[i - len(rows)].tolist() for i in range(len(rows))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.offsets.tolist() == list(accumulate(map(len, rows), initial=0))
    assert len(ragged) == len(rows)


@given(rows_and_index())
def test_ragged_select(case):
    rows, index = case
    chosen = Ragged.from_lists(rows).select(torch.tensor(index, dtype=torch.int64))
    assert chosen.to_lists() == [rows[i] for i in index]


@given(rows_and_index())
def test_token_index_is_where_the_tokens_lie(case):
    rows, index = case
    starts = list(accumulate(map(len, rows), initial=0))
    expected = [starts[i % len(rows)] + j for i in index for j in range(len(rows[i]))]
    assert token_index(Ragged.from_lists(rows).offsets, torch.tensor(index, dtype=torch.int64)).tolist() == expected


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_ragged_cat(parts):
    assert Ragged.cat([Ragged.from_lists(part) for part in parts]).to_lists() == [row for part in parts for row in part]


def test_ragged_holds_other_things_than_ids():
    hidden = Ragged(torch.arange(12.0).view(6, 2), lengths_to_offsets(torch.tensor([2, 0, 4])))
    assert hidden.select(torch.tensor([2, 1])).values.tolist() == [[4, 5], [6, 7], [8, 9], [10, 11]]
    assert hidden[1].shape == (0, 2)
    assert Ragged.from_lists([[1], []], torch.int32).values.dtype == torch.int32
    assert Ragged.from_lists([]).to_lists() == []


def test_a_row_that_is_not_there():
    with pytest.raises(IndexError):
        Ragged.from_lists([[1], [2]])[2]


# --- columns ---


def test_defaults_and_types():
    batch = make([[5, 6], [], [8]])
    assert {name: column.dtype for name, column in batch.rows.items()} == {name: dtype for name, (dtype, _) in ROW_COLUMNS.items()}
    assert {name: column.dtype for name, column in batch.tokens.items()} == {name: dtype for name, (dtype, _) in TOKEN_COLUMNS.items()}
    assert batch.role.tolist() == [Role.TRAIN] * 3 and batch.source.tolist() == [Source.SAMPLED] * 3
    assert batch.finished.all() and not batch.scored.any() and batch.action.all() and not batch.forced.any()
    assert not torch.stack([batch.sample, batch.agent, batch.version, batch.usage, batch.spent]).any()
    assert batch.reward.tolist() == batch.advantage.tolist() == [0.0, 0.0, 0.0]
    assert batch.lengths.tolist() == [2, 0, 1] and batch.row_of_token.tolist() == [0, 0, 2]
    assert batch.completions.to_lists() == [[5, 6], [], [8]]
    assert repr(batch) == "RolloutBatch(3 rollouts, 3 tokens, 3 groups)"
    bare = RolloutBatch(batch.prompts, batch.prompt_tokens, batch.offsets, rows={"group": batch.group}, tokens=batch.tokens)
    assert bare.texts == bare.failures == ["", "", ""]


def test_given_columns_take_the_standard_type():
    batch = make([[5], [6]], reward=torch.tensor([1, 0]), scored=torch.tensor([1, 0]), behaviour_logp=torch.tensor([-1.0, -2.0]).double())
    assert batch.reward.dtype == torch.float64 and batch.scored.dtype == torch.bool and batch.behaviour_logp.dtype == torch.float32


def test_with_columns_adds_and_replaces_without_touching_the_original():
    batch = make([[5, 6], [7]])
    more = batch.with_columns(
        **{"reward": torch.tensor([0.5, 1.0]), "hacpo/kept": torch.tensor([True, False]), "entropy": torch.ones(3), "hidden": torch.ones(3, 4)}
    )
    assert more.reward.tolist() == [0.5, 1.0] and more.rows["hacpo/kept"].tolist() == [True, False]
    assert more.entropy.shape == (3,) and more.hidden.shape == (3, 4)
    assert "hacpo/kept" in more and "entropy" in more and "entropy" not in batch and "hacpo/kept" not in batch
    assert batch.reward.tolist() == [0.0, 0.0]
    assert more.prompts == batch.prompts and torch.equal(more.token, batch.token)


def test_copies_and_pickles():
    batch = make([[5, 6], [7]], entropy=torch.rand(3))
    assert_equal(copy.deepcopy(batch), batch)
    assert_equal(pickle.loads(pickle.dumps(batch)), batch)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": {}}, "needs the row column 'group'"),
        ({"tokens": {"token": torch.zeros(3)}}, "needs the token column 'behaviour_logp'"),
        ({"rows": {"group": torch.arange(3)}}, "row column 'group' has 3 entries, the batch has 2 rows"),
        (
            {"tokens": {"token": torch.zeros(3), "behaviour_logp": torch.zeros(2)}},
            "token column 'behaviour_logp' has 2 entries, the batch has 3 tokens",
        ),
        ({"prompt_tokens": Ragged.from_lists([[1]])}, "prompt_tokens describes 1 rollouts, the batch has 2"),
        ({"texts": ["only one"]}, "texts describes 1 rollouts, the batch has 2"),
        ({"failures": ["", "", ""]}, "failures describes 3 rollouts, the batch has 2"),
        ({"offsets": torch.tensor([0, 3])}, "offsets describes 1 rollouts, the batch has 2"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    whole = {
        "prompts": [Prompt("a", "A"), Prompt("b", "B")],
        "prompt_tokens": Ragged.from_lists([[1], [2]]),
        "offsets": torch.tensor([0, 2, 3]),
        "rows": {"group": torch.arange(2)},
        "tokens": {"token": torch.zeros(3), "behaviour_logp": torch.zeros(3)},
    }
    RolloutBatch(**whole)
    with pytest.raises(ValueError, match=sentence):
        RolloutBatch(**(whole | change))


def test_a_column_of_the_wrong_length_cannot_be_added():
    batch = make([[5, 6], [7]])
    with pytest.raises(ValueError, match="token column 'entropy' has 2 entries, the batch has 3 tokens"):
        batch.with_columns(entropy=torch.zeros(2))
    with pytest.raises(ValueError, match="row column 'reward/format' has 3 entries, the batch has 2 rows"):
        batch.with_columns(**{"reward/format": torch.zeros(3)})


def test_a_column_that_nobody_filled():
    with pytest.raises(AttributeError, match="no column 'old_logp'; a component that reads it must list it in `needs`"):
        _ = make([[5]]).old_logp


# --- selecting and joining ---


@given(rows_and_index())
def test_select_takes_every_column_along(case):
    rows, index = case
    batch = make(rows, entropy=torch.arange(sum(map(len, rows))) + 0.5, **{"reward/raw": torch.arange(len(rows)) / 4})
    chosen = batch.select(torch.tensor(index, dtype=torch.int64))
    assert len(chosen) == len(index)
    assert chosen.completions.to_lists() == [rows[i] for i in index]
    assert chosen.prompts == [batch.prompts[i] for i in index]
    assert chosen.texts == [batch.texts[i] for i in index] and chosen.failures == [batch.failures[i] for i in index]
    assert chosen.prompt_tokens.to_lists() == [batch.prompt_tokens.to_lists()[i] for i in index]
    assert chosen.rows["reward/raw"].tolist() == [batch.rows["reward/raw"].tolist()[i] for i in index]
    at = token_index(batch.offsets, torch.tensor(index, dtype=torch.int64))
    assert torch.equal(chosen.entropy, batch.entropy[at]) and torch.equal(chosen.behaviour_logp, batch.behaviour_logp[at])


def test_select_by_mask():
    batch = make([[5, 6], [], [8], [9]])
    mask = torch.tensor([True, False, False, True])
    assert_equal(batch.select(mask), batch.select(torch.tensor([0, 3])))
    nothing = batch.select(torch.zeros(4, dtype=torch.bool))
    assert len(nothing) == 0 and nothing.token.shape == (0,) and list(nothing.groups()) == []
    with pytest.raises(ValueError, match="the mask has 3 entries, the batch has 4 rollouts"):
        batch.select(mask[:3])


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_joining_and_taking_apart_again(parts):
    batches = [make(part, groups=[10 * i + j for j in range(len(part))]) for i, part in enumerate(parts)]
    whole = RolloutBatch.cat(batches)
    start = 0
    for batch in batches:
        assert_equal(whole.select(torch.arange(start, start + len(batch))), batch)
        start += len(batch)
    assert start == len(whole)


def test_joining_batches_with_different_columns():
    a = make([[5, 6], [7]], entropy=torch.ones(3), **{"reward/format": torch.tensor([1.0, 0.5]), "sage/steps": torch.tensor([4, 5])})
    b = make([[8]], old_logp=torch.ones(1))
    whole = RolloutBatch.cat([a, b])
    assert "entropy" not in whole and "old_logp" not in whole  # a column that some rows lack would be read as if they had it
    assert whole.rows["reward/format"].tolist()[:2] == [1.0, 0.5] and whole.rows["reward/format"][2].isnan()
    assert whole.rows["sage/steps"][2].isnan() and whole.rows["sage/steps"].dtype == torch.float64
    assert RolloutBatch.cat([a, a]).rows["sage/steps"].dtype == torch.int64
    assert RolloutBatch.cat([b, a]).rows["reward/format"].isnan().tolist() == [True, False, False]
    assert whole.completions.to_lists() == [[5, 6], [7], [8]]


def test_joining_nothing():
    with pytest.raises(ValueError, match="nothing to join"):
        RolloutBatch.cat([])


def test_groups_in_order_of_appearance():
    batch = make([[1]] * 6, groups=[9, 2, 9, 9, 2, 4])
    assert [(group, rows.tolist()) for group, rows in batch.groups()] == [(9, [0, 2, 3]), (2, [1, 4]), (4, [5])]


# --- saving ---


@pytest.mark.parametrize("completions", [[[5, 6], [], [8]], [[]], [[3]]], ids=["three", "one without a token", "one"])
def test_through_a_checkpoint(tmp_path, completions):
    total = sum(map(len, completions))
    extra = {
        "hidden": torch.rand(total, 2),
        "reward/format": torch.full((len(completions),), torch.nan),
        "finished": torch.rand(len(completions)) > 0.5,
    }
    batch = make(completions, **extra)
    CheckpointStore(tmp_path).save(1, {"buffer": [batch.state_dict()]})
    checkpoint = CheckpointStore(tmp_path).latest()
    assert checkpoint is not None
    assert_equal(RolloutBatch.from_state_dict(checkpoint.state["buffer"][0]), batch)
