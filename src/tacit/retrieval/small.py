"""A small BERT made from a corpus alone: its own word pieces, and word vectors that start as latent semantic analysis.

A text's mean of word vectors, each times the weight of its word, is then the text's place in the space of LSA: training starts where counting
words ends. Two things make this exact in a model that transformers loads. BERT's layer norm takes away the mean over dimensions, so the word
vectors lie across the vector of ones; and every layer's outputs start at 0, so a transformer begins as the identity (Goyal et al. 2017, 5.1).
Source of the initialisation: specification, section 7; that the vectors have one length and the lengths are weights of their own is ours. So is
that words are cut as those of TF-IDF are before pieces are made of them: their forms share a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit.retrieval.lexical import LSA, STEM, UNSPACED, TfIdf, telling
from tacit.retrieval.quiet import quiet
from tacit.retrieval.sentences import spaced

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = 1000  # characters at most that a vocabulary knows, the most frequent ones
FEWEST = 100  # pieces below which a vocabulary is no use
UNTOLD = 0.5  # the weight of a word that tells nothing of the subject, such as "we" or "show": it may tell the role of a sentence
LETTER = rf"[\w&&[^{UNSPACED}]]"


def make(
    texts: Sequence[str],
    folder: str | Path,
    *,
    layers: int = 0,
    hidden: int = 512,
    heads: int = 4,
    vocabulary: int = 15_000,
    length: int = 256,
    seed: int = 0,
) -> Tensor:
    """Writes tokenizer and BertModel into `folder`, and gives the weight of each word (V,): idf times length in LSA, with mean 1, and
    UNTOLD of what tells no subject; specials 0.

    The same texts, sizes and seed give the same files. Fewer pieces or dimensions come of a corpus that has no more: what LSA leaves over is 0.
    Raises ValueError for sizes that fit no model, and for a corpus of less than two texts or two words.
    """
    for name, value, least in (
        ("layers", layers, 0),
        ("hidden", hidden, 2),
        ("heads", heads, 1),
        ("vocabulary", vocabulary, FEWEST),
        ("length", length, 8),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; a small encoder needs {least} at least")
    if hidden % heads:
        raise ValueError(f"hidden is {hidden}, which {heads} heads cannot share evenly; make it a multiple of heads")
    texts = [spaced(text) for text in texts]
    pieces = tokenizer(texts, vocabulary, length)
    vectors, weights = latent(texts, pieces, hidden, seed)
    model = _bert(torch.from_numpy(vectors).float(), layers, heads, length, seed)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with quiet():
        pieces.save_pretrained(folder)
        model.save_pretrained(folder)
    return torch.from_numpy(weights).float()


def tokenizer(texts: Sequence[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """Lower-cased pieces of words that are cut to 8 characters, at most `vocabulary` of them. Source: Schuster & Nakajima (2012), as trained by
    tokenizers.

    That library numbers characters in an order that differs from run to run, and breaks ties by number; given beforehand, they stay put.
    """
    from tokenizers.trainers import WordPieceTrainer
    from transformers import PreTrainedTokenizerFast

    engine = _engine({})
    frequency = Counter(c for text in texts for c in engine.normalizer.normalize_str(text) if not c.isspace())
    known = sorted(frequency, key=lambda c: (-frequency[c], c))[: min(LETTERS, (vocabulary - len(SPECIAL)) // 4)]
    fixed = [*SPECIAL, *sorted(known), *(f"##{c}" for c in sorted(known))]
    engine.train_from_iterator(texts, WordPieceTrainer(vocab_size=vocabulary, special_tokens=fixed, limit_alphabet=len(known), show_progress=False))
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    pieces = _engine(engine.get_vocab(with_added_tokens=False))  # where characters are pieces like others
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=length, **names)


def _engine(vocabulary: dict[str, int]) -> Any:
    """BERT's own but for words, which are cut."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    engine: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    cut = normalizers.Replace(Regex(f"(?<={LETTER}{{{STEM}}}){LETTER}+"), "")
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer(lowercase=True), cut])
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    engine.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    return engine


def latent(texts: Sequence[str], pieces: PreTrainedTokenizerFast, hidden: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Word vectors (V, hidden) of length 1, across the vector of ones, in the directions of LSA; weights (V,) idf times their length there, mean 1.

    What tells nothing of a subject (`lexical.telling`), and what the corpus does not have, has a random direction and the weight UNTOLD; specials
    have 0. Raises ValueError as LSA does.
    """
    engine = pieces.backend_tokenizer
    space = TfIdf(
        texts, lambda text: [p for p in engine.encode(text, add_special_tokens=False).tokens if p not in SPECIAL and telling(p.removeprefix("##"))]
    )
    basis = LSA(space, hidden - 1).basis  # (words, rank)
    basis = basis * np.where(basis[np.abs(basis).argmax(0), range(basis.shape[1])] < 0, -1, 1)  # signs are an accident of the solver
    lengths = np.linalg.norm(basis, axis=1)
    rows = np.array(pieces.convert_tokens_to_ids(list(space.vocabulary)))
    directions = np.random.default_rng(seed).standard_normal((len(pieces), hidden - 1))
    directions[rows[lengths > 1e-12]] = 0
    directions[rows[lengths > 1e-12], : basis.shape[1]] = basis[lengths > 1e-12]
    vectors = directions / np.linalg.norm(directions, axis=1, keepdims=True) @ across_ones(hidden)
    weights = np.full(len(pieces), UNTOLD)
    weights[: len(SPECIAL)] = 0
    weights[rows] = space.idf * lengths / (space.idf * lengths).mean()
    return vectors, weights


def across_ones(size: int) -> NDArray[np.float64]:
    """An orthonormal basis (size − 1, size) of all that has mean 0: row k is 1 k times, then −k, over √(k(k + 1)) (Helmert's)."""
    k = np.arange(1, size)[:, None]
    column = np.arange(size)[None, :]
    return np.where(column < k, 1.0, np.where(column == k, -k, 0.0)) / np.sqrt(k * (k + 1))


def _bert(vectors: Tensor, layers: int, heads: int, length: int, seed: int) -> BertModel:
    from transformers import BertConfig, BertModel

    size, hidden = vectors.shape
    config = BertConfig(
        vocab_size=size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BertModel(config).eval()
        model.embeddings.word_embeddings.weight.copy_(vectors)
        for name, weights in model.named_parameters():
            if "position_embeddings" in name or "token_type_embeddings" in name or name.endswith("output.dense.weight"):
                weights.zero_()
    return model
