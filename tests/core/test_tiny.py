from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tacit.config import TinyConfig
from tacit.core.tiny import EOS_ID, PAD_ID, char_tokenizer, check_characters, tiny_model

ALPHABET = "0123456789: \n\t<eos>é√"
FAMILIES = ["llama", "qwen2", "qwen3"]
IDS = torch.tensor([[2, 5, 3, 4]])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return char_tokenizer(ALPHABET)


def test_vocabulary_is_small_sorted_and_independent_of_how_the_alphabet_is_written(tokenizer):
    assert len(tokenizer) == 2 + len(set(ALPHABET))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (PAD_ID, EOS_ID, None, None)
    assert char_tokenizer("cab").get_vocab() == char_tokenizer("abcabc").get_vocab() == {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4}


@given(text=st.text(alphabet=sorted(set(ALPHABET))))
def test_decode_inverts_encode(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_are_not_text(tokenizer):
    written = tokenizer("<eos>")["input_ids"]
    assert EOS_ID not in written and len(written) == 5
    assert tokenizer.decode([*written, EOS_ID, PAD_ID], skip_special_tokens=True) == "<eos>"


def test_tokenizer_round_trip_through_a_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = "12:\n <eos> é√\t"
    for again in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert isinstance(again, PreTrainedTokenizerFast)
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
        assert (again.pad_token_id, again.eos_token_id) == (PAD_ID, EOS_ID)


def test_unknown_characters_are_refused_with_a_reason(tokenizer):
    with pytest.raises(ValueError, match=r"knows only the characters .*0123456789.*'xy' cannot be encoded"):
        check_characters(tokenizer, "1y2x")
    check_characters(tokenizer, ALPHABET)
    with pytest.raises(Exception, match="Missing"):  # and nothing is lost without the check: the tokenizer itself refuses
        tokenizer("x")


def test_other_tokenizers_take_any_text():
    check_characters(PreTrainedTokenizerFast(tokenizer_object=_byte_level()), "any text")


def _byte_level():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE())


def test_empty_alphabet():
    with pytest.raises(ValueError, match="alphabet is empty"):
        char_tokenizer("")


@pytest.mark.parametrize("family", FAMILIES)
def test_default_size_and_ids(family, tokenizer):
    model = tiny_model(TinyConfig(family=family), tokenizer)
    assert model.config.model_type == family
    assert 0.2e6 < model.num_parameters() < 0.22e6
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (EOS_ID, PAD_ID)
    assert model.config.head_dim * model.config.num_attention_heads == model.config.hidden_size
    assert not model.training


def test_size_counts_out_by_hand():
    """qwen2, hidden 8, 1 layer, 2 heads, mlp 16, 5 tokens: embeddings 40; q, k, v 3·(64 + 8), o 64; mlp 3·128; three norms 24."""
    config = TinyConfig(family="qwen2", hidden=8, layers=1, heads=2, mlp=16)
    assert tiny_model(config, 5).num_parameters() == 40 + 3 * 72 + 64 + 384 + 24


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_weights_and_the_global_state_is_left_alone(family, tokenizer):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a = tiny_model(TinyConfig(family=family), tokenizer, seed=1)
    assert torch.equal(torch.rand(3), expected)
    b, c = (tiny_model(TinyConfig(family=family), tokenizer, seed=s) for s in (1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.get_input_embeddings().weight, c.get_input_embeddings().weight)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_dtype_rounds_the_same_weights_and_keeps_positions_exact(dtype, tolerance, tokenizer):
    single, other = tiny_model(TinyConfig(), tokenizer), tiny_model(TinyConfig(), tokenizer, dtype=dtype)
    assert other.dtype == other.config.dtype == dtype
    assert {b.dtype for b in other.buffers()} == {torch.float32}
    for a, b in zip(single.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.to(dtype), b)
    assert (single(IDS).logits - other(IDS).logits.float()).abs().max() < tolerance * single(IDS).logits.abs().max()


def test_initial_scale_grows_as_the_model_narrows(tokenizer):
    for hidden in (16, 64):
        weight = tiny_model(TinyConfig(hidden=hidden), tokenizer).get_input_embeddings().weight[2:].detach()
        assert float(weight.std()) == pytest.approx(1 / math.sqrt(hidden), rel=0.15)


def test_model_round_trip_through_a_folder(tokenizer, tmp_path):
    model = tiny_model(TinyConfig(family="qwen3", kv_heads=2), tokenizer)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(IDS).logits, again(IDS).logits)
    assert again.generation_config.eos_token_id == EOS_ID


def test_a_vocabulary_size_stands_for_a_character_tokenizer(tokenizer):
    a, b = tiny_model(TinyConfig(), tokenizer), tiny_model(TinyConfig(), len(tokenizer))
    assert torch.equal(a(IDS).logits, b(IDS).logits)
    assert a.generation_config.to_dict() == b.generation_config.to_dict()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [({"hidden": 60, "heads": 4}, r"hidden \(60\) must be an even multiple of heads \(4\)"), ({"kv_heads": 3}, r"multiple of kv_heads \(3\)")],
)
def test_sizes_that_do_not_fit(sizes, told):
    with pytest.raises(ValueError, match=told):
        tiny_model(TinyConfig(**sizes), 10)
