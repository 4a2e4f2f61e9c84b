"""The generic decoder: any causal LM of `transformers`, with adapters or without, through its own forward pass.

Against `model.generate` it saves what costs most on small models: keys and values are written into buffers with room to spare instead of being copied
whole at every step, no mask is built when all prompts have the same length, equal prompts are read once, and dropped rows leave the batch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tacit.core.policy import Policy
from tacit.generation.decoder import Handle

ROOM = 64  # positions that a buffer has to spare when it is made: it is copied once in so many steps, which attention does at every one


@dataclass(slots=True)
class State:
    """What a handle holds: with prompts of unequal length, padded on the left, also which positions count and where each row stands."""

    cache: Cache
    mask: Tensor | None = None  # (R, length) bool
    position: Tensor | None = None  # (R, 1) of the last token


class TransformersDecoder:
    """Decodes with the model of `policy` as it is at that moment. Raises ValueError when the model keeps no `past_key_values`."""

    def __init__(self, policy: Policy):
        self.policy = policy
        accepted = inspect.signature(policy.base_model.forward).parameters
        if "past_key_values" not in accepted:
            raise ValueError(
                f"{type(policy.base_model).__name__} takes no past_key_values, so it cannot be decoded step by step; use a causal LM with a key/value cache"
            )
        self._takes_positions = "position_ids" in accepted
        self._prefill_options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._in_session = False

    @contextmanager
    def session(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the policy's precision; the modules that were in training mode return to it."""
        if self._in_session:
            yield
            return
        training = [module for module in self.policy.model.modules() if module.training]
        self.policy.model.eval()
        self._in_session = True
        try:
            with torch.inference_mode(), self.policy.autocast():
                yield
        finally:
            self._in_session = False
            for module in training:
                module.training = True

    def prefill(self, prompts: list[list[int]]) -> Handle:
        """Reads R prompts, equal ones once. Raises ValueError when there is none, or an empty one."""
        if not prompts or not all(prompts):
            raise ValueError("prefill needs at least one prompt, and every prompt at least one token")
        places: dict[tuple[int, ...], int] = {}
        rows = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
        with self.session():
            handle = self._read(list(places))
            return handle if len(places) == len(prompts) else self.fork(handle, torch.tensor(rows))

    def fork(self, handle: Handle, rows: Tensor) -> Handle:
        with self.session():
            state: State = handle.state
            rows = rows.to(handle.logits.device)
            cache = copy.copy(state.cache)
            cache.layers = [_fork(layer, rows) for layer in cache.layers]
            return Handle(handle.logits[rows], State(cache, _rows(state.mask, rows), _rows(state.position, rows)))

    def keep(self, handle: Handle, rows: Tensor) -> None:
        with self.session():
            state: State = handle.state
            rows = rows.to(handle.logits.device)
            moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
            in_place = bool((rows[moved] >= len(rows)).all())
            for layer in state.cache.layers:
                if in_place and isinstance(layer, BufferedLayer):
                    layer.keep(rows, moved)
                else:
                    layer.reorder_cache(rows)
            handle.logits, state.mask, state.position = handle.logits[rows], _rows(state.mask, rows), _rows(state.position, rows)

    def step(self, handle: Handle, tokens: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Raises ValueError unless exactly one of `tokens` and `embeddings` is given."""
        if (tokens is None) == (embeddings is None):
            raise ValueError("a step needs either tokens or embeddings")
        state: State = handle.state
        with self.session():
            inputs = {"input_ids": tokens[:, None]} if tokens is not None else {"inputs_embeds": embeddings[:, None]}
            if state.mask is not None and state.position is not None:
                state.mask = torch.cat([state.mask, state.mask.new_ones(len(state.mask), 1)], 1)
                state.position = state.position + 1
            handle.logits = self._forward(state, state.position, **inputs)
        return handle.logits

    def release(self, handle: Handle) -> None:
        handle.logits, handle.state = handle.logits[:0], None

    def _read(self, prompts: list[tuple[int, ...]]) -> Handle:
        """One forward pass over different prompts."""
        width = max(map(len, prompts))
        device = self.policy.device
        ids = torch.tensor([[self.policy.pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
        state, positions = State(buffered_cache(self.policy.base_model)), None
        if min(map(len, prompts)) < width:
            padding = torch.tensor([width - len(p) for p in prompts], device=device)[:, None]
            positions = torch.arange(width, device=device) - padding
            state.mask, positions = positions >= 0, positions.clamp(min=0)
            state.position = positions[:, -1:]
        return Handle(self._forward(state, positions, input_ids=ids, **self._prefill_options), state)

    def _forward(self, state: State, positions: Tensor | None, **inputs: Any) -> Tensor:
        """Logits (R, V) at the last position. Without padding the model finds mask and positions by itself, and cheaper."""
        if state.mask is not None:
            inputs["attention_mask"] = state.mask
            if self._takes_positions:
                inputs["position_ids"] = positions
        return self.policy.model(**inputs, past_key_values=state.cache, use_cache=True).logits[:, -1]


# --- the cache ---


class Buffer:
    """Keys or values of one layer: `data` (R, heads, capacity, D), of which the positions from start to stop are in use."""

    def __init__(self, data: Tensor | None = None):
        self.data = data
        self.start, self.stop = 0, 0

    @property
    def used(self) -> Tensor:
        return self.data[:, :, self.start : self.stop]

    def append(self, new: Tensor) -> Tensor:
        """Adds `new` (R, heads, n, D) and returns all in use, a view."""
        if self.data is None:
            self._hold(new)
        elif self.stop + new.shape[2] <= self.data.shape[2]:
            self.data[:, :, self.stop : self.stop + new.shape[2]] = new
            self.stop += new.shape[2]
        else:
            self._hold(torch.cat([self.used, new], 2))
        return self.used

    def select(self, rows: Tensor) -> Buffer:
        """Another buffer, over these rows."""
        chosen = Buffer()
        chosen._hold(self.used[rows])
        return chosen

    def keep(self, rows: Tensor, moved: Tensor) -> None:
        """Only these rows from now on; those at `moved` come from behind the last place, and nothing else is copied."""
        self.used[moved] = self.used[rows[moved]]
        self.data = self.data[: len(rows)]

    def _hold(self, content: Tensor) -> None:
        rows, heads, length, width = content.shape
        self.data = content.new_empty(rows, heads, length + ROOM, width)
        self.data[:, :, :length] = content
        self.start, self.stop = 0, length


class BufferedLayer(DynamicLayer):
    """A cache layer that appends in place instead of joining old and new at every step. `keys` and `values` are views of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers = [Buffer(), Buffer()]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = (buffer.append(new) for buffer, new in zip(self.buffers, (key_states, value_states), strict=True))
        return self.keys, self.values

    def fork(self, rows: Tensor) -> BufferedLayer:
        layer = copy.copy(self)
        layer.buffers = [buffer.select(rows) for buffer in self.buffers]
        layer.keys, layer.values = (buffer.used for buffer in layer.buffers)
        return layer

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.__dict__ = self.fork(beam_idx).__dict__

    def keep(self, rows: Tensor, moved: Tensor) -> None:
        """See Buffer.keep."""
        for buffer in self.buffers:
            buffer.keep(rows, moved)
        self.keys, self.values = (buffer.used for buffer in self.buffers)


class BufferedSlidingLayer(BufferedLayer, DynamicSlidingWindowLayer):
    """The same for sliding-window attention: what left the window is dropped from sight at once, and from memory at the next growth."""

    def __init__(self, sliding_window: int):
        DynamicSlidingWindowLayer.__init__(self, sliding_window=sliding_window)
        self.buffers = [Buffer(), Buffer()]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        everything = BufferedLayer.update(self, key_states, value_states)
        self.cumulative_length += key_states.shape[2]
        for buffer in self.buffers:
            buffer.start = max(buffer.start, buffer.stop - self.sliding_window + 1)
        return everything


def buffered_cache(model: PreTrainedModel) -> Cache:
    """The cache that fits the model, its attention layers buffered; layers of other kinds (recurrent, compressed) stay what they are."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = BufferedLayer()
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = BufferedSlidingLayer(layer.sliding_window)
    return cache


def _fork(layer: Any, rows: Tensor) -> Any:
    if isinstance(layer, BufferedLayer):
        return layer.fork(rows)
    layer = copy.deepcopy(layer)
    layer.reorder_cache(rows)
    return layer


def _rows(column: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if column is None else column[rows]
