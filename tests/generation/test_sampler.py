from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tacit.config import TinyConfig
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt, Role, RolloutBatch, Source
from tacit.core.tiny import EOS_ID, char_tokenizer, tiny_model
from tacit.generation.decoder import Handle
from tacit.generation.drawing import packed
from tacit.generation.native_decoder import NativeDecoder
from tacit.generation.noise import row_keys, uniforms
from tacit.generation.sampler import Sampler, StopStrings
from tacit.generation.transformers_decoder import TransformersDecoder


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A random model with opinions, which ends about one completion in ten at each token."""
    tokenizer = char_tokenizer("0123456789+=")
    model = tiny_model(TinyConfig(hidden=32, layers=2, heads=2, mlp=64, context=48), tokenizer, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
    policy = Policy(model, tokenizer)
    policy.version = 5
    return policy


DECODER: Any = TransformersDecoder


@pytest.fixture(autouse=True, params=[TransformersDecoder, NativeDecoder], ids=["generic", "native"])
def decoder_class(request, monkeypatch):
    """Everything here holds of both ways to draw."""
    if request.param is NativeDecoder:
        request.getfixturevalue("native")
    monkeypatch.setattr(sys.modules[__name__], "DECODER", request.param)


def make(policy: Policy, **options) -> Sampler:
    return Sampler(DECODER(policy), policy, **({"max_new_tokens": 12} | options))


def questions(count: int) -> list[Prompt]:
    """Prompts of three different lengths."""
    return [Prompt(f"q{i}", f"{i}+{i * i}=") for i in range(count)]


def rows_of(batch: RolloutBatch) -> list[tuple]:
    """What identifies each rollout, and what was drawn."""
    return list(zip(batch.group.tolist(), batch.sample.tolist(), batch.completions.to_lists(), batch.texts, batch.finished.tolist(), strict=True))


# --- what a batch holds ---


def test_the_columns(policy):
    sampler = make(policy)
    batch = sampler.sample(questions(3), 4, seed=0, step=2, groups=[10, 11, 12], agent=1, role=Role.PROBE)
    assert batch.group.tolist() == [10] * 4 + [11] * 4 + [12] * 4
    assert batch.sample.tolist() == [0, 1, 2, 3] * 3
    assert [p.id for p in batch.prompts] == ["q0"] * 4 + ["q1"] * 4 + ["q2"] * 4
    assert batch.prompt_tokens.to_lists() == [policy.encode_prompt(p) for p in batch.prompts]
    constant = {"agent": 1, "version": 5, "role": Role.PROBE, "source": Source.SAMPLED}
    for name, value in constant.items():
        assert (getattr(batch, name) == value).all(), name
    assert torch.equal(batch.spent, batch.lengths) and batch.action.all() and not batch.forced.any() and not batch.scored.any()
    assert batch.behaviour_logp.dtype == torch.float32 and (batch.behaviour_logp < 0).all()
    ends = [row[-1] == EOS_ID for row in batch.completions.to_lists()]
    assert batch.finished.tolist() == ends and True in ends and False in ends
    assert all(EOS_ID not in row[:-1] for row in batch.completions.to_lists())
    assert (batch.lengths[~batch.finished] == 12).all() and (batch.lengths <= 12).all()
    assert batch.texts == [policy.decode(row) for row in batch.completions.to_lists()] and "<eos>" not in "".join(batch.texts)
    assert (
        sampler.last_stats.tokens == len(batch.token) and sampler.last_stats.steps == int(batch.lengths.max()) - 1 and sampler.last_stats.seconds > 0
    )


def test_columns_are_ordinary_tensors(policy):
    """Not inference tensors, which autograd refuses to save for a backward pass."""
    batch = make(policy).sample(questions(1), 2, seed=0, step=0, groups=[0])
    weight = torch.ones(len(batch.token), requires_grad=True)
    (weight * batch.behaviour_logp).sum().backward()
    assert not any(column.is_inference() for column in (batch.rows | batch.tokens).values())


def test_no_prompts_give_an_empty_batch(policy):
    batch = make(policy).sample([], 4, seed=0, step=0, groups=[])
    assert len(batch) == 0 and len(batch.token) == 0
    assert len(RolloutBatch.cat([batch, make(policy).sample(questions(1), 2, seed=0, step=0, groups=[0])])) == 2


def test_progress_is_reported(policy):
    seen: list[int] = []
    batch = make(policy, progress=seen.append).sample(questions(2), 3, seed=0, step=0, groups=[0, 1])
    assert seen[-1] == len(batch.token) and seen == sorted(seen)
    assert DECODER is NativeDecoder or seen[0] == 6  # the generic decoder tells it after each step, the native one now and then


# --- log-probs ---


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_equal_those_of_a_full_forward(policy, temperature):
    batch = make(policy, temperature=temperature).sample(questions(6), 8, seed=0, step=0, groups=list(range(6)))
    expected = policy.token_stats(batch.prompt_tokens, batch.completions, temperature=temperature).logp
    assert (batch.behaviour_logp - expected).abs().max() < 1e-4
    assert expected.std() > 0.3


def test_greedy_is_the_argmax_of_a_full_forward(policy):
    batch = make(policy).sample(questions(3), 2, seed=0, step=0, groups=[0, 1, 2], temperature=0.0, role=Role.GREEDY)
    assert batch.completions.to_lists()[::2] == batch.completions.to_lists()[1::2]
    for prompt, row in zip(batch.prompt_tokens.to_lists(), batch.completions.to_lists(), strict=True):
        logits = policy.model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == row
    assert (batch.behaviour_logp - policy.token_stats(batch.prompt_tokens, batch.completions).logp).abs().max() < 1e-4


def test_draws_follow_the_model(policy):
    """First tokens of 4,000 samples against the model's own distribution."""
    batch = make(policy, max_new_tokens=1).sample(questions(1), 4000, seed=3, step=0, groups=[0])
    probabilities = policy.model(torch.tensor([policy.encode_prompt(questions(1)[0])])).logits[0, -1].double().softmax(-1)
    found = torch.bincount(batch.token, minlength=len(probabilities)).double()
    likely = probabilities * 4000 > 5
    chi2 = ((found - 4000 * probabilities) ** 2 / (4000 * probabilities))[likely].sum()
    assert likely.sum() > 5 and chi2 < 2.5 * likely.sum()


