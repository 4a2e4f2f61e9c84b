"""A leaner decode step for Llama, Mistral, Qwen2 and Qwen3 on the CPU, where a small model spends most of its step outside its matrix products.

It reads the model's own weights and its own cache, so prompts are read by the ordinary forward pass, and either may take the next step. It does
without mask building, module calls and keyword plumbing, norms in seven operations, and rotary positions for queries and keys apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from transformers import Cache, LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
Projection = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True, slots=True)
class Block:
    """The parameters of one decoder layer; `head_norm` (heads, D) scales query and key heads where these are normalised, as in Qwen3."""

    attention_norm: Tensor
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    head_norm: Tensor | None
    mlp_norm: Tensor
    gate: Projection
    up: Projection
    down: Projection


class LeanStep:
    """One position of each row through the model: inputs (R, E) to logits (R, V). Sees the weights that the model had when it was made."""

    def __init__(self, model: Any):
        attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
        self.width, self.scale, self.eps = attention.head_dim, attention.scaling, model.config.rms_norm_eps
        self.kv_heads = attention.k_proj.out_features // self.width
        self.heads = self.kv_heads * attention.num_key_value_groups
        self.embed, self.rotary, self.activation = model.model.embed_tokens, model.model.rotary_emb, mlp.act_fn
        self.blocks = [_block(layer) for layer in model.model.layers]
        self.norm, self.head = model.model.norm.weight, _projection(model.lm_head)
        half = self.width // 2
        self.sign = torch.cat([-torch.ones(half), torch.ones(half)]).to(self.norm)

    def __call__(self, x: Tensor, cache: Cache, position: Tensor, mask: Tensor | None) -> Tensor:
        """`position` (R or 1, 1) is where the new tokens stand; `mask` (R, length) bool marks what they may see, themselves included; None is all."""
        cos, sin = self.rotary(x, position)
        sin = sin * self.sign
        unseen = None if mask is None else torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, -torch.inf)[:, None]
        for block, memory in zip(self.blocks, cache.layers, strict=True):
            h = rms_norm(x, x.shape[1:], block.attention_norm, self.eps)
            x = x + linear(self._attend(block, h, memory, cos, sin, unseen), *block.output)
            h = rms_norm(x, x.shape[1:], block.mlp_norm, self.eps)
            x = x + linear(self.activation(linear(h, *block.gate)) * linear(h, *block.up), *block.down)
        return linear(rms_norm(x, x.shape[1:], self.norm, self.eps), *self.head)

    def _attend(self, block: Block, h: Tensor, memory: Any, cos: Tensor, sin: Tensor, unseen: Tensor | None) -> Tensor:
        """What each row takes from the positions it sees, its own among them, which is added to `memory`: (R, E) -> (R, heads * D)."""
        rows, heads, groups, width = len(h), self.heads, self.kv_heads, self.width
        both = torch.cat([linear(h, *block.query), linear(h, *block.key)], 1).view(rows, heads + groups, width)
        if block.head_norm is not None:
            both = rms_norm(both, (width,), None, self.eps) * block.head_norm
        both = torch.addcmul(both * cos, both.roll(width // 2, 2), sin)
        keys, values = memory.update(both[:, heads:, None], linear(h, *block.value).view(rows, groups, 1, width))

        by_group = (rows * groups, -1, width)  # the queries that share a key head together
        scores = torch.bmm(both[:, :heads].reshape(by_group), keys.view(by_group).transpose(1, 2)).mul_(self.scale)
        if unseen is not None:
            scores.view(rows, heads, -1).add_(unseen[:, :, -scores.shape[2] :])
        return torch.bmm(scores.softmax(2), values.view(by_group)).view(rows, heads * width)


def lean_step(model: PreTrainedModel) -> LeanStep | None:
    """None when the model is of another kind, not on the CPU, or altered in a way that the lean step would pass over: adapters, hooks, shards."""
    altered = (m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    if type(model) not in FAMILY or any(altered):
        return None
    plain = (type(p) is nn.Parameter and p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    kinds = {type(module) for name, module in model.named_modules() if name.endswith("_proj") or name == "lm_head"}
    return LeanStep(model) if all(plain) and kinds == {nn.Linear} else None


def _block(layer: Any) -> Block:
    attention, mlp, head_norm = layer.self_attn, layer.mlp, None
    if hasattr(attention, "q_norm"):
        pairs = (attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj)
        head_norm = torch.cat([norm.weight.expand(projection.out_features // attention.head_dim, -1) for norm, projection in pairs])
    return Block(
        attention_norm=layer.input_layernorm.weight,
        query=_projection(attention.q_proj),
        key=_projection(attention.k_proj),
        value=_projection(attention.v_proj),
        output=_projection(attention.o_proj),
        head_norm=head_norm,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=_projection(mlp.gate_proj),
        up=_projection(mlp.up_proj),
        down=_projection(mlp.down_proj),
    )


def _projection(module: nn.Linear) -> Projection:
    return module.weight, module.bias
