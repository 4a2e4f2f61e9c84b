"""Policy and its scorer: log-probs are those of the plain model whatever the layout, and what is saved is what it was."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    T5Config,
)

from tacit.config import LoraConfig, ModelConfig, TinyConfig
from tacit.core import tiny
from tacit.core.layout import micro_batches
from tacit.core.policy import Policy, add_lora, load_policy
from tacit.core.rollouts import Prompt, Ragged
from tacit.core.scorer import evaluating

ALPHABET = "0123456789 +="
TOKENIZER = tiny.char_tokenizer(ALPHABET)
V = len(TOKENIZER)
SMALL = TinyConfig(hidden=16, layers=2, heads=2, mlp=24, context=64)
SPECIAL: dict[str, Any] = {"vocab_size": V, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
WIDTHS: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
GROUPED = WIDTHS | {"num_key_value_heads": 1, "head_dim": 8}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny.tiny_model(SMALL.model_copy(update={"family": "llama", "kv_heads": 1}), V),
    "qwen2": lambda: tiny.tiny_model(SMALL, V),
    "qwen3": lambda: tiny.tiny_model(SMALL.model_copy(update={"family": "qwen3"}), V),
    "untied": lambda: LlamaForCausalLM(LlamaConfig(**SPECIAL, **GROUPED, tie_word_embeddings=False)),
    "bias": lambda: PhiForCausalLM(PhiConfig(**SPECIAL, **WIDTHS)),  # in the head
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SPECIAL, n_embd=16, n_layer=2, n_head=2, n_positions=64)),  # learned positions, dropout 0.1
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SPECIAL, **GROUPED, sliding_window=8, final_logit_softcapping=5.0)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SPECIAL, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SPECIAL, hidden_size=16, n_layer=2, n_head=2)),
}
EXACT = dict.fromkeys(MODELS, 1e-12) | {"gemma2": 1e-6, "bloom": 1e-6}  # these two go through fp32 somewhere, whatever their weights are
PACKING = ["llama", "qwen2", "qwen3", "untied", "bias", "gpt2", "gemma2"]

PROMPTS = Ragged.from_lists([[3, 4, 5], [6], [7, 8, 9, 10, 2, 3], [4, 4], [5] * 10, [9, 8]])
COMPLETIONS = Ragged.from_lists([[5, 1], [7, 8, 9, 10, 11, 12, 1], [], [3], list(range(2, 14)), [1]])


def build(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model far from uniform, so that a mistake shows: freshly initialised ones are nearly blind to their input."""
    torch.manual_seed(1)
    model = MODELS[name]().to(dtype).eval()
    for p in model.parameters():
        if p.ndim >= 2:
            p.data *= 5
    return model


def policy(name: str = "qwen2", dtype: torch.dtype = torch.float64, **options: Any) -> Policy:
    return Policy(build(name, dtype), TOKENIZER, **options)


def plain(model: nn.Module, prompts: Ragged = PROMPTS, completions: Ragged = COMPLETIONS, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies row by row, without padding, from the model's own logits."""
    logp, entropy = [], []
    for before, after in zip(prompts.to_lists(), completions.to_lists(), strict=True):
        logits = model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0, len(before) - 1 : -1] if after else torch.empty(0, V)
        log_softmax = (logits / temperature).log_softmax(-1)
        logp.append(log_softmax.gather(-1, torch.tensor(after, dtype=torch.int64)[:, None])[:, 0])
        entropy.append(-(log_softmax.exp() * log_softmax).sum(-1))
    return torch.cat(logp), torch.cat(entropy)


def gradients(p: Policy, loss: Tensor) -> dict[str, Tensor]:
    names, params = zip(*p.trainable(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True), strict=True))


def step(p: Policy) -> None:
    """One update that changes everything that trains."""
    p.score(PROMPTS, COMPLETIONS).logp.sum().backward()
    with torch.no_grad():
        for _, parameter in p.trainable():
            parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0.0
            parameter.grad = None


