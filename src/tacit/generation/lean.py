"""A leaner decode step for Llama, Qwen2 and Qwen3 on the CPU, where a small model spends most of its step outside its matrix products.

It reads the model's own weights and its own cache, so prompts are read by the ordinary forward pass and either may take the next step. What it leaves
out: building masks, passing modules and keywords around, norms in seven operations, rotary positions of keys and queries apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm
from transformers import Cache, LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class LeanStep:
    """One position of each row through the model: inputs (R, E) to logits (R, V)."""

    def __init__(self, model: Any):
        attention, inner = model.model.layers[0].self_attn, model.model
        self.eps = model.config.rms_norm_eps
        self.width, self.scale = attention.head_dim, attention.scaling
        self.kv_heads = attention.k_proj.out_features // self.width
        self.heads = self.kv_heads * attention.num_key_value_groups
        self.rotary, self.act = inner.rotary_emb, inner.layers[0].mlp.act_fn
        self.layers = [_weights(layer) for layer in inner.layers]
        self.norm, self.head = inner.norm.weight, model.lm_head.weight
        half = self.width // 2
        self.sign = torch.cat([-torch.ones(half), torch.ones(half)]).to(self.head)

    def __call__(self, x: Tensor, cache: Cache, position: Tensor, mask: Tensor | None) -> Tensor:
        """`position` (R or 1, 1) is where the new tokens stand, `mask` (R, length) bool marks what they may see, themselves included; None: all."""
        heads, kv_heads, width, half, eps, act = self.heads, self.kv_heads, self.width, self.width // 2, self.eps, self.act
        rows, outer, inner = len(x), x.shape[1:], (width,)
        cos, sin = self.rotary(x, position)
        sin = sin * self.sign
        hidden = None if mask is None else torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, -torch.inf)[:, None]
        for (n1, n2, wq, bq, wk, bk, wv, bv, wo, bo, wg, wu, wd, nq, nk), memory in zip(self.layers, cache.layers, strict=True):
            h = rms_norm(x, outer, n1, eps)
            qk = torch.cat([linear(h, wq, bq), linear(h, wk, bk)], 1).view(rows, heads + kv_heads, width)
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            keys, values = memory.update(qk[:, heads:, None], linear(h, wv, bv).view(rows, kv_heads, 1, width))
            query = qk[:, :heads].reshape(rows * kv_heads, -1, width)
            shape = (rows * kv_heads, -1, width)
            scores = torch.bmm(query, keys.view(shape).transpose(1, 2)).mul_(self.scale)
            if hidden is not None:
                scores.view(rows, heads, -1).add_(hidden)
            x = x + linear(torch.bmm(scores.softmax(-1), values.view(shape)).view(rows, -1), wo, bo)
            h = rms_norm(x, outer, n2, eps)
            x = x + linear(act(linear(h, wg)).mul_(linear(h, wu)), wd)
        return linear(rms_norm(x, outer, self.norm, eps), self.head)

def _weights(layer):
    a, m = layer.self_attn, layer.mlp
    return (layer.input_layernorm.weight, layer.post_attention_layernorm.weight, a.q_proj.weight, a.q_proj.bias, a.k_proj.weight, a.k_proj.bias,
        a.v_proj.weight, a.v_proj.bias, a.o_proj.weight, a.o_proj.bias, m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight, None, None)
