"""Properties 6.1 to 6.9 and 6.11 of the UniFAR specification, on the pooling alone: states are given, so that nothing hides behind an encoder."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tacit.retrieval import facets as f
from tacit.retrieval.modules import FacetPooling

D, K, WORDS = 8, 3, 30


def pooling(**options: Any) -> FacetPooling:
    """Weights far from their start, in float64."""
    torch.manual_seed(1)
    found = FacetPooling(D, **{"pooled": "mean", "words": WORDS, "length": 32, "kinds": True} | options).double()
    with torch.no_grad():
        for p in found.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    return found


def texts(lengths: list[list[int]], seed: int = 0, extra: int = 0) -> dict[str, Tensor]:
    """States of texts whose sentences have these lengths, one special token before them, `extra` padding after the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(sum(sentences) for sentences in lengths) + 1 + extra
    owners = torch.full((len(lengths), longest), -1)
    for row, sentences in enumerate(lengths):
        ids = [n for n, size in enumerate(sentences) for _ in range(size)]
        owners[row, 1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)
    states = torch.zeros(len(lengths), longest, D, dtype=torch.float64)
    words = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row in range(len(lengths)):  # row by row, so that padding does not move the draws
        real = sum(lengths[row]) + 1
        states[row, :real] = torch.randn(real, D, generator=generator, dtype=torch.float64)
        words[row, :real] = torch.randint(WORDS, (real,), generator=generator)
    return {"token_embeddings": states, "sentence_ids": owners, "input_ids": words}


SHAPES = [[3, 4, 2], [5], [1, 1, 1, 6], []]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance)


def test_6_1_distributions_sum_to_one_and_padding_gets_exactly_nothing() -> None:
    features = texts(SHAPES, extra=3)
    found = pooling()(features)
    mask = features["sentence_ids"] >= 0
    logits = torch.randn(4, K, mask.shape[1], dtype=torch.float64) * 30
    beta = f.places(logits, mask)
    assert (beta >= 0).all() and (beta.transpose(1, 2)[~mask] == 0).all()
    assert close(beta.sum(-1), mask.any(-1, keepdim=True).expand(-1, K).double())  # an empty text has no place at all
    assert close(f.kinds(logits).exp().sum(-1), torch.ones(4, mask.shape[1]))
    for name in ("intent", "gates"):
        assert (found[name] >= 0).all() and close(found[name].sum(-1), torch.ones_like(found[name].sum(-1)))
    assert close(found["sentence_roles"].exp().sum(-1), torch.ones(4, 4))


@pytest.mark.parametrize("options", [{}, {"gates": "constant"}, {"pooled": "first"}, {"evidence": True}])
def test_6_2_padding_changes_no_output(options: dict[str, Any]) -> None:
    net = pooling(**options)
    tight, loose = net(texts(SHAPES)), net(texts(SHAPES, extra=7))
    for name in ("sentence_embedding", "intent", "gates", "evidence"):
        assert close(tight[name], loose[name])
    for row, sentences in enumerate(SHAPES):
        alone = texts([sentences], extra=2)
        for name in ("token_embeddings", "input_ids"):
            alone[name] = texts(SHAPES, extra=20)[name][row : row + 1, : alone["sentence_ids"].shape[1]]
        assert close(net(alone)["sentence_embedding"][0], tight["sentence_embedding"][row])


def test_6_3_the_order_of_facets_changes_no_score() -> None:
    net, order = pooling(), [2, 0, 1]
    moved = pooling()
    moved.load_state_dict(net.state_dict())
    with torch.no_grad():
        moved.anchors.copy_(net.anchors[order])
        moved.position.copy_(net.position[order])
    features, weights = texts(SHAPES), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)

    def scores(model: FacetPooling, w: Tensor) -> tuple[Tensor, Tensor]:
        documents, questions = model(dict(features))["sentence_embedding"], model(dict(features), task="query")["sentence_embedding"]
        return f.weighed(documents, w) @ documents.T, questions @ documents.T

    for a, b in zip(scores(net, weights), scores(moved, weights[order])):
        assert close(a, b)


def test_6_4_one_zero_anchor_at_the_sentence_grain_is_the_mean_of_the_sentences() -> None:
    net = FacetPooling(D, ["all"], whole=0.0, granularities=["sentence"], gates="constant", pooled="mean").double()
    with torch.no_grad():
        net.anchors.zero_()
    features = texts([[3, 4, 2]])
    states, owners = features["token_embeddings"][0], features["sentence_ids"][0]
    means = torch.stack([states[owners == n].mean(0) for n in range(3)]).mean(0)
    expected = torch.nn.functional.layer_norm(means, (D,))
    assert close(net(features)["facet_vectors"][0, 1], expected / expected.norm())