# --- one forward pass ---


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_of_the_plain_model(name):
    p = policy(name)
    expected = plain(p.model, temperature=0.7)
    stats = p.token_stats(PROMPTS, COMPLETIONS, temperature=0.7, entropy=True)
    torch.testing.assert_close((stats.logp, stats.entropy), expected, rtol=0, atol=EXACT[name])
    assert stats.hidden is None and p.token_stats(PROMPTS, COMPLETIONS).entropy is None
    assert p.scorer._plain_head == (name != "gemma2")


@pytest.mark.parametrize("name", ["qwen2", "bias", "gemma2"])
def test_gradients_of_the_plain_model(name):
    p = policy(name)
    weights = torch.linspace(-1, 1, len(COMPLETIONS.values), dtype=torch.float64)
    p.disable_dropout()
    stats = p.score(PROMPTS, COMPLETIONS, entropy=True)
    logp, entropy = plain(p.model)
    found, expected = (gradients(p, (a * weights).sum() + b.sum()) for a, b in [(stats.logp, stats.entropy), (logp, entropy)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e3 * EXACT[name])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_hidden_states_are_those_the_head_reads(name):
    p = policy(name)
    hidden = p.token_stats(PROMPTS, COMPLETIONS, hidden=True).hidden
    head = p.model.get_output_embeddings()
    seen: list[Tensor] = []
    with head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        for before, after in zip(PROMPTS.to_lists(), COMPLETIONS.to_lists(), strict=True):
            p.model(input_ids=torch.tensor([before + after]))
            seen[-1] = seen[-1][0, len(before) - 1 : -1] if after else torch.empty(0, 16)
    torch.testing.assert_close(hidden, torch.cat(seen), rtol=0, atol=EXACT[name])


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma2"])
def test_padding_row_order_and_micro_batches_do_not_matter(name):
    p = policy(name)
    p.disable_dropout()
    whole = p.token_stats(PROMPTS, COMPLETIONS, entropy=True, hidden=True)
    for budget in (1, 20, 45):
        other = p.token_stats(PROMPTS, COMPLETIONS, entropy=True, hidden=True, micro_batch_tokens=budget)
        torch.testing.assert_close(astuple(other), astuple(whole), rtol=0, atol=EXACT[name])
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    moved = Ragged(whole.logp, COMPLETIONS.offsets).select(order).values
    torch.testing.assert_close(p.token_stats(PROMPTS.select(order), COMPLETIONS.select(order)).logp, moved, rtol=0, atol=EXACT[name])
    alone = p.token_stats(PROMPTS.select(torch.tensor([1])), COMPLETIONS.select(torch.tensor([1]))).logp  # no padding at all
    torch.testing.assert_close(alone, Ragged(whole.logp, COMPLETIONS.offsets)[1], rtol=0, atol=EXACT[name])

    weights = Ragged(torch.linspace(-1, 1, len(COMPLETIONS.values), dtype=torch.float64), COMPLETIONS.offsets)
    losses = []
    for parts in ([torch.arange(6)], [order[:1], order[1:3], order[3:]], micro_batches(PROMPTS.lengths + COMPLETIONS.lengths, 20)):
        scored = [p.score(PROMPTS.select(i), COMPLETIONS.select(i)).logp * weights.select(i).values for i in parts]
        losses.append(gradients(p, torch.cat(scored).sum()))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=0, atol=1e3 * EXACT[name])


def test_empty_completions():
    p = policy()
    prompts, nothing = Ragged.from_lists([[3, 4], [5]]), Ragged.from_lists([[], []])
    stats = p.token_stats(prompts, nothing, entropy=True, hidden=True)
    assert stats.logp.shape == stats.entropy.shape == (0,) and stats.hidden.shape == (0, 16)
    p.score(prompts, nothing).logp.sum().backward()
    none = torch.empty(0, dtype=torch.int64)
    assert p.token_stats(prompts.select(none), nothing.select(none)).logp.shape == (0,)
    with pytest.raises(AssertionError, match="must not be empty"):
        p.score(nothing, prompts)


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 50))
def test_every_row_is_in_one_micro_batch(lengths, budget):
    parts = micro_batches(torch.tensor(lengths, dtype=torch.int64), budget)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part.tolist()) <= budget for part in parts)


