"""The modules over a real encoder: reading by sentences, what is cut, and models that come back as they were saved."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tacit.retrieval import facets as f
from tacit.retrieval.losses import FACET, INTENT, ROLES, FacetLoss, LossOptions
from tacit.retrieval.modules import SENTENCE_END, Sentencewise, build, is_faceted, load, pooling_of, split

TITLE, FIRST, SECOND = "Neural cats", "We propose a graph.", "Dogs sleep."


@pytest.fixture(scope="module")
def model(bert: Path) -> SentenceTransformer:
    torch.manual_seed(3)
    found = build(bert / "../base", weights=torch.linspace(0, 2, 62), whole=0.6, pooled="mean", kinds=True, device="cpu")
    with torch.no_grad():
        for p in pooling_of(found).parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return found.eval()


def reader(model: SentenceTransformer) -> Sentencewise:
    found = model[0]
    assert isinstance(found, Sentencewise)
    return found


def test_tokens_know_their_sentence(model: SentenceTransformer) -> None:
    read = reader(model)
    found = read.preprocess([f"{TITLE}. {FIRST} {SECOND}", "cats"])
    words = [read.tokenizer.convert_ids_to_tokens(ids) for ids in found["input_ids"].tolist()]  # pyright: ignore[reportOptionalMemberAccess]
    owners = found["sentence_ids"]
    assert words[0][0] == "[CLS]" and owners[0, 0] == -1 and owners[0, found["attention_mask"][0].sum() - 1] == -1
    said = ["".join(w.removeprefix("##") for w, o in zip(words[0], owners[0].tolist()) if o == n) for n in range(3)]
    assert said == ["neuralcats[UNK]", "weproposeagraph[UNK]", "dogssleep[UNK]"]
    assert owners[1].tolist()[:2] == [-1, 0] and (owners[1, 2:] == -1).all() and found["attention_mask"][1].sum() == 3


def test_a_caller_who_knows_the_sentences_is_believed() -> None:
    assert split(f"One. Two{SENTENCE_END}three{SENTENCE_END}  ") == ["One. Two", "three"]
    assert split("One. Two") == ["One.", "Two"]


def test_whole_sentences_are_cut_from_the_end_and_never_the_title(model: SentenceTransformer) -> None:
    read = reader(model)
    long = SENTENCE_END.join(["cats " * 10, "dogs " * 40, "graph " * 20, "sleep"])
    kept = read.preprocess([long])
    assert kept["input_ids"].shape[1] == 10 + 40 + 2  # the third does not fit into 64; nothing behind it is read either
    assert kept["sentence_ids"].max() == 1
    title = read.preprocess(["cats " * 500])
    assert title["input_ids"].shape[1] == 64 and title["sentence_ids"].max() == 0
    assert read.preprocess([long], max_length=14)["input_ids"].shape[1] == 12


def test_tokens_are_those_of_the_tokenizer_however_it_was_used_before(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    read, texts = reader(model), [f"{TITLE}. {FIRST} {SECOND}", "cats " * 90, ""]
    tokenizer = read.tokenizer
    expected = read.preprocess(texts)
    tokenizer(texts, padding="max_length", truncation=True, max_length=7)  # pyright: ignore[reportCallIssue, reportOptionalCall]
    again = read.preprocess(texts)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    slow = read.preprocess(texts)
    for name in ("input_ids", "attention_mask", "sentence_ids"):
        assert torch.equal(again[name], expected[name]) and torch.equal(slow[name], expected[name])
    ids = tokenizer(FIRST, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportCallIssue, reportOptionalCall]
    assert expected["input_ids"][0][expected["sentence_ids"][0] == 1].tolist() == ids


def test_a_base_of_bytes_reads_the_spaces_between_sentences(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    engine.train_from_iterator([FIRST, SECOND] * 9, trainers.BpeTrainer(vocab_size=300, show_progress=False))  # pyright: ignore[reportCallIssue]
    PreTrainedTokenizerFast(tokenizer_object=engine).save_pretrained(tmp_path)
    sizes = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, max_position_embeddings=600)).save_pretrained(tmp_path)
    model = build(tmp_path, device="cpu")
    read = reader(model)
    assert model.max_seq_length == 512, "as many as it reads, 512 at most"
    found = read.preprocess([f"{FIRST} {SECOND}", "Dogs"])  # padded without a token for it
    kept = found["input_ids"][0][found["attention_mask"][0] == 1]
    assert read.tokenizer.decode(kept) == f"{FIRST} {SECOND}"  # pyright: ignore[reportOptionalMemberAccess]


def test_more_tokens_than_a_base_can_read_are_refused(bert: Path) -> None:
    assert build(bert / "../base", length=64, device="cpu").max_seq_length == 64
    with pytest.raises(ValueError, match="it reads 64 tokens at most, not 65; lower model"):
        build(bert / "../base", length=65, device="cpu")


def test_what_is_no_text_and_processing_options_are_refused(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="a text was expected, not list"):
        reader(model).preprocess([["a", "b"]])
    with pytest.raises(ValueError, match="set max_seq_length"):
        reader(model).preprocess(["a"], processing_kwargs={"text": {"padding": False}})


def test_vectors_do_not_depend_on_company(model: SentenceTransformer) -> None:
    several = [f"{TITLE}. {FIRST}", "cats", "", f"{FIRST} {SECOND} {FIRST}"]
    together = model.encode_document(several)
    for text, vector in zip(several, together):
        np.testing.assert_allclose(model.encode_document([text])[0], vector, atol=1e-5)
    assert (together[2] == 0).all() and np.isfinite(together).all()
    lengths = np.linalg.norm(together[[0, 1, 3]], axis=1)
    np.testing.assert_allclose(lengths, (0.6 + 0.4 * 3) ** 0.5, rtol=1e-5)  # one constant, so that ranks by product are ranks by cosine


def test_a_saved_model_gives_the_same_vectors_by_either_loader(model: SentenceTransformer, tmp_path: Path) -> None:
    model.save(str(tmp_path / "model"))
    texts = [f"{TITLE}. {FIRST} {SECOND}", "cats"]
    for again in (load(tmp_path / "model", device="cpu"), SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")):
        assert (again.encode_document(texts) == model.encode_document(texts)).all()
        assert (again.encode_query(texts, facet="result") == model.encode_query(texts, facet="result")).all()
        assert again.similarity_fn_name == "dot"
    assert is_faceted(tmp_path / "model")


def test_the_documented_line_works_in_a_process_that_has_not_imported_tacit(model: SentenceTransformer, tmp_path: Path) -> None:
    model.save(str(tmp_path / "model"))
    line = "from sentence_transformers import SentenceTransformer as S; print(S('model', trust_remote_code=True).encode_document(['cats']).tolist())"
    out = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(np.array(eval(out.strip().splitlines()[-1])), model.encode_document(["cats"]), atol=1e-6)


def test_other_models_are_told_apart(bert: Path, tmp_path: Path) -> None:
    assert not is_faceted(bert)
    with pytest.raises(ValueError, match="is no UniFAR-style model: it has a module sentence_transformers"):
        load(bert)
    with pytest.raises(ValueError, match=r"there is no modules\.json"):
        load(tmp_path)
    with pytest.raises(ValueError, match="ends in Pooling, not in FacetPooling"):
        pooling_of(SentenceTransformer(str(bert)))


# --- the loss ---

ROWS = [
    [
        f"{TITLE}. {FIRST}",
        "Cats sleep. Dogs sleep.",
        "A graph of dogs.",
        "which work proposes a graph",
        f"{TITLE}. {SECOND}",
        f"{FIRST}{SENTENCE_END}{SECOND}",
    ],
    ["Dogs. We sleep.", "Dogs sleep.", "", "which work has cats", "Neural cats sleep.", f"{SECOND}{SENTENCE_END}{FIRST}{SENTENCE_END}{TITLE}"],
]
LABELS = torch.tensor([[1, 1, 1, 2, -1], [-1, -1, 2, -1, 0]])


def terms(model: SentenceTransformer, options: LossOptions) -> dict[str, torch.Tensor]:
    columns = ("anchor", "positive", "negative", "question", "answer", "labelled")
    given = [model.preprocess([row[columns.index(name)] for row in ROWS]) for name in options.columns]
    return FacetLoss(model, options)(given, LABELS)


def test_terms_are_what_their_formulas_say(model: SentenceTransformer) -> None:
    options = LossOptions(temperature=0.1, question=0.5, roles=0.3, orthogonality=0.02)
    found = terms(model, options)
    assert list(found) == ["pairs", "question", "intent", "roles", "orthogonality"]
    anchor, positive, negative = (torch.from_numpy(model.encode_document([row[n] for row in ROWS])) for n in range(3))
    weights = torch.tensor([[0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    scores = f.weighed(anchor, weights) @ torch.cat([positive, negative[:1]]).T
    assert found["pairs"].item() == pytest.approx(float(torch.nn.functional.cross_entropy(scores / 0.1, torch.tensor([0, 1])).detach()), rel=1e-4)
    question, answer = (
        torch.from_numpy(model.encode_query([row[3] for row in ROWS])),
        torch.from_numpy(model.encode_document([row[4] for row in ROWS])),
    )
    expected = 0.5 * torch.nn.functional.cross_entropy(question @ answer.T / 0.1, torch.tensor([0, 1]))
    assert found["question"].item() == pytest.approx(float(expected), rel=1e-4)
    told = model.encode([row[5] for row in ROWS], output_value=None)
    log_p = torch.stack([told[row]["sentence_roles"][n] for row, n in ((0, 0), (0, 1), (1, 0), (1, 2))])
    target = f.smoothed(LABELS[:, ROLES:][LABELS[:, ROLES:] >= 0], 3, 0.1)
    assert found["roles"].item() == pytest.approx(float(0.3 * f.kl(target, log_p)), rel=1e-4)
    assert LABELS[0, FACET] == 1 and LABELS[1, INTENT] == -1  # read above: the first pair is of one facet, the second question of none


def test_6_10_a_term_that_weighs_nothing_changes_no_bit(model: SentenceTransformer) -> None:
    def gradients(options: LossOptions) -> list[torch.Tensor | None]:
        model.zero_grad()
        sum(terms(model, options).values(), torch.zeros(())).backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    alone = gradients(LossOptions(question=0, roles=0, orthogonality=0))
    assert LossOptions(question=0, roles=0).columns == ("anchor", "positive", "negative")
    model.zero_grad()
    given = [model.preprocess([row[n] for row in ROWS]) for n in range(3)]
    anchor, positive, negative = (model(dict(g), task="document")["sentence_embedding"] for g in given)
    weights = torch.tensor([[0, 1, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    f.info_nce(f.candidates(f.weighed(anchor, weights.float()), positive, negative), 0.05).backward()
    for a, p in zip(alone, model.parameters()):
        assert (a is None and p.grad is None) or torch.equal(a, p.grad)  # pyright: ignore[reportArgumentType]


def test_matching_teaches_the_intent_and_not_the_document(model: SentenceTransformer) -> None:
    options = LossOptions(pairs=0, kl="match", orthogonality=0)
    model.zero_grad()
    terms(model, options)["intent"].backward()
    assert pooling_of(model).intent_projection.grad.abs().max() > 0  # pyright: ignore[reportOptionalMemberAccess]
    assert pooling_of(model).out.weight.grad is None  # which only facet vectors go through


def test_nothing_to_learn_from_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        FacetLoss(model, LossOptions(pairs=0, question=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same(model: SentenceTransformer, dtype: torch.dtype) -> None:
    texts = [f"{TITLE}. {FIRST} {SECOND}", "cats", ""]
    exact, half = model.encode_document(texts, convert_to_tensor=True), copy.deepcopy(model).to(dtype)
    found = half.encode_document(texts, convert_to_tensor=True)
    assert found.dtype == dtype and (found.float() - exact).abs().max() < 0.02 and not found[2].any()
    assert half.encode_query(texts, facet="result", convert_to_tensor=True).isfinite().all()


def test_what_was_read_can_be_read_again(model: SentenceTransformer) -> None:
    features = model.preprocess([f"{TITLE}. {FIRST}"])
    first, second = (model(features)["sentence_embedding"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_facet_of_a_document_is_refused(model: SentenceTransformer) -> None:
    for encode in (model.encode, model.encode_document):
        with pytest.raises(ValueError, match="a facet weighs what asks: give it to encode_query"):
            encode(["cats"], facet="method")


def test_prompts_and_similarity_come_back_as_they_were_saved(bert: Path, tmp_path: Path) -> None:
    made = build(bert / "../base", device="cpu")
    made.prompts, made.similarity_fn_name = {"query": "cats ", "document": ""}, "cosine"  # pyright: ignore[reportAttributeAccessIssue]
    made.save(str(tmp_path), create_model_card=False)
    found, theirs = load(tmp_path), SentenceTransformer(str(tmp_path), trust_remote_code=True)
    assert found.similarity_fn_name == theirs.similarity_fn_name == "cosine"
    assert np.array_equal(found.encode_query(["dogs"]), theirs.encode_query(["dogs"]))
    assert np.array_equal(found.encode_query(["dogs"]), found.encode_query(["cats dogs"], prompt=""))
