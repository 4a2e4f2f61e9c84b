from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.layout import bundles, lay_out_shared
from tacit.core.rollouts import Ragged


def test_a_shared_row_by_hand():
    """Two completions after the prompt 5 6, one after the prompt 7, in two rows; 0 pads."""
    prompts, completions = Ragged.from_lists([[5, 6], [7], [5, 6]]), Ragged.from_lists([[8, 9], [4], [3]])
    layout = lay_out_shared(prompts, completions, 0, torch.tensor([0, 1, 0]))
    assert layout.inputs["input_ids"].tolist() == [[5, 6, 8, 9, 3], [7, 4, 0, 0, 0]]
    assert layout.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    looks = layout.inputs["attention_mask"]
    assert looks.shape == (2, 1, 5, 5) and looks.dtype == torch.bool
    assert looks[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert looks[1, 0, :2, :2].int().tolist() == [[1, 0], [1, 1]] and looks.any(-1).all(), "a softmax over nothing would not be a number"
    assert list(zip(layout.rows.tolist(), layout.columns.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0), (0, 1)]


def sizes_by_hand(prompts: Ragged, completions: Ragged, bundle: list[int]) -> int:
    return int(prompts.lengths[bundle[0]] + completions.lengths[bundle].sum())


def test_what_is_shared():
    long, short = list(range(40)), [1]
    prompts = Ragged.from_lists([long, short, long, short, long])
    completions = Ragged.from_lists([[2] * n for n in (3, 300, 4, 300, 0)])
    found, sizes = bundles(prompts, completions, width=16)
    assert [b.tolist() for b in found] == [[0, 2, 4], [1], [3]], "long completions of a short prompt would only make attention wider"
    assert sizes.tolist() == [47, 301, 301]
    found, sizes = bundles(prompts, completions, width=16, budget=45)
    assert [b.tolist() for b in found] == [[0], [2, 4], [1], [3]] and sizes.tolist() == [43, 44, 301, 301]
    assert bundles(Ragged.from_lists([]), Ragged.from_lists([]), width=16)[0] == []


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=20),
    st.sampled_from([1, 7, 16, math.inf]),
    st.integers(1, 64),
)
def test_every_row_is_in_one_bundle_of_its_prompt_within_the_budget(rows, budget, width):
    prompts = Ragged.from_lists([[7] * (1 + 3 * kind) for kind, _ in rows])
    completions = Ragged.from_lists([[2] * n for _, n in rows])
    found, sizes = bundles(prompts, completions, width, budget)
    assert sorted(i for bundle in found for i in bundle.tolist()) == list(range(len(rows)))
    for bundle, size in zip(found, sizes.tolist(), strict=True):
        assert len({rows[i][0] for i in bundle.tolist()}) == 1
        assert size == sizes_by_hand(prompts, completions, bundle.tolist())
        alone = [int(prompts.lengths[i] + completions.lengths[i]) for i in bundle.tolist()]
        assert len(bundle) == 1 or (size <= budget and size * (6 * width + size) < sum(n * (6 * width + n) for n in alone))