def test_micro_batches_keep_to_their_budget():
    lengths = torch.tensor([3, 9, 0, 4, 9, 1])
    parts = micro_batches(lengths, 12)
    assert [part.tolist() for part in parts] == [[1], [4], [3, 0, 5], [2]]
    assert [part.tolist() for part in micro_batches(lengths, 1)] == [[1], [4], [3], [0], [5], [2]], "too long for the budget: alone"
    assert micro_batches(torch.empty(0, dtype=torch.int64), 12) == []


def test_bf16(tmp_path):
    exact, low = policy(dtype=torch.float32), policy(dtype=torch.float32, bf16=True)
    expected, found = (p.score(PROMPTS, COMPLETIONS, packed=True) for p in (exact, low))
    assert found.logp.dtype == torch.float32 and 0 < (found.logp - expected.logp).abs().max() < 0.5
    found.logp.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for _, p in low.trainable())
    assert low.scorer._plain_head and low.scorer._keeps_apart
    weights = Policy(build("gpt2", torch.bfloat16), TOKENIZER)
    assert weights.token_stats(PROMPTS, COMPLETIONS, packed=True).logp.dtype == torch.float32
    assert weights.scorer._plain_head and weights.scorer._keeps_apart


# --- completions that share their prompt ---


SHARING = {"llama", "qwen2", "qwen3", "untied", "bias", "gpt2", "opt"}  # the others slide, or attend in a way of their own


@pytest.mark.parametrize("name", MODELS)
def test_sharing_a_prompt_changes_nothing(name, caplog):
    """Log-probs, entropies and gradients, where it is done; where it cannot be done, it is not done, and said."""
    prompts = Ragged.from_lists([[3, 4, 5, 6, 7, 8], [4, 5], [3, 4, 5, 6, 7, 8], [4, 5], [3, 4, 5, 6, 7, 8]])
    completions = Ragged.from_lists([[5, 6, 7], [3, 1], [9, 8], [4], [5, 6, 4, 3]])
    p = policy(name)
    p.disable_dropout()
    weights = torch.linspace(-1, 1, len(completions.values), dtype=torch.float64)
    with caplog.at_level(logging.INFO, "tacit"):
        stats = [p.score(prompts, completions, temperature=0.7, entropy=True, hidden=True, shared=shared) for shared in (False, True)]
    assert p.scorer.shares == (name in SHARING) == ("mixes completions" not in caplog.text)
    for one, other in zip(*((s.logp, s.entropy, s.hidden) for s in stats), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=EXACT[name])
    plain_gradients, shared_gradients = (gradients(p, (s.logp * weights).sum() + s.entropy.sum()) for s in stats)
    rounds = 1e-5 if name not in ("bias", "gpt2", "opt") else 1e-9  # RMSNorm goes through fp32, also backwards, where gradients are already summed
    torch.testing.assert_close(shared_gradients, plain_gradients, rtol=0, atol=rounds)
    [parts] = p.shared_out(prompts, completions, 1, budget=16)
    assert [sorted(part.tolist()) for part in parts] == ([[0, 2, 4], [1, 3]] if name in SHARING else [[4], [0], [1, 2], [3]])


# --- heads that do more, rows that are shared ---


@pytest.mark.parametrize("scale", [1.0, 5.0], ids=["fresh", "grown"])
def test_soft_capping_is_found_out_before_it_matters(scale, caplog):
    """Fresh weights give logits far below the cap, where capping changes less than rounding does; later it would change everything."""
    torch.manual_seed(0)
    model = MODELS["gemma2"]().eval()
    for p in model.parameters():
        p.data *= scale if p.ndim >= 2 else 1
    with caplog.at_level(logging.INFO, "tacit"):
        p = Policy(model, TOKENIZER)
        for _ in range(2):
            p.score(PROMPTS, COMPLETIONS)
    assert not p.scorer._plain_head
    assert [r.getMessage() for r in caplog.records if r.name == "tacit"] == [
        "Gemma2ForCausalLM does more than a matrix product in its head: log-probs are taken from its full logits"
    ]


def test_a_wrapped_head(caplog):
    p = Policy(add_lora(build("untied"), LoraConfig(rank=2, target=["lm_head", "q_proj"])), TOKENIZER)
    step(p)
    torch.testing.assert_close(p.token_stats(PROMPTS, COMPLETIONS).logp, plain(p.model)[0].detach(), rtol=0, atol=1e-12)
    assert not p.scorer._plain_head


