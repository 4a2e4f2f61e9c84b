from __future__ import annotations

import logging
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tacit.core import treeattention
from tacit.core.layout import lay_out_tree
from tacit.core.rollouts import Ragged
from tacit.core.scorer import TokenScorer
from tacit.core.treeattention import LIKE, SHORT, Block, Tree, like

PROMPTS = torch.tensor([3, 1, 5])
COMPLETIONS = torch.tensor([40, 31, 12, 12, 9, 4, 1])  # three blocks, of which one is padded
PROMPT = torch.tensor([1, 0, 2, 0, 0, 2, 1])


def test_a_block_by_hand():
    block = Block.of(torch.tensor([2, 0, 1]))
    x = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    padded = block.pad(x)
    assert padded[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]] and block.flat(padded).tolist() == x.tolist()
    (padded * torch.arange(6.0).view(3, 2, 1)).sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [0, 1, 4]
    even = Block.of(torch.tensor([1, 1]))
    assert even.places is None and even.pad(x[:2]).shape == (2, 1, 1)


@given(st.lists(st.integers(1, 200), max_size=40))
def test_blocks_are_of_like_lengths(lengths):
    lengths = sorted(lengths, reverse=True)
    sizes = list(like(lengths))
    assert sum(sizes) == len(lengths) and all(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for start, end in pairwise(starts):
        assert lengths[end - 1] >= LIKE * lengths[start] or lengths[start] <= SHORT
        assert end == len(lengths) or lengths[end] < LIKE * lengths[start]


def test_it_is_the_attention_of_a_row_for_each_completion():
    """Values and gradients, in float64."""
    tree = Tree.of(PROMPTS, COMPLETIONS, PROMPT)
    assert [b.block.rows for b in tree.branches] == [2, 3, 2] and tree.sizes == [9, 71, 33, 5]
    generator = torch.Generator().manual_seed(0)
    given_ = [torch.randn(9 + 109, 2, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]
    weights = torch.randn(118, 2, 4, dtype=torch.float64, generator=generator)
    trunks, own = ([x[:9].split(PROMPTS.tolist()) for x in given_], [x[9:].split(COMPLETIONS.tolist()) for x in given_])
    rows = [trunks, *([[torch.cat([t[p], o[i]]) for t, o in zip(trunks, own, strict=True)] for i, p in enumerate(PROMPT.tolist())])]

    def causal(q, k, v):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(0, 1)

    expected = torch.cat(
        [*(causal(*(t[p] for t in trunks)) for p in range(3)), *(causal(*row)[-n:] for row, n in zip(rows[1:], COMPLETIONS.tolist(), strict=True))]
    )
    found = tree.attend(*given_, 0.3)
    assert_close(found, expected, rtol=0, atol=1e-12)
    plain, along = (torch.autograd.grad((x * weights).sum(), given_) for x in (expected, found))
    assert_close(along, plain, rtol=0, atol=1e-12)


def model_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":  # norms that stay in float64
        model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    else:  # two queries to a key
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=13, **sizes))
    return model.double()


@pytest.mark.parametrize(("kind", "exact"), [("gpt2", 1e-9), ("llama", 1e-5)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_of_a_model(kind, exact, checkpointing):
    """Unlike lengths, empty completions, one prompt alone; also when activations are made again in backward. Llama's norms go through float32."""
    generator = torch.Generator().manual_seed(1)
    tokens = lambda n: torch.randint(13, (n,), generator=generator).tolist()  # noqa: E731
    texts = [tokens(5), tokens(2), tokens(3)]
    prompts = Ragged.from_lists([texts[i] for i in (0, 1, 0, 1, 0, 2, 0)])
    completions = Ragged.from_lists([tokens(n) for n in (30, 0, 1, 12, 9, 4, 0)])
    model = model_of(kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    scorer, weights = TokenScorer(model), torch.linspace(-1, 2, 56, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    found = []
    for shared in (False, True):
        logp = scorer(prompts, completions, 0, shared=shared).logp
        found.append((logp, torch.autograd.grad(logp @ weights, list(model.parameters()))))
    assert scorer.shares
    assert_close(found[1][0], found[0][0], rtol=0, atol=1e-9 if kind == "gpt2" else 1e-6)
    assert_close(found[1][1], found[0][1], rtol=0, atol=exact)


def test_a_model_that_does_not_heed_the_tree_keeps_its_attention(caplog, monkeypatch):
    model = model_of("llama")
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *args, tree=None, **more: forward(*args, **more))
    scorer = TokenScorer(model)  # pyright: ignore[reportArgumentType]
    prompts, completions = Ragged.from_lists([[1, 2, 3]] * 3), Ragged.from_lists([[4, 5], [6], [7, 8, 9]])
    with caplog.at_level(logging.INFO, "tacit"):
        scorer(prompts, completions, 0, shared=True)
    assert scorer.shares is False and model.config._attn_implementation == "sdpa"
    assert "LlamaForCausalLM mixes completions that share a prompt: each gets a row of its own" in caplog.text


def test_the_implementation_stays_and_does_what_torch_does():
    """Other passes of the model, and its saved config, do not know the difference."""
    model, ids = model_of("llama"), torch.tensor([[1, 2, 3, 4]])
    before = model(input_ids=ids).logits
    scorer = TokenScorer(model)  # pyright: ignore[reportArgumentType]
    scorer(Ragged.from_lists([[1, 2, 3]] * 3), Ragged.from_lists([[4, 5], [6], [7, 8, 9]]), 0, shared=True)
    assert model.config._attn_implementation == treeattention.NAME
    assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    assert treeattention.NAME not in model.config.to_json_string()


def test_rows_are_kept_where_little_is_saved():
    scorer = TokenScorer(model_of("llama"))  # pyright: ignore[reportArgumentType]
    alike = Ragged.from_lists([[1] * 16] * 2), Ragged.from_lists([[2] * 64] * 2)
    assert scorer._sharing_pays(*alike)  # 16 + 126 tokens of 160
    assert not scorer._sharing_pays(Ragged.from_lists([[1] * 16, [3] * 16]), alike[1])
    assert lay_out_tree(*alike).inputs["input_ids"].shape == (1, 142)
