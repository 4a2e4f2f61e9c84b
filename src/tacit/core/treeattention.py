"""Attention of completions that share prompts, where every token is there once: no padding, and no prompt twice.

A pass over P prompts and B completions is one flat row: the prompts one after another, then the completions. What works on single tokens (norms,
projections, MLPs) never sees the difference. Attention does: here each token looks at its own text up to itself and, in a completion, at the whole of
its prompt. Queries, keys and values are laid out in padded blocks, one of all prompts and one for completions of like lengths, whose keys follow
those of their prompts, and go through torch's own `scaled_dot_product_attention`: results and gradients are those of a row for each completion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "tacit_tree"  # of the attention implementation
LIKE, SHORT = 0.6, 8  # see `like`


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of like texts, padded to one width. `places` (T,): where its tokens are in the padded block; `sources` (R * L,): which token a place has.

    A padded place has source T; nobody looks at it, and nobody takes what it sees. Both are None when no row is shorter than the others.
    """

    rows: int
    width: int
    places: Tensor | None
    sources: Tensor | None

    @classmethod
    def of(cls, lengths: Tensor) -> Block:
        rows, width = len(lengths), int(lengths.max())
        inside = torch.arange(width)[None] < lengths[:, None]  # (R, L)
        if bool(inside.all()):
            return cls(rows, width, None, None)
        places = inside.flatten().nonzero()[:, 0]
        sources = torch.full((rows * width,), len(places))
        sources[places] = torch.arange(len(places))
        return cls(rows, width, places, sources)

    def to(self, device: torch.device) -> Block:
        return replace(self, places=_moved(self.places, device), sources=_moved(self.sources, device))

    def pad(self, x: Tensor) -> Tensor:
        """(T, …) -> (R, L, …), zeros where there is no token."""
        found = x if self.places is None else _Take.apply(x, self.sources, self.places)
        return found.view(self.rows, self.width, *x.shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """(R, L, …) -> (T, …)."""
        x = x.reshape(self.rows * self.width, *x.shape[2:])
        return x if self.places is None else _Take.apply(x, self.places, self.sources)


class _Take(torch.autograd.Function):
    """x[index], zeros where the index is len(x). `back` is the index that undoes it: no place is taken twice, so the gradient is as cheap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _take(x, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _take(gradients[0], *ctx.saved_tensors), None, None


def _take(x: Tensor, index: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])]).index_select(0, index)


@dataclass(frozen=True, slots=True)
class Branches:
    """Completions of like lengths: `prompt` (R,) is each one's; `looks` (R or 1, 1, L, Lp + L) is true where a token may look."""

    block: Block
    prompt: Tensor
    looks: Tensor

    def to(self, device: torch.device) -> Branches:
        return Branches(self.block.to(device), self.prompt.to(device), self.looks.to(device))


@dataclass(frozen=True, slots=True)
class Tree:
    """Which token looks at which. `sizes`: how many tokens of the flat row are prompts', and each branches'."""

    sizes: list[int]
    trunk: Block
    branches: list[Branches]

    @classmethod
    def of(cls, prompts: Tensor, completions: Tensor, prompt: Tensor) -> Tree:
        """From the lengths of prompts (P,) and of completions (B,), longest first and none empty, and the prompt (B,) of each completion."""
        trunk, branches, sizes, start = Block.of(prompts), list[Branches](), [int(prompts.sum())], 0
        for size in like(completions.tolist()):
            lengths, mine = completions[start : start + size], prompt[start : start + size]
            block, start = Block.of(lengths), start + size
            sizes.append(int(lengths.sum()))
            before = torch.arange(trunk.width)[None] < prompts[mine, None]  # (R, Lp)
            if bool(before.all()):
                before = before[:1]
            own = torch.ones(block.width, block.width, dtype=torch.bool).tril()
            looks = torch.cat([before[:, None].expand(-1, block.width, -1), own[None].expand(len(before), -1, -1)], -1)
            branches.append(Branches(block, mine, looks[:, None]))
        return cls(sizes, trunk, branches)

    def to(self, device: torch.device) -> Tree:
        return replace(self, trunk=self.trunk.to(device), branches=[b.to(device) for b in self.branches])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Query, key and value (T, H, D), of as many heads each, -> (T, H, D)."""
        (first, *queries), (trunk_key, *keys), (trunk_value, *values) = (x.split(self.sizes) for x in (query, key, value))
        trunk_key, trunk_value = self.trunk.pad(trunk_key), self.trunk.pad(trunk_value)
        found = [self.trunk.flat(_attend(self.trunk.pad(first), trunk_key, trunk_value, scale))]
        for branches, q, k, v in zip(self.branches, queries, keys, values, strict=True):
            pad, prompt = branches.block.pad, branches.prompt
            k, v = torch.cat([trunk_key.index_select(0, prompt), pad(k)], 1), torch.cat([trunk_value.index_select(0, prompt), pad(v)], 1)
            found.append(branches.block.flat(_attend(pad(q), k, v, scale, branches.looks)))
        return torch.cat(found)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, looks: Tensor | None = None) -> Tensor:
    """(R, L, H, D) -> (R, L, H, D); causal without `looks`."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=looks, is_causal=looks is None, scale=scale).transpose(1, 2)


def like(lengths: list[int]) -> Iterator[int]:
    """Cuts rows, longest first, into blocks of like length: how many rows each has. A block's shortest has LIKE of its longest's, or is short."""
    size = 0
    for i, length in enumerate(lengths):
        if size and length < LIKE * lengths[i - size] and lengths[i - size] > SHORT:
            yield size
            size = 0
        size += 1
    if size:
        yield size


def _moved(x: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x is None else x.to(device)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, tree: Tree | None = None, **more: Any
) -> tuple[Tensor, None]:
    """What `transformers` calls: torch's attention as ever, or along `tree` where the model was given one."""
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    groups = query.shape[1] // key.shape[1]
    query, key, value = (x.transpose(1, 2)[0] for x in (query, key, value))  # (T, H, D)
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    return tree.attend(query, key, value, more.get("scaling"))[None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
