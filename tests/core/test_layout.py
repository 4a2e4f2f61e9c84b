from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.layout import dealt, families, filled, lay_out_tree, tree_tokens
from tacit.core.rollouts import Ragged

PROMPTS, COMPLETIONS = [[5, 6], [7], [5, 6], [7]], [[8, 9], [4], [3, 1, 2], []]


def test_a_tree_by_hand():
    """The prompts 5 6 and 7, then what is left of the completions without their last tokens, the longest first."""
    prompts, completions = Ragged.from_lists(PROMPTS), Ragged.from_lists(COMPLETIONS)
    layout = lay_out_tree(prompts, completions)
    assert layout.inputs["input_ids"].tolist() == [[5, 6, 7, 3, 1, 8]]
    assert layout.inputs["position_ids"].tolist() == [[0, 1, 0, 2, 3, 2]]
    # who predicts 8 9 (the prompt's 6, then 8), 4 (the prompt 7), 3 1 2 (6, then 3 and 1)
    assert layout.rows.tolist() == [0] * 6 and layout.columns.tolist() == [1, 5, 2, 1, 3, 4]
    assert tree_tokens(prompts, completions) == 6
    tree = layout.tree
    assert tree is not None and tree.sizes == [3, 3]
    [branches] = tree.branches
    assert branches.prompt.tolist() == [0, 0]
    assert branches.looks.int().tolist() == [[[[1, 1, 1, 0], [1, 1, 1, 1]]]], "both see the whole prompt, so one mask is enough"


def test_completions_of_one_token_need_no_place():
    layout = lay_out_tree(Ragged.from_lists([[5, 6], [5, 6]]), Ragged.from_lists([[8], [9]]))
    assert layout.inputs["input_ids"].tolist() == [[5, 6]] and layout.columns.tolist() == [1, 1]
    assert layout.tree is not None and layout.tree.sizes == [2] and layout.tree.branches == []


def test_families_by_hand():
    prompts = Ragged.from_lists([[7] * 4, [1], [7] * 4, [1], [7] * 4])
    completions = Ragged.from_lists([[2] * n for n in (3, 30, 4, 30, 0)])
    found, sizes = families(prompts, completions)
    assert [f.tolist() for f in found] == [[0, 2, 4], [1, 3]] and sizes.tolist() == [11, 61]
    found, sizes = families(prompts, completions, budget=8)
    assert [f.tolist() for f in found] == [[0], [2, 4], [1], [3]] and sizes.tolist() == [7, 8, 31, 31]
    assert families(Ragged.from_lists([]), Ragged.from_lists([]))[0] == []


def test_the_largest_goes_to_whoever_has_least():
    assert dealt(torch.tensor([3, 9, 4, 4, 1]), 2) == [[1, 4], [2, 3, 0]]
    assert dealt(torch.tensor([5]), 3) == [[0], [], []]


def test_runs_keep_to_their_budget():
    sizes = torch.tensor([3, 9, 4, 4, 1])
    assert filled([1, 4, 2, 3, 0], sizes, 10) == [[1, 4], [2, 3], [0]]
    assert filled([1, 0], sizes, 2) == [[1], [0]] and filled([], sizes, 5) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=20), st.sampled_from([1, 7, 16, math.inf]))
def test_every_row_is_in_one_family_of_its_prompt_within_the_budget(rows, budget):
    prompts = Ragged.from_lists([[7] * (1 + 3 * kind) for kind, _ in rows])
    completions = Ragged.from_lists([[2] * n for _, n in rows])
    found, sizes = families(prompts, completions, budget)
    assert sorted(i for family in found for i in family.tolist()) == list(range(len(rows)))
    for family, size in zip(found, sizes.tolist(), strict=True):
        assert len({rows[i][0] for i in family.tolist()}) == 1
        assert size == int(prompts.lengths[family[0]] + completions.lengths[family].sum())
        assert len(family) == 1 or size <= budget