# --- invariance ---


@pytest.fixture(scope="module")
def reference(policy) -> RolloutBatch:
    return make(policy).sample(questions(32), 16, seed=0, step=0, groups=list(range(32)))


def gap_at_first_difference(policy: Policy, a: RolloutBatch, b: RolloutBatch, row: int) -> float:
    """How far, in probability, the uniform number was from the border between the two tokens where row `row` of two batches parts."""
    ours, theirs = a.completions[row], b.completions[row]
    at = next(i for i in range(min(len(ours), len(theirs))) if ours[i] != theirs[i])
    logits = policy.model(torch.cat([a.prompt_tokens[row], ours[:at]])[None]).logits[0, -1].double()
    border = logits.softmax(-1).cumsum(-1)[min(ours[at], theirs[at])]
    return abs(float(border) - uniforms(row_keys(0, 0, [int(a.group[row])], [int(a.sample[row])]), at)[0])


@pytest.mark.parametrize(("rows", "groups"), [(1, 8), (7, 32), (64, 32)])
def test_the_batch_size_does_not_change_what_is_drawn(policy, reference, rows, groups):
    """At least 99.9 % of the rows are equal; another may only part where the number falls on the border of two tokens, up to rounding."""
    batch = make(policy, rows=rows).sample(questions(groups), 16, seed=0, step=0, groups=list(range(groups)))
    expected = reference.select(torch.arange(len(batch)))
    different = [row for row in range(len(batch)) if batch.completions[row].tolist() != expected.completions[row].tolist()]
    assert len(different) <= 0.001 * len(batch), f"{len(different)} of {len(batch)} rows differ"
    assert all(gap_at_first_difference(policy, batch, expected, row) < 1e-5 for row in different)
    assert torch.equal(batch.group, expected.group) and torch.equal(batch.sample, expected.sample)
    if not different:
        assert torch.allclose(batch.behaviour_logp, expected.behaviour_logp, atol=1e-4)


