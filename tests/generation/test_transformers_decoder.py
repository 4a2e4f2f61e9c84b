from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tacit.config import LoraConfig
from tacit.core.policy import Policy, add_lora
from tacit.core.tiny import char_tokenizer
from tacit.generation import transformers_decoder
from tacit.generation.transformers_decoder import TransformersDecoder, buffered_cache

TOKENIZER = char_tokenizer("abcdefghijklmnop")
COMMON = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
ROTARY = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**ROTARY),
    "qwen2": Qwen2Config(**ROTARY),
    "qwen3": Qwen3Config(**ROTARY),
    "gpt2, learned positions": GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bloom, no positions but a mask": BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4),
    "mistral, every layer sliding": MistralConfig(**ROTARY, sliding_window=5),
    "gemma2, soft-capped, every other layer sliding": Gemma2Config(
        **ROTARY, sliding_window=5, query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, attn_implementation="eager"
    ),
    "llama, biased, wide heads, stretched positions": LlamaConfig(
        **ROTARY | {"head_dim": 12}, attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "qwen2, last layer sliding": Qwen2Config(**ROTARY, use_sliding_window=True, max_window_layers=1, sliding_window=5),
    "lfm2, convolution and attention": Lfm2Config(**ROTARY, layer_types=["conv", "full_attention"]),
}
PROMPTS = {"equal lengths": [[3, 4, 5, 6], [7, 8, 9, 3], [5, 5, 2, 9]], "unequal lengths": [[3, 4, 5, 6, 7, 8, 9], [7, 8], [5, 5, 2, 9]]}
TOKENS = torch.tensor([[4, 9, 11], [2, 3, 3], [10, 4, 7], [6, 6, 2], [8, 3, 12], [5, 11, 17]])  # (steps, rows)


