from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from tacit.config import LoraConfig
from tacit.core.policy import Policy, add_lora
from tacit.core.tiny import char_tokenizer
from tacit.generation.drawing import Drawn, Order, draw_by_steps
from tacit.generation.native_decoder import NativeDecoder, unsuitable
from tacit.generation.noise import _nucleus, row_keys, uniforms
from tacit.generation.transformers_decoder import TransformersDecoder

pytestmark = pytest.mark.usefixtures("native")

TOKENIZER = char_tokenizer("abcdefghijklmnop")
BASE: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
ORIGINAL = {"rope_theta": 1e4, "original_max_position_embeddings": 32}
CONFIGS = {
    "llama": LlamaConfig(**BASE),
    "llama, tied": LlamaConfig(**BASE, tie_word_embeddings=True),
    "qwen2, tied": Qwen2Config(**BASE | {"hidden_size": 40}, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**BASE),
    "qwen3, biased, 5 query heads a key head, wide heads": Qwen3Config(
        **BASE | {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 50}, attention_bias=True
    ),
    "mistral": MistralConfig(**BASE, sliding_window=None),
    "llama, one head, odd sizes": LlamaConfig(
        **BASE | {"hidden_size": 22, "intermediate_size": 51, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 22, "vocab_size": 97}
    ),
    "qwen2, 3 key heads of 10, 3 query heads each": Qwen2Config(
        **BASE | {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 10, "hidden_size": 90, "num_hidden_layers": 3}
    ),
    "llama, biased, wide heads, linear positions": LlamaConfig(
        **BASE | {"head_dim": 12}, attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "llama, positions as in llama 3": LlamaConfig(
        **BASE, rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
    ),
    "qwen2, yarn": Qwen2Config(**BASE, rope_parameters={"rope_type": "yarn", "factor": 5.0, **ORIGINAL}),
    "llama, dynamic positions": LlamaConfig(**BASE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    "qwen2, a large vocabulary": Qwen2Config(**BASE | {"vocab_size": 50_000, "num_hidden_layers": 1}),
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [7, 8], [5, 5, 2, 9] * 9, [6] * 32, [4] * 31]  # over, at and short of a page of the cache
TOKENS = torch.randint(2, 37, (40, len(PROMPTS)), generator=torch.Generator().manual_seed(0))  # (steps, rows)


def build(config: Any, spread: float = 1.5) -> Policy:
    """A random model, by default with next-token distributions far from uniform, so that a mistake shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=spread * config.hidden_size**-0.5)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.5)
            else:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return Policy(model.eval(), TOKENIZER)


@pytest.fixture(scope="module", params=list(CONFIGS))
def policy(request) -> Policy:
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama() -> Policy:
    return build(CONFIGS["llama"])


def full_forward(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Last-position logits of each row alone, without cache and without padding."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0, -1] for row in rows])


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference of log-probs."""
    return float((found.float().log_softmax(-1) - expected.float().log_softmax(-1)).abs().max())


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return gap(found, expected) <= tolerance


def extended(prompts, tokens: Tensor) -> list[list[int]]:
    return [[*prompt, *tokens[:, row].tolist()] for row, prompt in enumerate(prompts)]


# --- step by step ---


def test_every_step_equals_a_full_forward(policy):
    decoder = NativeDecoder(policy, threads=2)
    with decoder.session():
        handle = decoder.prefill(PROMPTS)
        expected = full_forward(policy.model, PROMPTS)
        assert expected.std(0).mean() > 0.1  # rows differ, or equality would mean little
        assert close(handle.logits, expected)
        for step, tokens in enumerate(TOKENS):
            logits = decoder.step(handle, tokens)
            if step % 7 == 0 or step in (30, 31, 32, 33, len(TOKENS) - 1):
                assert close(logits, full_forward(policy.model, extended(PROMPTS, TOKENS[: step + 1]))), f"step {step}"


def test_forks_share_what_was_and_part_afterwards(policy):
    decoder = NativeDecoder(policy)
    handle = decoder.prefill(PROMPTS)
    decoder.step(handle, TOKENS[0])
    rows = [2, 0, 0, 1, 3, 4, 4]
    forked = decoder.fork(handle, torch.tensor(rows))
    assert torch.equal(forked.logits, handle.logits[rows])
    before = handle.logits.clone()

    told = [[*PROMPTS[row], int(TOKENS[0, row]), 9 + place] for place, row in enumerate(rows)]
    assert close(decoder.step(forked, torch.tensor([9 + place for place in range(len(rows))])), full_forward(policy.model, told))
    second = decoder.fork(forked, torch.tensor([6, 6]))
    for kept in ([0, 6, 2, 4], [2, 0]):  # a hole filled from the end; then a reordering
        decoder.keep(forked, torch.tensor(kept))
        told = [told[row] for row in kept]
        assert close(forked.logits, full_forward(policy.model, told))
        told = [[*row, 7] for row in told]
        assert close(decoder.step(forked, torch.full((len(kept),), 7)), full_forward(policy.model, told))
    twins = [[*PROMPTS[4], int(TOKENS[0, 4]), 15, token] for token in (3, 5)]
    assert close(decoder.step(second, torch.tensor([3, 5])), full_forward(policy.model, twins))

    assert torch.equal(handle.logits, before)  # nobody has written into what the first handle still reads
    assert close(decoder.step(handle, TOKENS[1]), full_forward(policy.model, extended(PROMPTS, TOKENS[:2])))


def test_an_embedding_is_as_good_as_its_token(policy):
    decoder = NativeDecoder(policy)
    by_token, by_embedding = decoder.prefill(PROMPTS), decoder.prefill(PROMPTS)
    table = policy.model.get_input_embeddings()
    for tokens in TOKENS[:2]:
        assert torch.equal(decoder.step(by_token, tokens), decoder.step(by_embedding, embeddings=table(tokens).detach()))


@pytest.mark.parametrize("bf16", [False, True])
def test_company_order_threads_and_the_way_in_change_no_bit(policy, bf16):
    policy.bf16 = bf16
    try:
        one, three = NativeDecoder(policy, threads=1), NativeDecoder(policy, threads=3)
    finally:
        policy.bf16 = False
    together, shuffled = one.prefill(PROMPTS), three.prefill(PROMPTS[::-1] * 9)
    for step in range(3):
        with one.session(), three.session():
            one.step(together, TOKENS[step])
            three.step(shuffled, TOKENS[step].flip(0).repeat(9))
        assert torch.equal(together.logits, shuffled.logits[:5].flip(0)) and torch.equal(together.logits, shuffled.logits[-5:].flip(0))
    assert torch.equal(together.logits, one.prefill(extended(PROMPTS, TOKENS[:3])).logits)  # tokens read and tokens stepped are the same


def test_a_thousand_random_sequences(policy):
    """The bar: log-probs within 1e-4 of a forward pass in fp32."""
    generator = torch.Generator().manual_seed(1)
    count = 1000 // len(CONFIGS) + 1
    lengths = torch.randint(2, 100, (count,), generator=generator).tolist()
    rows = [torch.randint(0, policy.model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    decoder = NativeDecoder(policy)
    with decoder.session():
        handle = decoder.prefill([row[:-1] for row in rows])
        logits = decoder.step(handle, torch.tensor([row[-1] for row in rows]))
    assert close(logits, full_forward(policy.model, rows), 1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2, tied", "qwen3", "llama, one head, odd sizes", "qwen2, 3 key heads of 10, 3 query heads each"])
def test_bf16_is_near_transformers_in_bf16(name):
    """The bar: log-probs within 3e-2. On wilder models transformers itself is farther than that from fp32; then ours is nearer to it."""
    exact = build(CONFIGS[name], spread=0.5)
    rounded = Policy(copy.deepcopy(exact.model).to(torch.bfloat16), TOKENIZER)
    rows = [torch.randint(0, exact.model.config.vocab_size, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(2, 100)]
    expected = full_forward(rounded.model, rows)
    assert gap(expected, full_forward(exact.model, rows)) > 2e-3  # the weights were rounded
    stored = NativeDecoder(rounded)
    assert stored.precision == "bf16" and close(stored.prefill(rows).logits, expected, 3e-2)
    exact.bf16 = True
    computed = NativeDecoder(exact)
    with torch.autocast("cpu", torch.bfloat16):
        expected = full_forward(exact.model, rows)
    assert computed.precision == "bf16" and close(computed.prefill(rows).logits, expected, 3e-2)

    wild = Policy(build(CONFIGS[name]).model.to(torch.bfloat16), TOKENIZER)
    truth = full_forward(copy.deepcopy(wild.model).float(), rows)
    assert gap(NativeDecoder(wild).prefill(rows).logits, truth) < gap(full_forward(wild.model, rows), truth)


# --- whole rows ---


def an_order(policy: Policy, rows: int = 40, seed: int = 0, limit: int = 30, **options: Any) -> Order:
    if policy.model.config.vocab_size > 1000:  # the generic sampler takes its time there
        rows, limit = min(rows, 16), min(limit, 10)
    group, sample = np.arange(rows) // 8, np.arange(rows) % 8
    prompts = [[3 + p, 4, 5 + p][: 1 + p % 3] for p in range((rows + 7) // 8)]
    limits = np.where(np.arange(rows) % 5 == 0, 1 + limit // 2, limit)
    return Order(prompts, group, row_keys(seed, 0, group, sample), limits, np.array([1, 7], np.int64), **options)


def rows_of(drawn: Drawn) -> list[list[int]]:
    return [part.tolist() for part in np.split(drawn.tokens, np.cumsum(drawn.lengths)[:-1])]


def near_ties(policy: Policy, order: Order, found: Drawn, expected: Drawn) -> np.ndarray:
    """Which rows (B,) are equal. Where one is not, its number must lie within 1e-5 of the border between the two tokens that were drawn."""
    rows, others = rows_of(found), rows_of(expected)
    for i, (row, other) in enumerate(zip(rows, others, strict=True)):
        if row != other:
            place = next(p for p in range(len(row)) if row[p] != other[p])
            low, high = sorted((row[place], other[place]))
            logits = full_forward(policy.model, [order.prompts[order.prompt_of_row[i]] + row[:place]])[0].double() / order.temperature
            weight = logits.softmax(-1) * (1 if order.top_p >= 1 else _nucleus(logits.softmax(-1)[None], order.top_p)[0] > 0)
            border = float(weight[: low + 1].sum() / weight.sum())
            assert weight[low + 1 : high].sum() < 1e-5 and abs(border - float(uniforms(order.keys[i : i + 1], place)[0])) < 1e-5, (
                i,
                place,
                low,
                high,
            )
    return np.array([row == other for row, other in zip(rows, others, strict=True)])


SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "greedy": {"temperature": 0.0},
    "nucleus": {"top_p": 0.7},
    "thin nucleus": {"top_p": 0.05, "temperature": 1.3},
    "wide nucleus": {"top_p": 0.9999},
    "few at once": {"at_once": 3},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_draws_what_the_steps_would_draw(policy, setting):
    """One loop in C++, one in Python with the arithmetic of `noise`, over the same decoder."""
    order, decoder = an_order(policy, entropy=True, **SETTINGS[setting]), NativeDecoder(policy, threads=2)
    with decoder.session():
        found, expected = decoder.draw(order), draw_by_steps(decoder, order)
    same = near_ties(policy, order, found, expected)
    assert same.mean() >= 0.9  # a number falls between two of 50,000 tokens' shares of the CDF oftener than between two of 37
    alike, also = (np.repeat(same, drawn.lengths) for drawn in (found, expected))
    assert found.finished[same].tolist() == expected.finished[same].tolist()
    assert np.abs(found.logp[alike] - expected.logp[also]).max() < 1e-5
    assert found.entropy is not None and expected.entropy is not None
    assert np.abs(found.entropy[alike] - expected.entropy[also]).max() < 1e-5


def test_draws_what_the_generic_decoder_draws(policy):
    """Rows that differ do so at near-ties. The bar, 99.9 % of the rows, is for vocabularies where borders between tokens are few: 160 of 160 here."""
    order = an_order(policy, rows=160, seed=3)
    found, expected = NativeDecoder(policy, threads=2).draw(order), draw_by_steps(TransformersDecoder(policy), order)
    same = near_ties(policy, order, found, expected)
    assert same.all() if policy.model.config.vocab_size < 100 else same.mean() > 0.9
    alike, also = (np.repeat(same, drawn.lengths) for drawn in (found, expected))
    assert np.abs(found.logp[alike] - expected.logp[also]).max() < 1e-4


def test_threads_and_batches_change_no_bit(llama):
    whole = NativeDecoder(llama).draw(an_order(llama, rows=100))
    for threads, at_once in ((1, 1), (2, 7), (3, 64), (8, 512)):
        part = NativeDecoder(llama, threads=threads).draw(an_order(llama, rows=100, at_once=at_once))
        assert np.array_equal(whole.tokens, part.tokens) and np.array_equal(whole.logp, part.logp)


def test_what_is_told_and_asked_on_the_way(llama):
    """Progress grows to the whole, and `ended` sees each token of each row in order, from whichever thread."""
    told: list[int] = []
    seen: dict[int, list[int]] = {}

    def ended(rows, tokens):
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            seen.setdefault(row, []).append(token)
        return tokens == 11

    drawn = NativeDecoder(llama, threads=3).draw(an_order(llama, rows=64, ended=ended, progress=told.append))
    assert told == sorted(told) and told[-1] == len(drawn.tokens)
    assert [seen[row] for row in range(64)] == rows_of(drawn)
    ends = [row[-1] in (1, 7, 11) for row in rows_of(drawn)]
    assert drawn.finished.tolist() == ends and {1, 7, 11} <= {row[-1] for row in rows_of(drawn)}
    assert not any({1, 7, 11} & set(row[:-1]) for row in rows_of(drawn))


def test_an_error_on_the_way_reaches_the_caller(llama):
    def broken(rows, tokens):
        raise RuntimeError("my stop rule is broken")

    decoder = NativeDecoder(llama, threads=2)
    with pytest.raises(RuntimeError, match="my stop rule"):
        decoder.draw(an_order(llama, ended=broken))
    assert len(decoder.draw(an_order(llama)).lengths) == 40  # and the decoder lives on


def test_ctrl_c_stops_it_within_a_second():
    """With Python's own handler: who starts the tests in the background of a shell has them ignore SIGINT."""
    policy = build(CONFIGS["llama"])
    policy.context = 10**6
    order = an_order(policy, rows=64, limit=200_000)
    order.stop_ids = np.empty(0, np.int64)
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.4, press).start()
        with pytest.raises(KeyboardInterrupt):
            NativeDecoder(policy, threads=2).draw(order)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - pressed[0] < 1


def test_log_probs_that_are_not_numbers_are_told_as_such():
    policy = build(CONFIGS["llama"])
    with torch.no_grad():
        policy.model.lm_head.weight[5] = torch.nan
    drawn = NativeDecoder(policy).draw(an_order(policy))
    assert np.isnan(drawn.logp).all() and (drawn.tokens >= 0).all() and (drawn.tokens < 37).all()


# --- weights, and who may ---


def test_a_session_sees_the_weights_it_began_with_and_the_next_the_new_ones():
    policy = build(CONFIGS["llama"])
    decoder, weight = NativeDecoder(policy), policy.model.model.layers[0].mlp.down_proj.weight
    with decoder.session():
        old = full_forward(policy.model, PROMPTS)
        weight.data.mul_(0.5)
        assert close(decoder.prefill(PROMPTS).logits, old)
    new = full_forward(policy.model, PROMPTS)
    assert not close(old, new, 1e-2)
    handle = decoder.prefill(PROMPTS)  # without a session too
    assert close(handle.logits, new) and decoder.pack_seconds > 0
    assert close(decoder.step(handle, TOKENS[0]), full_forward(policy.model, extended(PROMPTS, TOKENS[:1])))


REFUSED = {
    "sliding window": Qwen2Config(**BASE, use_sliding_window=True, max_window_layers=1, sliding_window=5),
    "has a sliding window": MistralConfig(**BASE, sliding_window=5),
    "activation is gelu": LlamaConfig(**BASE, hidden_act="gelu"),
    "scaled by longrope": LlamaConfig(
        **BASE, rope_parameters={"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 5.0, **ORIGINAL}
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_models_that_it_does_not_run(reason):
    assert reason in str(unsuitable(build(REFUSED[reason])))


def test_altered_models_that_it_does_not_run():
    policy = build(CONFIGS["qwen2, tied"])
    assert unsuitable(policy) is None
    decoder = NativeDecoder(policy)
    hook = policy.model.model.layers[1].register_forward_hook(lambda *args: None)
    assert "hooks" in str(unsuitable(policy))
    with pytest.raises(ValueError, match="make another, since now hooks"):
        decoder.prefill(PROMPTS)
    hook.remove()
    adapted = Policy(add_lora(copy.deepcopy(policy.model), LoraConfig(rank=2)), TOKENIZER)
    assert "adapters that are not merged" in str(unsuitable(adapted))
    merged = Policy(adapted.model.merge_and_unload(), TOKENIZER)
    assert unsuitable(merged) is None
    double = copy.deepcopy(policy.model).double()
    assert "float64" in str(unsuitable(Policy(double, TOKENIZER)))
    double.float().model.layers[0].mlp.up_proj.bfloat16()
    assert "bfloat16 and float32" in str(unsuitable(Policy(double, TOKENIZER)))
    double.float().model.layers[0].mlp.up_proj = nn.Sequential(double.model.layers[0].mlp.up_proj)  # pyright: ignore[reportArgumentType]
    assert "another kind" in str(unsuitable(Policy(double, TOKENIZER)))


def test_says_what_is_wrong(llama):
    decoder = NativeDecoder(llama)
    for prompts in ([], [[3], []]):
        with pytest.raises(ValueError, match="at least one"):
            decoder.prefill(prompts)
    with pytest.raises(ValueError, match="there is no token 37: the model has 37"):
        decoder.prefill([[3, 37]])
    handle = decoder.prefill([[3], [4]])
    for both in ({}, {"tokens": torch.tensor([3, 4]), "embeddings": torch.zeros(2, 32)}):
        with pytest.raises(ValueError, match="either tokens or embeddings"):
            decoder.step(handle, **both)
    with pytest.raises(ValueError, match="there is no token -1"):
        decoder.step(handle, torch.tensor([-1, 3]))
    with pytest.raises(ValueError, match="the handle has 2 rows"):
        decoder.step(handle, torch.tensor([3]))
    with pytest.raises(ValueError, match=r"needs \(2, 32\)"):
        decoder.step(handle, embeddings=torch.zeros(2, 31))
    for rows in ([2], [-1]):
        with pytest.raises(IndexError, match="handle of 2"):
            decoder.fork(handle, torch.tensor(rows))
    decoder.release(handle)
    assert handle.rows == 0 and handle.state is None
    stretched = build(CONFIGS["llama, dynamic positions"])
    with pytest.raises(ValueError, match="context of 160"):
        NativeDecoder(stretched).prefill([[3] * 161])
    with pytest.raises(ValueError, match="cannot run this policy: its activation is gelu"):
        NativeDecoder(build(REFUSED["activation is gelu"]))


def test_no_rows_and_no_room(llama):
    decoder = NativeDecoder(llama)
    handle = decoder.prefill([[3]])
    none = decoder.fork(handle, torch.empty(0, dtype=torch.int64))
    assert decoder.step(none, torch.empty(0, dtype=torch.int64)).shape == (0, 37)
    long = decoder.prefill([[3] * 300])  # beyond the context of a model whose positions allow it
    assert close(long.logits, full_forward(llama.model, [[3] * 300]))


# --- slow: many random shapes ---


@pytest.mark.slow
def test_random_shapes_and_lengths():
    rng = np.random.default_rng(0)
    for trial in range(150):
        kv, group, width = (int(rng.integers(1, n)) for n in (4, 6, 20))
        config = {"num_attention_heads": kv * group, "num_key_value_heads": kv, "head_dim": 2 * width, "num_hidden_layers": int(rng.integers(1, 4))}
        config |= {
            "hidden_size": kv * group * int(rng.integers(1, 8)),
            "intermediate_size": int(rng.integers(1, 90)),
            "vocab_size": int(rng.integers(10, 300)),
        }
        family = (LlamaConfig, Qwen2Config, Qwen3Config)[trial % 3]
        policy = build(family(**BASE | config, tie_word_embeddings=bool(rng.integers(2))), spread=1.0)
        rows = [rng.integers(0, 10, int(rng.integers(2, 150))).tolist() for _ in range(int(rng.integers(1, 20)))]
        decoder = NativeDecoder(policy, threads=int(rng.integers(1, 4)))
        handle = decoder.prefill([row[:-1] for row in rows])
        logits = decoder.step(handle, torch.tensor([row[-1] for row in rows]))
        assert close(logits, full_forward(policy.model, rows), 2e-4), (trial, config)
        order = an_order(policy, rows=int(rng.integers(1, 60)), seed=trial, limit=int(rng.integers(1, 70)), at_once=int(rng.integers(1, 40)))
        order.stop_ids = np.sort(rng.integers(0, config["vocab_size"], 2))
        near_ties(policy, order, decoder.draw(order), draw_by_steps(decoder, order))