def test_order_and_company_do_not_matter(policy, reference):
    picked = [20, 3, 11]
    prompts = [questions(32)[i] for i in picked]
    batch = make(policy).sample(prompts, 16, seed=0, step=0, groups=picked)
    expected = {row[:2]: row for row in rows_of(reference)}
    assert rows_of(batch) == [expected[row[:2]] for row in rows_of(batch)]
    fewer = make(policy).sample(prompts, 5, seed=0, step=0, groups=picked)
    assert rows_of(fewer) == [expected[row[:2]] for row in rows_of(fewer)]


def test_the_same_call_draws_the_same_and_another_key_does_not(policy):
    call = {"seed": 0, "step": 0, "groups": [0, 1], "agent": 0}
    base = make(policy).sample(questions(2), 8, **call)
    again = make(policy).sample(questions(2), 8, **call)
    assert torch.equal(base.token, again.token) and torch.equal(base.behaviour_logp, again.behaviour_logp)
    for other in ({"seed": 1}, {"step": 1}, {"groups": [2, 3]}, {"agent": 1}):
        assert make(policy).sample(questions(2), 8, **call | other).completions.to_lists() != base.completions.to_lists()


def test_the_global_random_state_is_neither_used_nor_moved(policy):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state()
    first = make(policy).sample(questions(2), 2, seed=0, step=0, groups=[0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(make(policy).sample(questions(2), 2, seed=0, step=0, groups=[0, 1]).token, first.token)


# --- how the decoder is used: a scripted one that always continues a prompt [k] with script k ---

PIECES = ["", "<eos>", "a", "b", "ab", "bc", "c", "\n", "\nQ", "Q:", ":", "é"]  # id 0 is silent, like a special token


class Scripted:
    """A decoder and a policy in one. Every row of prompt [k] is made to say scripts[k], token by token, and then only "a"."""

    stop_ids, context, version = frozenset({1}), 40, 0

    def __init__(self, *scripts: list[int]):
        self.scripts = [*scripts]
        self.reads: list[list[int]] = []
        self.sizes: list[int] = []
        self.open = 0

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        return [int(prompt.text)]

    def decode(self, ids: list[int]) -> str:
        return "".join(PIECES[i] for i in ids if i > 1)

    def session(self):
        return nullcontext()

    def prefill(self, prompts: list[list[int]]) -> Handle:
        self.reads.append([prompt[0] for prompt in prompts])
        return self._handle([(prompt[0], 0) for prompt in prompts])

    def fork(self, handle: Handle, rows: Tensor) -> Handle:
        return self._handle([handle.state[i] for i in rows.tolist()])

    def keep(self, handle: Handle, rows: Tensor) -> None:
        handle.state = [handle.state[i] for i in rows.tolist()]
        handle.logits = self._logits(handle.state)

    def step(self, handle: Handle, tokens: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        assert tokens is not None and tokens.tolist() == [self._said(*place) for place in handle.state]
        self.sizes.append(len(tokens))
        handle.state = [(script, at + 1) for script, at in handle.state]
        handle.logits = self._logits(handle.state)
        return handle.logits

    def release(self, handle: Handle) -> None:
        handle.state = None
        self.open -= 1

    def _handle(self, state: list[tuple[int, int]]) -> Handle:
        self.open += 1
        return Handle(self._logits(state), state)

    def _said(self, script: int, at: int) -> int:
        said = self.scripts[script]
        return said[at] if at < len(said) else 2

    def _logits(self, state: list[tuple[int, int]]) -> Tensor:
        said = torch.tensor([self._said(*place) for place in state])
        return nn.functional.one_hot(said, len(PIECES)) * 200.0


def say(*scripts: list[int], group_size: int = 1, max_new_tokens: int = 8, **options) -> tuple[Scripted, RolloutBatch]:
    decoder = Scripted(*scripts)
    prompts = [Prompt(f"p{k}", str(k)) for k in range(len(scripts))]
    sampler = Sampler(decoder, decoder, max_new_tokens=max_new_tokens, **options)
    return decoder, sampler.sample(prompts, group_size, seed=0, step=0, groups=list(range(len(scripts))))


def test_finished_rows_leave_the_batch():
    decoder, batch = say([2, 1], [2, 3, 2, 3, 2, 1], [1], [2, 3, 1])
    assert batch.completions.to_lists() == [[2, 1], [2, 3, 2, 3, 2, 1], [1], [2, 3, 1]]
    assert batch.texts == ["a", "ababa", "", "ab"] and batch.finished.all()
    assert decoder.sizes == [3, 2, 1, 1, 1] and decoder.open == 0


def test_each_prompt_is_read_once_and_rows_bound_the_batch():
    scripts = [[2, 2, 1], [2, 1], [1], [3, 1], [3, 3, 3, 1]]
    decoder, batch = say(*scripts, group_size=3, rows=7)  # two groups of three at a time
    assert decoder.reads == [[0, 1], [2, 3], [4]] and max(decoder.sizes) <= 6
    assert batch.completions.to_lists() == [script for script in scripts for _ in range(3)]
    decoder, batch = say(*scripts, group_size=5, rows=2)  # a group larger than the batch is still read once
    assert decoder.reads == [[0], [1], [2], [3], [4]] and max(decoder.sizes) <= 2 and decoder.open == 0
    assert batch.completions.to_lists() == [script for script in scripts for _ in range(5)]


def test_prompts_of_like_length_are_decoded_together(policy):
    widths: list[set[int]] = []

    class Recording(TransformersDecoder):
        def prefill(self, prompts):
            widths.append({len(prompt) for prompt in prompts})
            return super().prefill(prompts)

    prompts = [Prompt(str(i), "1" * (2 + i % 2)) for i in range(8)]
    Sampler(Recording(policy), policy, max_new_tokens=2, rows=8).sample(prompts, 2, seed=0, step=0, groups=list(range(8)))
    assert widths == [{2}, {3}]


def test_a_stop_id_ends_a_row_even_when_the_tokenizer_would_print_it():
    class Newline(Scripted):
        stop_ids = frozenset({1, 7})

    decoder = Newline([2, 7, 3])
    batch = Sampler(decoder, decoder, max_new_tokens=5).sample([Prompt("p", "0")], 1, seed=0, step=0, groups=[0])
    assert batch.completions.to_lists() == [[2, 7]] and batch.texts == ["a"] and batch.finished.all()


def test_the_length_limit_leaves_a_row_unfinished():
    _, batch = say([2, 3], [2, 3, 1], max_new_tokens=3)
    assert batch.lengths.tolist() == [3, 3] and batch.finished.tolist() == [False, True] and batch.texts == ["aba", "ab"]


def test_the_context_limits_too():
    decoder = Scripted([2])
    decoder.context = 5
    batch = Sampler(decoder, decoder, max_new_tokens=100).sample([Prompt("p", "0")], 1, seed=0, step=0, groups=[0])
    assert batch.lengths.tolist() == [4] and not batch.finished.any()


@pytest.mark.parametrize(
    ("script", "stop", "tokens", "text"),
    [
        ([2, 6, 3, 2, 1], ["cb"], [2, 6, 3], "a"),  # one character per token
        ([6, 4, 5, 2, 1], ["bb"], [6, 4, 5], "ca"),  # "c", "ab", "bc": begins inside one token and ends inside the next
        ([2, 7, 9, 2, 1], ["\nQ:"], [2, 7, 9], "a"),
        ([2, 8, 10, 2, 1], ["\nQ:"], [2, 8, 10], "a"),
        ([2, 6, 0, 0, 0, 0, 0, 3, 1], ["cb"], [2, 6, 0, 0, 0, 0, 0, 3], "a"),  # silent tokens in between
        ([2, 11, 6, 11, 1], ["é", "c"], [2, 11], "a"),  # the first of several
        ([4, 3, 1], ["bb", "ab"], [4], ""),  # at once
        ([2, 2, 4, 6, 1], ["bcb", "zzz"], [2, 2, 4, 6, 1], "aaabc"),  # never
    ],
)
def test_stop_strings(script, stop, tokens, text):
    _, batch = say(script, stop=stop, max_new_tokens=10)
    assert batch.completions.to_lists() == [tokens] and batch.texts == [text] and batch.finished.all()


def test_stop_strings_against_looking_at_the_whole_text_at_every_token():
    generator = np.random.default_rng(0)
    for _ in range(200):
        script = generator.choice([0, 2, 3, 4, 5, 6, 7, 9, 11], size=20).tolist()
        stop = ["cab", "bcb\n", "éQ"]
        decoder = Scripted(script)
        ends = [n for n in range(1, 21) if any(s in decoder.decode(script[:n]) for s in stop)]
        _, batch = say(script, stop=stop, max_new_tokens=20)
        assert batch.lengths.tolist() == [ends[0] if ends else 20] and batch.finished.tolist() == [bool(ends)]
        assert not any(s in batch.texts[0] for s in stop) and decoder.decode(script).startswith(batch.texts[0])


def test_stop_strings_of_a_real_tokenizer_end_rows(policy, reference):
    batch = make(policy, stop=["+", "12"]).sample(questions(32), 16, seed=0, step=0, groups=list(range(32)))
    stop = StopStrings(["+", "12"], policy.decode)
    assert batch.texts == [stop.cut(text) for text in reference.texts]
    shorter = batch.lengths < reference.lengths
    assert 50 < shorter.sum() < 500 and batch.finished[shorter].all()
    for row in range(len(batch)):
        assert batch.completions[row].tolist() == reference.completions[row][: int(batch.lengths[row])].tolist()


def test_packed_fills_holes_from_the_end():
    assert packed(np.array([True, False, True, True, False, True])).tolist() == [0, 5, 2, 3]
    assert packed(np.array([False, False, True])).tolist() == [2]
    assert packed(np.array([True, True])).tolist() == [0, 1]


# --- errors ---


def test_a_prompt_that_fills_the_context_is_named(policy):
    prompts = [Prompt("short", "1+1="), Prompt("q-long", "1" * 48)]
    with pytest.raises(ValueError, match=r"'q-long' has 48 tokens and the model's context holds 48.*shorten"):
        make(policy).sample(prompts, 2, seed=0, step=0, groups=[0, 1])


def test_truncated_and_greedy_sampling_are_refused_for_training(policy):
    call = {"seed": 0, "step": 0, "groups": [0]}
    with pytest.raises(ValueError, match=r"top_p=0.9 is for evaluation.*below 1"):
        make(policy, top_p=0.9).sample(questions(1), 2, **call)
    with pytest.raises(ValueError, match="greedy completions are for evaluation"):
        make(policy).sample(questions(1), 2, temperature=0.0, **call)
    assert len(make(policy, top_p=0.9).sample(questions(1), 2, role=Role.PROBE, **call)) == 2


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"rows": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"stop": [""]}])
def test_settings_out_of_range(policy, options):
    with pytest.raises(ValueError, match=r"must|empty"):
        make(policy, **options)


def test_every_prompt_needs_a_group(policy):
    with pytest.raises(ValueError, match="2 prompts came with 1 group ids"):
        make(policy).sample(questions(2), 2, seed=0, step=0, groups=[0])