@pytest.mark.parametrize("name", PACKING)
def test_packed_rows(name):
    p = policy(name)
    p.disable_dropout()
    prompts = Ragged.from_lists([[2 + i] * n for i, n in enumerate([1, 20, 2, 3, 1, 1, 8, 2])])
    completions = Ragged.from_lists([[1 + (i + j) % (V - 1) for j in range(n)] for i, n in enumerate([30, 1, 2, 7, 1, 0, 3, 12])])
    shapes: list[torch.Size] = []
    apart = p.score(prompts, completions, entropy=True)
    p.score(prompts, completions, packed=True)
    p.model.register_forward_pre_hook(lambda _, a, k: shapes.append(k["input_ids"].shape), with_kwargs=True)
    p.model.base_model.register_forward_pre_hook(lambda _, a, k: shapes.append(k["input_ids"].shape), with_kwargs=True)
    packed = p.score(prompts, completions, entropy=True, packed=True)
    assert shapes[-1] == (4, 31) and p.scorer._keeps_apart
    torch.testing.assert_close((packed.logp, packed.entropy), (apart.logp, apart.entropy), rtol=0, atol=EXACT[name])
    torch.testing.assert_close(gradients(p, packed.logp.sum()), gradients(p, apart.logp.sum()), rtol=1e-9, atol=1e3 * EXACT[name])


def barely_mixing() -> PreTrainedModel:
    torch.manual_seed(0)
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SPECIAL, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()


def only_single_rows(model: PreTrainedModel) -> PreTrainedModel:
    """A model that heeds positions which start again only when it is given one row, as some attention kernels do."""
    forward = model.model.forward
    model.model.forward = lambda *args, position_ids=None, **k: forward(*args, **k, position_ids=position_ids if len(k["input_ids"]) == 1 else None)
    return model


