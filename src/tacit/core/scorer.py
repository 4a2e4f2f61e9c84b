"""One forward pass over completions: right-padded or packed rows, and the log-probs, entropies and hidden states of their tokens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tacit.core.logprobs import logits_logprobs, token_logprobs
from tacit.core.rollouts import Ragged

logger = logging.getLogger("tacit")


@dataclass(slots=True)
class TokenStats:
    """What one forward pass tells about each completion token, flat over the rows: log-prob (T,), entropy (T,), hidden (T, D)."""

    logp: Tensor
    entropy: Tensor | None = None
    hidden: Tensor | None = None


class TokenScorer(nn.Module):
    """Log-probs of completion tokens under a causal LM, the head applied only where a completion token is predicted.

    Rows are padded on the right and attention is causal, so padding is never seen and no attention mask is needed. `packed` puts several
    examples into one row, told apart by positions that start again; a model that does not keep them apart falls back to a row each.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self._plain_head: bool | None = None  # is the head one matrix product? found out at the first call
        self._keeps_apart: bool | None = None  # does it know packed rows? likewise

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
    ) -> TokenStats:
        packed = packed and self._can_pack(pad_id)
        layout = _lay_out(prompts, completions, pad_id, int((prompts.lengths + completions.lengths).max()) if packed else None)
        return self._stats(layout, completions.values, temperature, entropy, hidden)

    def _stats(self, layout: Layout, targets: Tensor, temperature: float = 1.0, entropy: bool = False, hidden: bool = False) -> TokenStats:
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in layout.inputs.items()}
        if self._plain_head is None:
            self._plain_head = self._head_is_plain(inputs["input_ids"][:1, :8])
        at, targets = (layout.rows.to(device), layout.columns.to(device)), targets.to(device)
        if self._plain_head:
            states = self._backbone(**inputs)[at]
            head: nn.Linear = self.model.get_output_embeddings()  # pyright: ignore[reportAssignmentType]
            logp, ent = token_logprobs(states, head.weight, targets, bias=head.bias, temperature=temperature, entropy=entropy)
        else:
            out = self.model(**inputs, use_cache=False, output_hidden_states=hidden)
            states = out.hidden_states[-1][at] if hidden else None
            logp, ent = logits_logprobs(out.logits[at], targets, temperature=temperature, entropy=entropy)
        return TokenStats(logp, ent, states if hidden else None)

    def _backbone(self, **inputs: Tensor) -> Tensor:
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    @torch.no_grad()
    def _can_pack(self, pad_id: int) -> bool:
        """Whether examples that share a row get the states they get in rows of their own; tried once, two examples in each of two rows."""
        if self._keeps_apart is None:
            self._keeps_apart = "position_ids" in inspect.signature(self.model.forward).parameters and self._tells_apart(pad_id)
            if not self._keeps_apart:
                logger.info("%s mixes the examples of a packed row: each gets a row of its own", type(self.model).__name__)
        return self._keeps_apart

    def _tells_apart(self, pad_id: int) -> bool:
        size = self.model.config.get_text_config().vocab_size
        prompts = Ragged(torch.arange(10) % size, torch.tensor([0, 4, 8, 9, 10]))  # the long ones first, so that the short ones follow them
        completions = Ragged(torch.arange(10, 14) % size, torch.arange(5))
        kind = self.model.device.type
        low = torch.is_autocast_enabled(kind) and "flash" in str(self.model.config._attn_implementation)  # kernels that take nothing else
        with evaluating(self.model), torch.autocast(kind, enabled=low):  # elsewhere in full precision, where a little mixing shows as well
            alone, together = (self._stats(_lay_out(prompts, completions, pad_id, w), completions.values, hidden=True).hidden for w in (None, 7))
        assert alone is not None and together is not None
        low = low or self.model.dtype in (torch.bfloat16, torch.float16)
        return _agree(alone, together, 0.1 if low else 1e-4)

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


def micro_batches(lengths: Tensor, budget: int) -> list[Tensor]:
    """Cuts rows (B,) into micro-batches of at most `budget` padded tokens, longest first so that neighbours are of like length.

    A row longer than the budget is a micro-batch of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    parts, start = [], 0
    widths = lengths[order].tolist()
    while start < len(order):
        size = max(1, budget // max(1, widths[start]))
        parts.append(order[start : start + size])
        start += size
    return parts


@dataclass(slots=True)
class Layout:
    """Model inputs (R, L), and for each completion token the (row, column) whose state predicts it, (T,) each."""

    inputs: dict[str, Tensor]
    rows: Tensor
    columns: Tensor


def _lay_out(prompts: Ragged, completions: Ragged, pad_id: int, width: int | None) -> Layout:
    """Each example in a row of its own from column 0, or several to a row of `width` columns."""
    before, after = prompts.lengths, completions.lengths
    assert (before > 0).all(), "the first token of a completion is predicted from the prompt, which must not be empty"
    row, start = _bins(before + after, width) if width else (torch.arange(len(before)), torch.zeros_like(before))
    shape = int(row.max()) + 1, int((start + before + after).max())
    ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.int64)
    example, inside = _places(before)
    ids[row[example], start[example] + inside] = prompts.values
    positions[row[example], start[example] + inside] = inside
    example, inside = _places(after)
    rows, inside = row[example], inside + before[example]
    columns = start[example] + inside
    ids[rows, columns] = completions.values
    positions[rows, columns] = inside
    shared = shape[0] < len(before)  # positions tell examples apart, and cost a mask: only where rows are shared
    return Layout({"input_ids": ids} | ({"position_ids": positions} if shared else {}), rows, columns - 1)


def _bins(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(row, first column) of each example when rows of `width` are filled, longest first, each into the first row with room."""
    used: list[int] = []
    row, start = torch.empty_like(lengths), torch.empty_like(lengths)
    for example in torch.argsort(lengths, descending=True, stable=True).tolist():
        length = int(lengths[example])
        place = next((i for i, n in enumerate(used) if n + length <= width), len(used))
        if place == len(used):
            used.append(0)
        row[example], start[example] = place, used[place]
        used[place] += length
    return row, start


def _places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(row, position inside the row) of every token of ragged rows."""
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = lengths.cumsum(0) - lengths
    return rows, torch.arange(len(rows)) - starts[rows]