def test_6_5_a_single_sentence_is_every_facets_sentence() -> None:
    net = pooling(granularities=["sentence"])
    facets = net(texts([[5]]))["facet_vectors"][0, 1:]
    assert close(facets[0], facets[1]) and close(facets[0], facets[2])
    several = net(texts([[2, 3, 2]]))["facet_vectors"][0, 1:]
    assert not close(several[0], several[1], 1e-3)


def test_6_6_a_text_is_most_like_itself_and_scores_are_symmetric_and_bounded() -> None:
    net, features = pooling(whole=0.3), texts([*SHAPES[:3], [2, 2]])
    found = net(features)
    z = found["facet_vectors"]
    documents = f.document_side(z, 0.3)
    even = f.weighed(documents, torch.full((4, K), 1 / K, dtype=torch.float64)) @ documents.T
    assert close(even.diagonal(), torch.ones(4)) and close(even, even.T) and (even.abs() <= 1 + 1e-12).all()
    intent = net(features, task="query")["intent"]
    asked = net(features, task="query")["sentence_embedding"] @ documents.T
    q = net(features, task="query")["facet_vectors"]
    by_hand = 0.3 * q[:, 0] @ z[:, 0].T + 0.7 * sum(intent[:, k, None] * (q[:, k + 1] @ z[:, k + 1].T) for k in range(K))
    assert close(asked, by_hand)


def test_a_named_facet_is_one_hot_and_all_is_even() -> None:
    net, features = pooling(whole=0.0, kinds=False), texts(SHAPES[:3])
    z = net(features)["facet_vectors"]
    documents = f.document_side(z, 0.0)
    for facet, w in (("method", [0, 1, 0]), ("all", [1 / 3] * 3)):
        asked = net(features, task="query", facet=facet)["sentence_embedding"] @ documents.T
        assert close(asked, sum(w[k] * (z[:, k + 1] @ z[:, k + 1].T) for k in range(K)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="knows no facet 'style'; it has background, method, result"):
        net(features, task="query", facet="style")


def test_6_7_collapse_sees_facets_that_are_one() -> None:
    z = torch.zeros(2, K + 1, D, dtype=torch.float64)
    z[:, :, 0] = 1
    assert float(f.collapse(z)) == 1
    z[:, 1:] = torch.eye(K, D, dtype=torch.float64)
    assert float(f.collapse(z)) == 0
    assert float(f.orthogonality(z[0, 1:])) == 0 and float(f.orthogonality(torch.ones(K, D))) == pytest.approx(6)


def test_6_8_kl_is_zero_at_equality_and_its_gradient_is_that_of_cross_entropy() -> None:
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    target = torch.rand(6, K, dtype=torch.float64)
    target = target / target.sum(-1, keepdim=True)
    assert f.kl(target, logits.log_softmax(-1)) > 0
    assert f.kl(target, target.log()).abs() < 1e-15
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    (by_kl,) = torch.autograd.grad(f.kl(f.smoothed(labels, K, 0.0).double(), logits.log_softmax(-1)), logits)
    (by_cross_entropy,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), logits)
    assert close(by_kl, by_cross_entropy)
    assert close(f.smoothed(labels[:1], K, 0.1), torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]]), 1e-7)


def test_6_9_info_nce() -> None:
    equal = f.Candidates(torch.ones(2, 5, dtype=torch.float64), torch.tensor([0, 1]), torch.ones(2, 5, dtype=torch.bool))
    assert float(f.info_nce(equal, 0.05)) == pytest.approx(math.log(5), abs=1e-12)
    rising = [
        float(f.info_nce(f.Candidates(torch.tensor([[s, 0.1, 0.3]]).double(), torch.tensor([0]), torch.ones(1, 3).bool()), 0.1))
        for s in (0, 0.2, 0.9)
    ]
    assert rising[0] > rising[1] > rising[2] > 0
    by_hand = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(3)))
    assert rising[1] == pytest.approx(by_hand, abs=1e-6)


def test_a_copy_of_the_positive_and_an_absent_negative_are_no_candidates() -> None:
    e = torch.eye(4, dtype=torch.float64)
    found = f.candidates(e[:3], e[[0, 0, 1]], torch.stack([e[3], torch.zeros(4).double(), e[0]]))
    assert found.counts.tolist() == [
        [True, False, True, True, False, False],  # its own; a copy; another; a negative; none; its own as a negative
        [False, True, True, True, False, False],
        [True, True, True, True, False, True],
    ]
    assert found.positive.tolist() == [0, 1, 2]