@pytest.mark.parametrize(
    "build_it",
    [lambda: build("opt"), barely_mixing, lambda: build("bloom"), lambda: only_single_rows(build("llama"))],
    ids=["ignores positions", "mixes little, as yet", "takes no positions", "heeds them in a single row"],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_that_mixes_packed_rows_gets_a_row_each(build_it, bf16, caplog):
    model = build_it()
    p = Policy(model.float() if bf16 else model, TOKENIZER, bf16=bf16)
    p.disable_dropout()
    with caplog.at_level(logging.INFO, "tacit"):
        packed = [p.score(PROMPTS, COMPLETIONS, packed=True).logp for _ in range(2)]
    assert torch.equal(packed[0], p.score(PROMPTS, COMPLETIONS).logp) and torch.equal(packed[0], packed[1])
    assert [r.getMessage() for r in caplog.records if r.name == "tacit"] == [
        f"{type(model).__name__} mixes the examples of a packed row: each gets a row of its own"
    ]


# --- dropout ---


def test_measuring_is_free_of_dropout_and_draws_no_random_numbers():
    p = policy("gpt2")
    expected = plain(p.model)[0]
    p.model.train()
    p.model.transformer.drop.eval()
    state = torch.get_rng_state()
    torch.testing.assert_close(p.token_stats(PROMPTS, COMPLETIONS, packed=True).logp, expected.detach(), rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state), "a resumed run finds out about its model again, and must not draw for it"
    assert p.model.training and p.model.transformer.h[1].training and not p.model.transformer.drop.training, "modes are as they were"


def test_training_has_dropout_until_it_is_disabled():
    p = policy("gpt2")
    before = plain(p.model)[0]
    assert (p.score(PROMPTS, COMPLETIONS).logp - before).abs().max() > 0.01 and p.model.training
    with torch.no_grad():
        torch.testing.assert_close(p.score(PROMPTS, COMPLETIONS).logp, before.detach(), rtol=0, atol=1e-12)
    p.disable_dropout()
    torch.testing.assert_close(p.score(PROMPTS, COMPLETIONS).logp, before, rtol=0, atol=1e-12)
    adapted = Policy(add_lora(build("qwen2"), LoraConfig(rank=2, dropout=0.5)), TOKENIZER)
    step(adapted)
    adapted.disable_dropout()
    torch.testing.assert_close(adapted.score(PROMPTS, COMPLETIONS).logp, adapted.token_stats(PROMPTS, COMPLETIONS).logp, rtol=0, atol=1e-12)
    attention = LlamaForCausalLM(LlamaConfig(**SPECIAL, **GROUPED, attention_dropout=0.5)).double()
    p = Policy(attention, TOKENIZER)
    p.disable_dropout()
    torch.testing.assert_close(p.score(PROMPTS, COMPLETIONS).logp, p.token_stats(PROMPTS, COMPLETIONS).logp, rtol=0, atol=1e-12)


def test_evaluating_survives_an_error():
    model = nn.Dropout()
    with suppress(KeyError), evaluating(model):
        assert not model.training
        raise KeyError
    assert model.training


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_gradient_checkpointing(lora):
    """The same gradients, with the layers computed a second time in backward: in RL as well, where nobody else sets training mode."""
    found, calls = [], []
    for checkpointing in (False, True):
        config = ModelConfig(tiny=SMALL, dtype="float64", lora=lora, gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        p = load_policy(config, alphabet=ALPHABET)
        p.disable_dropout()
        for name, parameter in p.trainable():
            parameter.data += 0.1 if "lora_B" in name else 0.0
        count: list[int] = []
        p.base_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        p.score(PROMPTS, COMPLETIONS)
        count.clear()
        found.append(gradients(p, p.score(PROMPTS, COMPLETIONS).logp.sum()))
        calls.append(len(count))
    assert calls == [1, 2]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    assert any(g.any() for g in found[0].values())


# --- the reference ---


def test_reference_of_a_full_fine_tune():
    p = policy()
    before = p.token_stats(PROMPTS, COMPLETIONS).logp
    with pytest.raises(RuntimeError, match="call keep_reference\\(\\) before the first update"), p.reference():
        pass
    p.keep_reference()
    kept = p._reference
    step(p)
    p.keep_reference()
    assert p._reference is kept, "the first call counts"
    assert torch.equal(p.token_stats(PROMPTS, COMPLETIONS, reference=True).logp, before)
    assert (p.token_stats(PROMPTS, COMPLETIONS).logp - before).abs().max() > 0.01
    assert not any(q.requires_grad for q in kept.parameters()) and all(q.requires_grad for q in p.model.parameters())


def test_reference_of_an_adapter_is_the_model_without_it():
    base = build("qwen2")
    before = plain(base)[0].detach()
    p = Policy(add_lora(base, LoraConfig(rank=2)), TOKENIZER)
    p.keep_reference()
    assert p._reference is None, "no second copy of the weights"
    step(p)
    step(p)
    torch.testing.assert_close(p.token_stats(PROMPTS, COMPLETIONS, reference=True).logp, before, rtol=0, atol=1e-12)
    assert (p.token_stats(PROMPTS, COMPLETIONS).logp - before).abs().max() > 1e-4
    assert {"lora" in name for name, _ in p.trainable()} == {True}, "the adapter trains on"


# --- text and tokens ---


class Closing:
    """A tokenizer that closes every text, as T5's and others do."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        found = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"input_ids": [[*ids, 1] for ids in found] if add_special_tokens else found}


def test_encoding_and_decoding():
    p = policy()
    assert p.decode(p.encode_prompt(Prompt("a", "1 +2="))) == "1 +2="
    assert p.encode_completion("12") == [*TOKENIZER("12")["input_ids"], 1] and p.decode(p.encode_completion("12")) == "12"
    with pytest.raises(ValueError, match="prompt 'a' is empty after tokenisation"):
        p.encode_prompt(Prompt("a", ""))
    for encode in (lambda: p.encode_prompt(Prompt("a", "1?2")), lambda: p.encode_completion("1?2")):
        with pytest.raises(ValueError, match=r"knows only the characters .*'\?' cannot be encoded"):
            encode()


def test_a_tokenizer_that_closes_every_text():
    closing = Policy(build("qwen2"), Closing(TOKENIZER))
    assert closing.encode_prompt(Prompt("a", "12")) == TOKENIZER("12")["input_ids"]
    assert closing.encode_completion("12") == [*TOKENIZER("12")["input_ids"], 1], "one end, not two"
    with pytest.raises(ValueError, match="prompt 'a' is empty"):
        closing.encode_prompt(Prompt("a", ""))


TEMPLATE = "{% for m in messages %}{% if m.role == 'system' %}={% endif %}{{ m.content }}+{% endfor %}{% if add_generation_prompt %} {% endif %}"


def test_chat_template():
    tokenizer = copy.deepcopy(TOKENIZER)
    with pytest.raises(ValueError, match=r"model\.chat is on, but this tokenizer has no chat template; set model\.chat: false"):
        Policy(build("qwen2"), tokenizer, chat=True)
    tokenizer.chat_template = TEMPLATE
    read = lambda p: p.decode(p.encode_prompt(Prompt("a", "12")))  # noqa: E731
    assert read(Policy(build("qwen2"), tokenizer)) == "12"
    assert read(Policy(build("qwen2"), tokenizer, chat=True)) == "12+ "
    assert read(Policy(build("qwen2"), tokenizer, chat=True, system="99")) == "=99+12+ "


def test_what_ends_a_completion():
    model = build("qwen2")
    model.generation_config.eos_token_id = [4, 7]
    assert Policy(model, TOKENIZER).stop_ids == {1, 4, 7}
    silent = copy.deepcopy(TOKENIZER)
    silent.eos_token = silent.pad_token = None
    p = Policy(model, silent)
    assert p.stop_ids == {4, 7} and p.pad_id == 4 and p.encode_completion("1")[-1] == 4
    torch.testing.assert_close(p.token_stats(PROMPTS, COMPLETIONS).logp, policy().token_stats(PROMPTS, COMPLETIONS).logp, rtol=0, atol=1e-12)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"the tokenizer has no EOS token and .* no completion could end; set tokenizer\.eos_token"):
        Policy(model, silent)


def test_a_pad_token_beyond_the_embedding():
    """Tokenizers get a pad token added without the model being resized; what is never attended to need not be embedded."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    assert tokenizer.pad_token_id == V
    p = Policy(build("qwen2"), tokenizer)
    torch.testing.assert_close(p.token_stats(PROMPTS, COMPLETIONS).logp, policy().token_stats(PROMPTS, COMPLETIONS).logp, rtol=0, atol=1e-12)


def test_context():
    assert policy().context == 64 and policy("gpt2").context == 64
    assert policy("bloom").context == 2**31, "a model without a limit"


# --- saving ---


def lora_policy(dtype: torch.dtype = torch.float64) -> Policy:
    torch.manual_seed(5)
    return Policy(add_lora(build("untied", dtype), LoraConfig(rank=2)), TOKENIZER)


@pytest.mark.parametrize("make", [policy, lambda: policy("untied"), lora_policy], ids=["tied", "untied", "lora"])
def test_state_dict(make):
    p = make()
    step(p)
    step(p)
    state = {name: tensor.clone() for name, tensor in p.state_dict().items()}
    expected = p.token_stats(PROMPTS, COMPLETIONS).logp
    assert set(state) == {name for name, _ in p.trainable()} and not any(tensor.requires_grad for tensor in state.values())
    assert ("lm_head.weight" in state) == (make is not policy and not p.has_adapter)
    other = make()
    assert not torch.equal(other.token_stats(PROMPTS, COMPLETIONS).logp, expected)
    other.load_state_dict(state)
    assert torch.equal(other.token_stats(PROMPTS, COMPLETIONS).logp, expected)
    step(other)
    step(p)
    assert torch.equal(other.token_stats(PROMPTS, COMPLETIONS).logp, p.token_stats(PROMPTS, COMPLETIONS).logp), "tied weights stay tied"


def test_weights_of_another_model():
    p, state = policy(), policy("untied").state_dict()
    with pytest.raises(ValueError, match=r"^these weights belong to another model: 1 names or shapes differ, 'lm_head.weight' among them$"):
        p.load_state_dict(p.state_dict() | {"lm_head.weight": state["lm_head.weight"]})
    with pytest.raises(ValueError, match=r"another model: 1 names or shapes differ, 'model.norm.weight'"):
        p.load_state_dict(p.state_dict() | {"model.norm.weight": torch.zeros(8)})
    with pytest.raises(ValueError, match="belong to another model"):
        lora_policy().load_state_dict(state)


@pytest.mark.parametrize("name", ["qwen2", "llama", "untied", "gpt2"])
def test_a_saved_policy_is_an_ordinary_folder(name, tmp_path):
    p = policy(name, torch.float32)
    step(p)
    p.save(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    p.model.eval()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, p.model(ids).logits)
    again = load_policy(ModelConfig(path=str(tmp_path)))
    assert torch.equal(again.token_stats(PROMPTS, COMPLETIONS).logp, p.token_stats(PROMPTS, COMPLETIONS).logp)
    assert again.stop_ids == p.stop_ids and again.pad_id == p.pad_id and again.context == p.context and not again.model.training
    text = "1 + 2 = 3"
    assert again.encode_prompt(Prompt("a", text)) == p.encode_prompt(Prompt("a", text)) and again.decode(again.encode_completion(text)) == text
    with pytest.raises(ValueError, match="cannot be encoded"):
        again.encode_prompt(Prompt("a", "1?"))


def test_a_saved_adapter_is_merged_and_kept_beside(tmp_path):
    from peft import PeftModel

    p = lora_policy(torch.float32)
    step(p)
    step(p)
    p.save(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    p.model.eval()
    expected = p.model(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)
    beside = PeftModel.from_pretrained(build("untied", torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(beside(ids).logits, expected, rtol=0, atol=1e-6)
    assert torch.equal(p.model(ids).logits, expected) and p.has_adapter, "saving leaves the policy as it was"


# --- loading ---


@pytest.fixture
def folder(tmp_path) -> Path:
    policy(dtype=torch.float32).save(tmp_path / "good")
    return tmp_path / "good"


def test_load_policy(folder):
    p = load_policy(ModelConfig(path=str(folder), dtype="float64", attention="eager"))
    assert p.model.dtype == torch.float64 and p.model.config._attn_implementation == "eager"
    assert load_policy(ModelConfig(tiny=SMALL), folder=folder).model.config.hidden_size == 16, "a run that starts from another one"
    made = load_policy(ModelConfig(tiny=SMALL, attention="eager", dtype="bfloat16"), alphabet="ab", seed=3, bf16=True)
    assert made.model.config._attn_implementation == "eager" and made.model.dtype == torch.bfloat16 and made.bf16
    assert made.encode_completion("ab") == [2, 3, 1]
    first, again, other = (load_policy(ModelConfig(tiny=SMALL), alphabet="ab", seed=s).state_dict()["model.embed_tokens.weight"] for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match=r"name the policy: model\.path, model\.tiny or init"):
        load_policy(ModelConfig())


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "there is no such folder"),
        (without("config.json"), "Unrecognized model"),
        (without("model.safetensors"), "no file named model.safetensors"),
        (without("tokenizer.json", "tokenizer_config.json"), "it holds no tokenizer; save one beside the model"),
        (lambda f: (f / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "header"),
        (lambda f: (f / "config.json").write_text(json.dumps(T5Config().to_dict())), "T5Config"),
        (with_config(model_type="from_the_future"), "from_the_future"),
        (with_config(hidden_size=32), "mismatch"),
    ],
)
def test_a_folder_without_a_model(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(ValueError, match=f"^no causal LM could be loaded from '{folder}': .*{reason}") as caught:
        load_policy(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["somebody/some-model", "runs/demo/policy", "some-model"])
def test_a_hub_id_that_cannot_be_fetched(name):
    with pytest.raises(ValueError, match=f"^no causal LM could be loaded from '{name}': there is no such folder, and the hub gave none: ") as caught:
        load_policy(ModelConfig(path=name))
    assert "\n" not in str(caught.value)


def test_an_adapter_without_a_place():
    with pytest.raises(ValueError, match="nowhere"):
        load_policy(ModelConfig(tiny=SMALL, lora=LoraConfig(target=["nowhere"])), alphabet="ab")
