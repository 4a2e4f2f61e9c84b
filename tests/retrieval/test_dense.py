"""The nearest papers of many passages, ties at the cut among them."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.retrieval.dense import Nearest, Passages, joined, leading


@pytest.mark.parametrize(("count", "expected"), [(1, [1, 3]), (2, [1, 3]), (3, [1, 2, 3, 5]), (5, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])])
def test_leading_has_all_that_equal_the_last(count, expected):
    assert leading(np.array([0.0, 3, 2, 3, 0, 2]), count).tolist() == expected
    assert leading(np.zeros(0), count).tolist() == []


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_papers_as_near_as_the_last_are_all_there(kind):
    """Seven equal papers of two passages, between a nearer and a farther one."""
    near, same, other, far = np.eye(4, dtype=np.float32)[:, None]
    nearest = Nearest.build(joined([far, *[np.concatenate([other, same])] * 7, near]), kind)
    asked = np.array([1, 0.5, 0.25, 0], np.float32)
    for papers in range(-1, 12):
        size = 1 if papers < 2 else 8 if papers < 9 else 9
        assert list(nearest.search(asked, papers).items()) == [(8, 1.0), *((row, 0.5) for row in range(1, 8)), (0, 0.0)][:size]


@pytest.mark.parametrize("width", [31, 32, 384])
def test_equal_vectors_have_equal_scores_however_many_are_asked_for(width):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, width)).astype(np.float32)[rng.permutation(np.repeat(np.arange(200), 5))]
    nearest = Nearest.build(Passages(rows, np.arange(1000)), "flat")
    whole = nearest.search(rows[0], 1000)
    assert len(whole) == 1000 and len(set(whole.values())) == 200
    for papers in (1, 7, 300):
        assert nearest.search(rows[0], papers).items() == dict(list(whole.items())[: -(-papers // 5) * 5]).items()


def test_no_paper():
    assert Nearest.build(Passages(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)), "flat").search(np.ones(4, np.float32), 3) == {}