def test_a_document_that_asks_is_no_candidate_of_its_own() -> None:
    e = torch.eye(4, dtype=torch.float64)
    found = f.candidates(e[:2], e[[2, 0]], e[[1, 3]], asking=e[[0, 1]])
    assert found.counts.tolist() == [[True, False, True, True], [True, True, False, True]]


def test_copies_are_told_in_bf16_as_well() -> None:
    torch.manual_seed(0)
    vectors = f.document_side(f.unit(torch.randn(64, 4, 128)), 0.6)
    with torch.autocast("cpu", torch.bfloat16):
        found = f.candidates(vectors, torch.cat([vectors, vectors])[:64], vectors)
    assert not found.counts[torch.arange(64), torch.arange(64) + 64].any() and found.counts.sum() == 64 * 127


def test_triplet_takes_the_nearest_negative() -> None:
    found = f.Candidates(torch.tensor([[0.5, 0.875, 0.0]]).double(), torch.tensor([0]), torch.tensor([[True, True, True]]))
    assert float(f.triplet(found, 1.0)) == pytest.approx(1.0 - 0.5 + 1.0)  # distances 1, 0.5 and sqrt 2
    none = f.Candidates(found.scores, found.positive, torch.tensor([[True, False, False]]))
    assert float(f.triplet(none, 1.0)) == 0


def test_6_11_a_sentence_where_a_facet_is_not_changes_no_score_in_it() -> None:
    """β is made one-hot by a huge logit: the facet is in the first sentence, so what the second says does not matter."""
    net = FacetPooling(D, whole=0.0, granularities=["sentence"], gates="constant", pooled="mean").double()
    features = texts([[3, 4], [2, 2]])
    with torch.no_grad():
        net.anchors.zero_()
        net.position[1, 0] = 1e4  # method: in the first tenth of a text, and nowhere else
    other = {name: tensor.clone() for name, tensor in features.items()}
    other["token_embeddings"][0, 4:8] = other["token_embeddings"][0, 4:8].flip(-1)

    def score(given: dict[str, Tensor], facet: list[float]) -> Tensor:
        found = net(dict(given))["sentence_embedding"]
        return f.weighed(found, torch.tensor([facet] * 2).double())[0] @ found[1]

    assert score(features, [0, 1, 0]) == score(other, [0, 1, 0])
    assert (score(features, [0, 0, 1]) - score(other, [0, 0, 1])).abs() > 1e-3


def test_repeated_words_of_a_whole_text_are_damped_as_in_tf_idf() -> None:
    ids = torch.tensor([[5, 7, 5, 9, 5, 7], [5, 5, 5, 5, 8, 0]])
    mask = torch.tensor([[True] * 6, [False, True, True, False, True, False]])
    found = f.damping(ids, mask)
    thrice, twice = (1 + math.log(3)) / 3, (1 + math.log(2)) / 2
    assert found[0].tolist() == pytest.approx([thrice, twice, thrice, 1, thrice, twice])
    assert found[1][mask[1]].tolist() == pytest.approx([twice, twice, 1]) and found.isfinite().all()


@pytest.mark.parametrize("grain", f.GRAINS)
def test_a_grain_that_is_left_out_has_no_gate(grain: str) -> None:
    kept = [g for g in f.GRAINS if g != grain]
    for gates in ("adaptive", "constant"):
        found = pooling(granularities=kept, gates=gates)(texts(SHAPES))["gates"]
        assert (found[..., f.GRAINS.index(grain)] == 0).all() and close(found.sum(-1), torch.ones(4, K))


def test_an_empty_text_is_zero_everywhere_and_its_gradient_is_finite() -> None:
    net = pooling()
    features = texts([[], [2, 3]])
    features["token_embeddings"].requires_grad_()
    for task in ("document", "query"):
        found = net(dict(features), task=task)
        assert (found["sentence_embedding"][0] == 0).all() and (found["evidence"][0] == 0).all()
        (found["sentence_embedding"].sum() + found["intent"].square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert torch.isfinite(features["token_embeddings"].grad).all()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"whole": 1.5}, "from 0 to 1, not 1.5"),
        ({"gates": "open"}, "gates"),
        ({"pooled": "max"}, "pooled"),
        ({"granularities": ["words"]}, "granularities"),
        ({"granularities": []}, "name at least one of token, sentence, global"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FacetPooling(D, **options)
