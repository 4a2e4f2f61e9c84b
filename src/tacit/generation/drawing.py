"""What a sampler orders and what it gets: many rows, each drawn from its prompt to its end. Any decoder can do it step by step; some do it whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.generation.decoder import Decoder, Handle
from tacit.generation.noise import sample_from, uniforms

Ended = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


@dataclass
class Order:
    """B rows to draw: row i continues prompts[prompt_of_row[i]], an entry that may serve many rows, by at most limits[i] tokens.

    `at_once` bounds the rows decoded at a time. A row ends with a stop id, or where `ended` says so, which is given the rows that have just drawn and
    their tokens, each (n,), and may be asked by several threads. `progress` is called now and then with the number of tokens drawn so far.
    """

    prompts: list[list[int]]
    prompt_of_row: NDArray[np.int64]
    keys: NDArray[np.uint64]
    limits: NDArray[np.int64]
    stop_ids: NDArray[np.int64]  # in ascending order
    temperature: float = 1.0
    top_p: float = 1.0
    entropy: bool = False
    at_once: int = 512
    ended: Ended | None = None
    progress: Callable[[int], None] | None = None


@dataclass
class Drawn:
    """The tokens (T,) of all rows, one after the other, with log-probs and entropies (T,); lengths (B,), and which came to their end (B,)."""

    tokens: NDArray[np.int64]
    logp: NDArray[np.float32]
    entropy: NDArray[np.float32] | None
    lengths: NDArray[np.int64]
    finished: NDArray[np.bool_]
    steps: int


@runtime_checkable
class WholeDecoder(Protocol):
    """A decoder that draws rows from beginning to end by itself, and the same ones as `draw_by_steps`."""

    def draw(self, order: Order) -> Drawn: ...


def draw(decoder: Decoder, order: Order) -> Drawn:
    if not len(order.prompt_of_row):
        none = np.empty(0, np.float32)
        return Drawn(np.empty(0, np.int64), none, none if order.entropy else None, np.empty(0, np.int64), np.empty(0, bool), 0)
    return decoder.draw(order) if isinstance(decoder, WholeDecoder) else draw_by_steps(decoder, order)


def draw_by_steps(decoder: Decoder, order: Order) -> Drawn:
    """Each prompt is read once, prompts of like length together, since equal lengths need no padding; rows that have ended leave the batch."""
    record = Record(len(order.prompt_of_row), order.entropy)
    for prompts, rows in _batches(order):
        read = decoder.prefill([order.prompts[i] for i in prompts])
        for chunk in np.split(rows, range(order.at_once, len(rows), order.at_once)):
            place = np.searchsorted(prompts, order.prompt_of_row[chunk])
            handle = decoder.fork(read, torch.from_numpy(place))
            _decode(decoder, handle, chunk, order, record)
            decoder.release(handle)
        decoder.release(read)
    return record.drawn()


def _batches(order: Order) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Prompts, in ascending order, and all their rows: as many as may be decoded at a time, but one prompt at least."""
    rows_of = np.split(np.argsort(order.prompt_of_row, kind="stable"), np.bincount(order.prompt_of_row, minlength=len(order.prompts)).cumsum()[:-1])
    batch: list[int] = []
    held = 0
    for prompt in sorted(range(len(order.prompts)), key=lambda i: len(order.prompts[i])):
        if batch and held + len(rows_of[prompt]) > order.at_once:
            yield np.sort(batch), np.concatenate([rows_of[i] for i in batch])
            batch, held = [], 0
        batch.append(prompt)
        held += len(rows_of[prompt])
    yield np.sort(batch), np.concatenate([rows_of[i] for i in batch])


def _decode(decoder: Decoder, handle: Handle, rows: NDArray[np.int64], order: Order, record: Record) -> None:
    """Draws the rows (R,) to their ends."""
    for position in itertools.count():
        number = torch.from_numpy(uniforms(order.keys[rows], position)).to(handle.logits.device)
        token, logp, entropy = sample_from(handle.logits, number, order.temperature, order.top_p, order.entropy)
        ids = token.cpu().numpy()
        record.add(rows, ids, logp, entropy)
        if order.progress is not None:
            order.progress(record.total)

        ended = np.isin(ids, order.stop_ids)
        if order.ended is not None:
            ended |= order.ended(rows, ids)
        record.finished[rows[ended]] = True
        going = ~ended & (order.limits[rows] > position + 1)
        if not going.any():
            return
        if not going.all():
            index = packed(going)
            rows, index = rows[index], torch.from_numpy(index)
            decoder.keep(handle, index)
            token = token[index.to(token.device)]
        decoder.step(handle, token)
        record.steps += 1


def packed(going: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the n true entries, arranged so that those among the first n stay where they are and the others fill the holes."""
    count = int(going.sum())
    index = np.arange(count)
    index[~going[:count]] = count + np.flatnonzero(going[count:])
    return index


@dataclass
class Record:
    """What has been drawn so far of `rows` rows, in the order of drawing."""

    rows: int
    with_entropy: bool
    steps: int = 0
    total: int = 0
    _parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.finished = np.zeros(self.rows, dtype=bool)

    def add(self, rows: NDArray[np.int64], ids: NDArray[np.int64], logp: torch.Tensor, entropy: torch.Tensor | None) -> None:
        """One token for each of these rows."""
        self.total += len(rows)
        logps = logp.float().cpu().numpy()
        self._parts.append((rows, ids, logps, logps if entropy is None else entropy.float().cpu().numpy()))

    def drawn(self) -> Drawn:
        rows, ids, logp, entropy = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        order = np.argsort(rows, kind="stable")
        lengths = np.bincount(rows, minlength=self.rows)
        return Drawn(ids[order], logp[order], entropy[order] if self.with_entropy else None, lengths, self.finished, self.steps)
