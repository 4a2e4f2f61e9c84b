"""A tiny random BERT, built on the fly, and the real benchmarks where they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("bm25s") is None or importlib.util.find_spec("sentence_transformers") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra 'retrieval' is not installed


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sentence-transformers model with random weights: 2 layers of width 32 that read 64 tokens of letters and words."""
    return build_bert(tmp_path_factory.mktemp("bert"), seed=0)


@pytest.fixture(scope="session")
def other_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bert(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def faceted(bert: Path) -> Path:
    """The folder of a UniFAR-style model over the same BERT."""
    return build_faceted(bert, seed=0)


@pytest.fixture(scope="session")
def other_faceted(bert: Path) -> Path:
    """As the first, but with other anchors."""
    return build_faceted(bert, seed=1)


def build_faceted(bert: Path, seed: int) -> Path:
    import torch

    from tacit.retrieval.modules import build

    torch.manual_seed(seed)
    folder = bert.parent / f"faceted-{seed}"
    build(bert.parent / "base", device="cpu", length=64, whole=0.4, pooled="mean", intent_temperature=0.05).save(str(folder))
    return folder


def build_bert(folder: Path, seed: int) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), "graph", "neural", "cats", "dogs", "sleep"]
    base = folder / "base"
    base.mkdir()
    (base / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(base)
    BertTokenizerFast(str(base / "vocab.txt"), model_max_length=64).save_pretrained(base)
    words = Transformer(str(base), max_seq_length=64)
    SentenceTransformer(modules=[words, Pooling(32, "mean")], device="cpu").save(str(folder / "model"))
    return folder / "model"