def build(config) -> Policy:
    """A random model whose next-token distributions are far from uniform, so that a mistake shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return Policy(model.eval(), TOKENIZER)


@pytest.fixture(scope="module", params=list(CONFIGS))
def policy(request) -> Policy:
    return build(CONFIGS[request.param])


@pytest.fixture(params=["in a session", "without session"])
def session(request):
    """Opens a session of a decoder, or none."""
    return TransformersDecoder.session if request.param == "in a session" else nullcontext


@pytest.fixture(scope="module")
def llama() -> Policy:
    return build(CONFIGS["llama"])


def full_forward(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Last-position logits of each row alone, without cache and without padding."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0, -1] for row in rows])


def extended(prompts, tokens: Tensor) -> list[list[int]]:
    return [[*prompt, *tokens[:, row].tolist()] for row, prompt in enumerate(prompts)]


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_step_equals_a_full_forward(policy, kind, session, monkeypatch):
    monkeypatch.setattr(transformers_decoder, "ROOM", 2)  # the buffers grow on the way
    prompts, decoder = PROMPTS[kind], TransformersDecoder(policy)
    expected = full_forward(policy.model, prompts)
    assert expected.std(0).mean() > 0.1  # rows differ, or equality would mean little
    with session(decoder):
        handle = decoder.prefill(prompts)
        assert torch.allclose(handle.logits, expected, atol=1e-5)
        for step in range(len(TOKENS)):
            logits = decoder.step(handle, TOKENS[step])
            assert torch.allclose(logits, full_forward(policy.model, extended(prompts, TOKENS[: step + 1])), atol=1e-5), f"step {step}"


@pytest.mark.parametrize("kind", PROMPTS)
def test_rows_can_be_duplicated_and_dropped_and_the_original_stays(policy, kind, session):
    prompts, decoder = PROMPTS[kind], TransformersDecoder(policy)
    with session(decoder):
        handle = decoder.prefill(prompts)
        decoder.step(handle, TOKENS[0])
        before = handle.logits.clone()

        forked = decoder.fork(handle, torch.tensor([2, 0, 0, 1]))
        assert forked.rows == 4 and torch.equal(forked.logits, before[[2, 0, 0, 1]])
        found = decoder.step(forked, torch.tensor([3, 4, 5, 6]))
        told = [[*prompts[row], int(TOKENS[0, row]), token] for row, token in zip([2, 0, 0, 1], [3, 4, 5, 6], strict=True)]
        assert torch.allclose(found, full_forward(policy.model, told), atol=1e-5)

        for rows in ([0, 3, 2], [2, 0]):  # a hole filled from the end; then a reordering
            decoder.keep(forked, torch.tensor(rows))
            told = [told[row] for row in rows]
            assert forked.rows == len(rows) and torch.allclose(forked.logits, full_forward(policy.model, told), atol=1e-5)
            told = [[*row, 7] for row in told]
            assert torch.allclose(decoder.step(forked, torch.full((len(rows),), 7)), full_forward(policy.model, told), atol=1e-5)

        assert torch.equal(handle.logits, before)
        assert torch.allclose(decoder.step(handle, TOKENS[1]), full_forward(policy.model, extended(prompts, TOKENS[:2])), atol=1e-5)


def test_an_embedding_is_as_good_as_its_token(policy, session):
    prompts, decoder = PROMPTS["unequal lengths"], TransformersDecoder(policy)
    table = policy.model.get_input_embeddings()
    with session(decoder):
        by_token, by_embedding = decoder.prefill(prompts), decoder.prefill(prompts)
        for tokens in TOKENS[:2]:
            embeddings = table(tokens).detach()
            assert torch.allclose(decoder.step(by_token, tokens), decoder.step(by_embedding, embeddings=embeddings), atol=1e-6)


def test_a_session_sees_the_weights_it_began_with_and_the_next_the_new_ones(llama):
    decoder = TransformersDecoder(llama)
    weight = llama.model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    for scale in (1.0, 0.5):
        weight.data.copy_(before * scale)
        with decoder.session():
            handle = decoder.prefill([[3, 4]])
            assert torch.allclose(decoder.step(handle, torch.tensor([5])), full_forward(llama.model, [[3, 4, 5]]), atol=1e-5)
    weight.data.copy_(before)


def test_equal_prompts_are_read_once(llama):
    rows_read = []
    hook = llama.model.register_forward_pre_hook(lambda module, args, kwargs: rows_read.append(kwargs["input_ids"].shape), with_kwargs=True)
    decoder, prompts = TransformersDecoder(llama), [[3, 4], [5, 6, 7], [3, 4], [3, 4]]
    handle = decoder.prefill(prompts)
    hook.remove()
    assert rows_read == [(2, 3)]
    assert torch.allclose(handle.logits, full_forward(llama.model, prompts), atol=1e-5)


def test_only_modules_in_training_mode_return_to_it(llama):
    decoder = TransformersDecoder(llama)
    llama.model.train()
    frozen = llama.model.model.layers[0]
    frozen.eval()
    with decoder.session():
        assert not any(module.training for module in llama.model.modules())
        handle = decoder.prefill([[3, 4]])
        assert torch.is_inference(decoder.step(handle, torch.tensor([5])))
    assert [module.training for module in llama.model.modules()] == [module not in set(frozen.modules()) for module in llama.model.modules()]
    with pytest.raises(RuntimeError, match="interrupted"), decoder.session():
        raise RuntimeError("interrupted")
    assert llama.model.training
    llama.model.eval()


def test_dropout_is_off_while_decoding():
    policy = build(Qwen2Config(**ROTARY, attention_dropout=0.9))
    policy.model.train()
    decoder = TransformersDecoder(policy)
    handle = decoder.prefill(PROMPTS["equal lengths"])
    logits = decoder.step(handle, TOKENS[0])
    policy.model.eval()
    assert torch.allclose(logits, full_forward(policy.model, extended(PROMPTS["equal lengths"], TOKENS[:1])), atol=1e-5)


def test_adapters_take_part():
    policy = build(CONFIGS["qwen2"])
    plain = full_forward(policy.model, PROMPTS["equal lengths"])
    adapted = Policy(add_lora(policy.model, LoraConfig(rank=2)), TOKENIZER)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.model.eval()
    decoder = TransformersDecoder(adapted)
    handle = decoder.prefill(PROMPTS["unequal lengths"])
    assert torch.allclose(handle.logits, full_forward(adapted.model, PROMPTS["unequal lengths"]), atol=1e-5)
    assert (decoder.prefill(PROMPTS["equal lengths"]).logits - plain).abs().max() > 0.1
    assert torch.allclose(decoder.step(handle, TOKENS[0]), full_forward(adapted.model, extended(PROMPTS["unequal lengths"], TOKENS[:1])), atol=1e-5)


def test_decodes_in_the_precision_of_the_policy():
    policy = build(CONFIGS["llama"])
    policy.bf16 = True
    decoder = TransformersDecoder(policy)
    handle = decoder.prefill(PROMPTS["unequal lengths"])
    logits = decoder.step(handle, TOKENS[0])
    assert logits.dtype == torch.bfloat16
    expected = full_forward(policy.model, extended(PROMPTS["unequal lengths"], TOKENS[:1]))
    assert torch.allclose(logits.float(), expected, atol=0.1 * float(expected.std()))


def test_a_layer_that_slides_holds_little_more_than_its_window(monkeypatch):
    monkeypatch.setattr(transformers_decoder, "ROOM", 4)
    policy = build(CONFIGS["mistral, every layer sliding"])
    decoder = TransformersDecoder(policy)
    handle = decoder.prefill([[3, 4, 5]])
    for _ in range(40):
        decoder.step(handle, torch.tensor([6]))
    layer = handle.state.cache.layers[0]
    assert layer.get_seq_length() == 43
    assert layer.buffers[0].used.shape[2] == 4 and layer.buffers[0].data.shape[2] <= 4 + 1 + 4
    assert torch.allclose(handle.logits, full_forward(policy.model, [[3, 4, 5] + [6] * 40]), atol=1e-5)


def test_attention_layers_append_in_place(llama):
    """The reason for the buffers: the storage stays where it is from one step to the next."""
    decoder = TransformersDecoder(llama)
    handle = decoder.prefill(PROMPTS["equal lengths"])
    places = {layer.keys.data_ptr() for layer in handle.state.cache.layers}
    decoder.step(handle, TOKENS[0])
    assert {layer.keys.data_ptr() for layer in handle.state.cache.layers} == places
    assert len(buffered_cache(llama.model).layers) == 2


def test_says_what_is_wrong(llama):
    decoder = TransformersDecoder(llama)
    for prompts in ([], [[3], []]):
        with pytest.raises(ValueError, match="at least one"):
            decoder.prefill(prompts)
    handle = decoder.prefill([[3]])
    with pytest.raises(ValueError, match="either tokens or embeddings"):
        decoder.step(handle)
    with pytest.raises(ValueError, match="either tokens or embeddings"):
        decoder.step(handle, torch.tensor([3]), torch.zeros(1, 32))
    decoder.release(handle)
    assert handle.rows == 0 and handle.state is None


def test_refuses_a_model_without_a_cache(llama):
    class Stateless(nn.Module):
        def forward(self, input_ids): ...

    stateless = type("P", (), {"base_model": Stateless()})()
    with pytest.raises(ValueError, match="Stateless takes no past_key_values"):
        TransformersDecoder(stateless)
