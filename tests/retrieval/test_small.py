"""A small encoder from a corpus: the same every time, loaded by transformers, and at first nothing but LSA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tacit.retrieval.lexical import LSA, TfIdf
from tacit.retrieval.modules import build
from tacit.retrieval.small import SPECIAL, UNTOLD, across_ones, latent, make, tokenizer

WORDS = """graph neural network search token vector query dense sparse rank
learn model facet method result proof theorem bound cell protein""".split()  # noqa: SIM905 - twenty words are read, not a list


def corpus(n: int = 60, length: int = 8, seed: int = 0, repeats: bool = False) -> list[str]:
    """Made-up texts in which words have neighbours; without repeats, mean and (1 + ln tf) count the same."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        near = np.exp(-np.abs(np.arange(len(WORDS)) - rng.integers(len(WORDS))) / 4)
        found.append(" ".join(rng.choice(WORDS, length, replace=repeats, p=near / near.sum())))
    return found


def means(folder: Path, weights: torch.Tensor, texts: list[str]) -> np.ndarray:
    """Weighted means of the states of the loaded model, cosine-normalised, in float64."""
    pieces, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = pieces(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        weight = weights[inputs["input_ids"][0]]
        rows.append((weight[:, None] * states).sum(0).double().numpy())
    found = np.array(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def lsa(folder: Path, texts: list[str], rank: int) -> LSA:
    pieces = AutoTokenizer.from_pretrained(folder)
    return LSA(TfIdf(texts, lambda text: [p for p in pieces.tokenize(text) if p not in SPECIAL]), rank)


@pytest.mark.parametrize("layers", [0, 2])
def test_the_mean_of_a_text_starts_as_lsa(tmp_path, layers):
    texts = corpus()
    weights = make(texts, tmp_path, layers=layers, hidden=8, heads=2, vocabulary=300)
    ours, theirs = means(tmp_path, weights, texts), lsa(tmp_path, texts, 7).documents
    assert ours @ ours.T == pytest.approx(theirs @ theirs.T, abs=2e-6)  # every word once: the same but for float32


def test_where_words_repeat_the_vector_of_a_text_still_starts_as_lsa(tmp_path):
    texts = corpus(length=14, repeats=True)
    weights = make(texts, tmp_path, hidden=8, heads=2, vocabulary=300)
    model = build(tmp_path, weights=weights, device="cpu", pooled="mean", whole=1.0)
    ours, theirs = model.encode_document(texts)[:, :8], lsa(tmp_path, texts, 7).documents
    assert ours @ ours.T == pytest.approx(theirs @ theirs.T, abs=2e-6)


def test_in_float64_directions_and_weights_are_lsa_to_the_last_digits():
    texts = corpus()
    pieces = tokenizer(texts, 300, 64)
    vectors, weights = latent(texts, pieces, 8, seed=0)
    space = TfIdf(texts, pieces.tokenize)
    reference = LSA(space, 7)
    ids = [pieces.convert_tokens_to_ids(pieces.tokenize(text)) for text in texts]
    ours = np.array([(weights[row][:, None] * vectors[row]).sum(0) for row in ids])
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    assert ours @ ours.T == pytest.approx(reference.documents @ reference.documents.T, abs=1e-12)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(pieces))) and vectors.sum(1) == pytest.approx(np.zeros(len(pieces)))
    words = pieces.convert_tokens_to_ids(list(space.vocabulary))
    expected = space.idf * np.linalg.norm(reference.basis, axis=1)
    assert weights[words] == pytest.approx(expected / expected.mean()) and not weights[pieces.all_special_ids].any()


def test_a_word_that_tells_no_subject_is_no_part_of_lsa():
    texts = corpus()
    pieces = tokenizer([*texts, "we show that 7 of the"] * 2, 300, 64)
    vectors, weights = latent([f"we show that {text}, 7 of the" for text in texts], pieces, 8, seed=0)
    words = pieces("we show that of the 7", add_special_tokens=False)["input_ids"]
    assert len(words) == 6 and weights[words] == pytest.approx([UNTOLD] * 6)
    plain, same = latent(texts, pieces, 8, seed=0)
    subject = [pieces.convert_tokens_to_ids(word) for word in WORDS]
    assert vectors[subject] == pytest.approx(plain[subject]) and weights[subject] == pytest.approx(same[subject])


def test_words_are_cut_so_that_their_forms_are_one():
    pieces = tokenizer(corpus(), 300, 64)
    one = pieces("Transformers", add_special_tokens=False)["input_ids"]
    assert one == pieces("transformation", add_special_tokens=False)["input_ids"] == pieces("TRANSFOR", add_special_tokens=False)["input_ids"]
    assert (
        pieces.backend_tokenizer.normalizer.normalize_str("深度学习模型深度学习模型 reinforcement-learning")
        == " 深  度  学  习  模  型 " * 2 + " reinforc-learning"
    )


