"""One forward pass over completions: right-padded or packed rows, and the log-probs, entropies and hidden states of their tokens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tacit.core import treeattention
from tacit.core.layout import Layout, lay_out, lay_out_tree, tree_tokens
from tacit.core.logprobs import logits_logprobs, token_logprobs
from tacit.core.mixedhead import Head
from tacit.core.rollouts import Ragged

logger = logging.getLogger("tacit")
WORTH = 0.9  # of the padded tokens of a row each: with more, a tree takes as long as rows, or a little longer (docs/speed.md)


@dataclass(slots=True)
class TokenStats:
    """What one forward pass tells about each completion token, flat over the rows: log-prob (T,), entropy (T,), hidden (T, D)."""

    logp: Tensor
    entropy: Tensor | None = None
    hidden: Tensor | None = None


class TokenScorer(nn.Module):
    """Log-probs of completion tokens under a causal LM, the head applied only where a completion token is predicted.

    Rows are padded on the right and attention is causal, so padding is never seen and no attention mask is needed. `packed` puts several
    examples into one row, told apart by positions that start again; `shared` computes every prompt once, and no padding, see `treeattention`.
    A model that does not keep examples apart, which is tried once, falls back to a row each.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self._plain_head: bool | None = None  # is the head one matrix product? found out at the first call
        self._keeps_apart: bool | None = None  # does it know packed rows? likewise
        self.shares: bool | None = None  # and rows that share a prompt?

    def forward(
        self,
        prompts: Ragged,
        completions: Ragged,
        pad_id: int,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        hidden: bool = False,
        packed: bool = False,
        shared: bool = False,
    ) -> TokenStats:
        if shared and self._can_share(pad_id) and self._sharing_pays(prompts, completions):
            layout = lay_out_tree(prompts, completions)
        else:
            packed = packed and self._can_pack(pad_id)
            layout = lay_out(prompts, completions, pad_id, int((prompts.lengths + completions.lengths).max()) if packed else None)
        return self._stats(layout, completions.values, temperature, entropy, hidden)

    def head(self, prompts: Ragged, completions: Ragged, pad_id: int, *, packed: bool = False) -> Head:
        """What predicts each completion token: its state and the weights it meets, or its logits, for losses that need more than its log-prob."""
        packed = packed and self._can_pack(pad_id)
        layout = lay_out(prompts, completions, pad_id, int((prompts.lengths + completions.lengths).max()) if packed else None)
        inputs, at, plain = self._placed(layout)
        if not plain:
            return Head(self.model(**inputs, use_cache=False).logits[at])
        head: nn.Linear = self.model.get_output_embeddings()  # pyright: ignore[reportAssignmentType]
        return Head(self._backbone(**inputs)[at], head.weight, head.bias)

    def _stats(self, layout: Layout, targets: Tensor, temperature: float = 1.0, entropy: bool = False, hidden: bool = False) -> TokenStats:
        inputs, at, plain = self._placed(layout)
        targets = targets.to(at[0].device)
        if plain:
            states = self._backbone(**inputs)[at]
            head: nn.Linear = self.model.get_output_embeddings()  # pyright: ignore[reportAssignmentType]
            logp, ent = token_logprobs(states, head.weight, targets, bias=head.bias, temperature=temperature, entropy=entropy)
        else:
            out = self.model(**inputs, use_cache=False, output_hidden_states=hidden)
            states = out.hidden_states[-1][at] if hidden else None
            logp, ent = logits_logprobs(out.logits[at], targets, temperature=temperature, entropy=entropy)
        return TokenStats(logp, ent, states if hidden else None)

    def _placed(self, layout: Layout) -> tuple[dict[str, Any], tuple[Tensor, Tensor], bool]:
        """What the model reads, where the states are that predict completion tokens, both on its device, and whether its head is a plain product."""
        device = next(self.model.parameters()).device
        inputs: dict[str, Any] = {name: tensor.to(device) for name, tensor in layout.inputs.items()}
        if self._plain_head is None:
            self._plain_head = self._head_is_plain(inputs["input_ids"][:1, :8])
        if layout.tree is not None:  # the mask says that no mask is to be made
            inputs |= {"tree": layout.tree.to(device), "attention_mask": torch.zeros(1, 1, 1, 1, device=device)}
        return inputs, (layout.rows.to(device), layout.columns.to(device)), self._plain_head

    def _backbone(self, **inputs: Any) -> Tensor:
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    @torch.no_grad()
    def _can_share(self, pad_id: int) -> bool:
        """Whether completions that share their prompt get the states they get in rows of their own. From then on `treeattention` is in place."""
        if self.shares is None:
            config, text = self.model.config, self.model.config.get_text_config()
            slides = set(getattr(text, "layer_types", None) or ()) - {"full_attention"} or getattr(text, "sliding_window", None)
            usual = config._attn_implementation in ("sdpa", treeattention.NAME) and not slides
            self.shares = usual and self._takes_positions() and self._hands_on() and self._tells_apart_in_trees(pad_id)
            if not self.shares:
                logger.info("%s mixes completions that share a prompt: each gets a row of its own", type(self.model).__name__)
        return self.shares

    def _tells_apart_in_trees(self, pad_id: int) -> bool:
        config = self.model.config
        config._attn_implementation = treeattention.NAME
        if apart := self._tells_apart(lambda prompts, completions, _: lay_out_tree(prompts, completions), pad_id):
            return apart
        config._attn_implementation = "sdpa"
        return False

    def _hands_on(self) -> bool:
        """Whether the model's attention is looked up by name, and given the arguments that its layers do not know."""
        named = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self.model.base_model.forward).parameters.values())
        return named and bool(getattr(self.model, "_supports_attention_backend", False))

    @torch.no_grad()
    def _can_pack(self, pad_id: int) -> bool:
        """Whether examples that share a row get the states they get in rows of their own."""
        if self._keeps_apart is None:
            self._keeps_apart = self._takes_positions() and self._tells_apart(partial(lay_out, width=7), pad_id)
            if not self._keeps_apart:
                logger.info("%s mixes the examples of a packed row: each gets a row of its own", type(self.model).__name__)
        return self._keeps_apart

    def _sharing_pays(self, prompts: Ragged, completions: Ragged) -> bool:
        """Attention along a tree costs some copies: the tokens that it saves must be worth them."""
        padded = len(prompts) * int((prompts.lengths + completions.lengths).max())
        return tree_tokens(prompts, completions) <= WORTH * padded

    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def _tells_apart(self, together: Callable[[Ragged, Ragged, int], Layout], pad_id: int) -> bool:
        """Tried on two examples for each of two packed rows, the long prompts first, so that short ones follow them; one prompt is there thrice."""
        size = self.model.config.get_text_config().vocab_size
        prompts = Ragged.from_lists([[i % size for i in ids] for ids in ([0, 1, 2, 3], [4, 5, 6, 7], [8], [9], [0, 1, 2, 3], [0, 1, 2, 3])])
        completions = Ragged(torch.arange(10, 17) % size, torch.tensor([0, 1, 2, 3, 4, 6, 7]))
        kind = self.model.device.type
        low = torch.is_autocast_enabled(kind) and "flash" in str(self.model.config._attn_implementation)  # kernels that take nothing else
        layouts = lay_out(prompts, completions, pad_id, None), together(prompts, completions, pad_id)
        with evaluating(self.model), torch.autocast(kind, enabled=low):  # elsewhere in full precision, where a little mixing shows as well
            alone, mixed = (self._stats(layout, completions.values, hidden=True).hidden for layout in layouts)
        assert alone is not None and mixed is not None
        low = low or self.model.dtype in (torch.bfloat16, torch.float16)
        return _agree(alone, mixed, 0.1 if low else 1e-4)

    @torch.no_grad()
    def _head_is_plain(self, ids: Tensor) -> bool:
        """Whether logits are exactly head(backbone), even of states so large that soft-capping shows: not so with logit scaling or a wrapped head."""
        head = self.model.get_output_embeddings()
        if type(head) is nn.Linear and self.model.base_model is not self.model:
            with evaluating(self.model):
                states = self._backbone(input_ids=ids)
                products = {size: nn.functional.linear(states * size, head.weight, head.bias) for size in (1.0, 1e4)}
                if all(_agree(self._enlarged_logits(head, ids, size), product, 1e-2) for size, product in products.items()):
                    return True
        logger.info("%s does more than a matrix product in its head: log-probs are taken from its full logits", type(self.model).__name__)
        return False

    def _enlarged_logits(self, head: nn.Linear, ids: Tensor, size: float) -> Tensor:
        """What the model makes of its head's input when that is `size` times as large."""
        with head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * size,)):
            return self.model(input_ids=ids, use_cache=False).logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the modules that were in training mode return to it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).float().norm() <= tolerance * a.float().norm())