def test_a_basis_of_what_has_mean_zero():
    for size in (2, 3, 8):
        basis = across_ones(size)
        assert basis @ basis.T == pytest.approx(np.eye(size - 1), abs=1e-12) and basis.sum(1) == pytest.approx(np.zeros(size - 1), abs=1e-12)
    assert across_ones(3)[1] == pytest.approx(np.array([1, 1, -2]) / np.sqrt(6))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_corpus_gives_the_same_files_in_another_process_too(tmp_path):
    """tokenizers alone would number, and choose, pieces differently in every process."""
    texts = corpus(40, seed=3)
    state = torch.get_rng_state()
    weights = make(texts, tmp_path / "a", layers=1, hidden=8, heads=2, vocabulary=120)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are moved
    code = f"from tacit.retrieval.small import make\nmake({texts!r}, {str(tmp_path / 'b')!r}, layers=1, hidden=8, heads=2, vocabulary=120)"
    source = Path(sys.modules[make.__module__].__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source), "PATH": "", "OMP_NUM_THREADS": "1"}, check=True, timeout=120)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert torch.equal(make(texts, tmp_path / "a", layers=1, hidden=8, heads=2, vocabulary=120), weights)
    make(texts, tmp_path / "c", layers=1, hidden=8, heads=2, vocabulary=120, seed=1)
    assert files(tmp_path / "a")["model.safetensors"] != files(tmp_path / "c")["model.safetensors"]
    assert files(tmp_path / "a")["tokenizer.json"] == files(tmp_path / "c")["tokenizer.json"]


@pytest.mark.parametrize("layers", [0, 2])
def test_transformers_loads_it(tmp_path, layers, caplog):
    make(corpus(), tmp_path, layers=layers, hidden=8, heads=2, vocabulary=130, length=32)
    pieces, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert not caplog.records and len(model.encoder.layer) == layers
    assert pieces.model_max_length == model.config.max_position_embeddings == 32 and len(pieces) == model.config.vocab_size <= 130
    assert pieces("Graph NEURAL zzz☃")["input_ids"] == [2, *pieces.convert_tokens_to_ids(["graph", "neural"]), 1, 3]
    assert [pieces.convert_tokens_to_ids(name) for name in SPECIAL] == [0, 1, 2, 3, 4]
    model.train()
    states = model(**pieces(["graph neural", "query"], return_tensors="pt", padding=True)).last_hidden_state
    states[:, 0].pow(2).sum().backward()
    assert torch.isfinite(model.embeddings.word_embeddings.weight.grad).all()  # a word vector of 0 behind a layer norm would give 10¹² here


def test_layers_learn_though_they_begin_as_the_identity(tmp_path):
    make(corpus(), tmp_path, layers=1, hidden=8, heads=2, vocabulary=300)
    pieces, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    inputs = pieces(corpus(4), return_tensors="pt", padding=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    target = torch.randn(8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimiser.zero_grad()
        (model(**inputs).last_hidden_state.mean(1) @ target).sum().backward()
        optimiser.step()
    layer = model.encoder.layer[0]
    assert all(part.weight.grad.abs().max() > 0 for part in (layer.attention.self.query, layer.intermediate.dense, layer.output.dense))


def test_a_corpus_smaller_than_the_sizes_asked_for(tmp_path):
    weights = make(["graph neural", "", "neural search"], tmp_path, hidden=16, heads=2, vocabulary=5000)
    pieces, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert len(weights) == len(pieces) == model.config.vocab_size < 100 and torch.isfinite(model.embeddings.word_embeddings.weight).all()
    found = means(tmp_path, weights, ["graph neural", "neural search"])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1])


def test_other_scripts_have_pieces_of_their_own(tmp_path):
    make(["深度学习模型", "深度搜索", "обучение моделей", "обучение"], tmp_path, hidden=8, heads=2, vocabulary=200)
    pieces = AutoTokenizer.from_pretrained(tmp_path)
    assert pieces.unk_token_id not in pieces("深度模型 обучение")["input_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["graph neural"]}, "LSA needs at least two documents and two words, not 1 and 2"),
        ({"texts": []}, "LSA needs at least two documents and two words, not 0 and 0"),
        ({"texts": ["graph", "graph"]}, "LSA needs at least two documents and two words, not 2 and 1"),
        ({"vocabulary": 20}, "vocabulary is 20; a small encoder needs 100 at least"),
        ({"layers": -1}, "layers is -1; a small encoder needs 0 at least"),
        ({"hidden": 10, "heads": 4}, "hidden is 10, which 4 heads cannot share evenly; make it a multiple of heads"),
    ],
)
def test_what_gives_no_model_is_said(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**{"texts": corpus(), "folder": tmp_path / "x", "hidden": 8, "heads": 2} | changes)
    assert not (tmp_path / "x").exists()
