"""Rollouts as columns: ragged token data held flat beside one offset table, never padded.

A batch of B rollouts with T completion tokens in all is

    objects   one Python object per row       prompts, texts, failures
    rows      one number per row       (B,)   group, agent, reward, scored, ...
    tokens    one number per token     (T,)   token, action, behaviour_logp, ...   row b owns offsets[b]:offsets[b+1]

so that selecting, joining and saving are written once, for every column, and a method adds a column by naming it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class Role(IntEnum):
    """What a rollout is for."""

    TRAIN = 0
    GREEDY = 1  # the baseline sample of ReMax
    PROBE = 2  # drawn to measure, never trained on


class Source(IntEnum):
    """How a rollout came about."""

    SAMPLED = 0
    SEARCHED = 1
    REPLAYED = 2


TURNS = "chat_turns"
"""In `Prompt.info`: the turns of a conversation so far, {role, content} each, where a prompt is more than one question."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. `id` names it for good; `answer` and `info` are what a verifier needs to judge a completion."""

    id: str
    text: str
    answer: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Ragged:
    """Rows of unequal length: `values` (T, ...) and `offsets` (B + 1,) int64, row b being values[offsets[b]:offsets[b+1]]."""

    values: Tensor
    offsets: Tensor

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], dtype: torch.dtype = torch.int64) -> Ragged:
        flat = [x for row in rows for x in row]
        return cls(torch.tensor(flat, dtype=dtype), lengths_to_offsets(torch.tensor([len(r) for r in rows], dtype=torch.int64)))

    @classmethod
    def cat(cls, parts: Sequence[Ragged]) -> Ragged:
        lengths = torch.cat([p.lengths for p in parts])
        return cls(torch.cat([p.values for p in parts]), lengths_to_offsets(lengths))

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        return self.values[self.offsets[:-1][row] : self.offsets[1:][row]]

    def select(self, index: Tensor) -> Ragged:
        """The rows of `index` (N,) int64, in that order; a row may be taken twice."""
        return Ragged(self.values[token_index(self.offsets, index)], lengths_to_offsets(self.lengths[index]))

    def to_lists(self) -> list[list[int]]:
        flat, bounds = self.values.tolist(), self.offsets.tolist()
        return [flat[a:b] for a, b in pairwise(bounds)]


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """(B,) lengths -> (B + 1,) offsets, starting at 0."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def token_index(offsets: Tensor, index: Tensor) -> Tensor:
    """Positions in the flat values of the rows `index` (N,), row after row."""
    lengths = offsets.diff()[index]
    starts = torch.repeat_interleave(offsets[:-1][index], lengths)
    inside = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths_to_offsets(lengths)[:-1], lengths)
    return starts + inside


# Every standard column: its dtype, and the value a batch made without it starts from (None: must be given).
ROW_COLUMNS: dict[str, tuple[torch.dtype, float | None]] = {
    "group": (torch.int64, None),  # ordinal of the prompt in the data stream: unique across rounds and steps
    "sample": (torch.int64, 0),  # index inside the group
    "agent": (torch.int64, 0),  # who drew it
    "version": (torch.int64, 0),  # optimiser steps its policy had seen
    "role": (torch.int64, Role.TRAIN),
    "source": (torch.int64, Source.SAMPLED),
    "finished": (torch.bool, True),  # ended by itself, not by the length limit
    "scored": (torch.bool, False),  # False: no verdict, which is not the same as reward 0
    "reward": (torch.float64, 0.0),  # meaningless where scored is False
    "advantage": (torch.float64, 0.0),  # filled by the credit stage, for one learner
    "usage": (torch.int64, 0),  # updates it has entered
    "spent": (torch.int64, 0),  # tokens generated to obtain it; more than its length for searched rollouts
}
TOKEN_COLUMNS: dict[str, tuple[torch.dtype, float | None]] = {
    "token": (torch.int64, None),  # sampled ids, kept; text is never encoded again
    "action": (torch.bool, True),  # trained on
    "forced": (torch.bool, False),  # put there by the sampler, not chosen by the policy
    "behaviour_logp": (torch.float32, None),  # log-prob under the sampler that drew it, at its temperature
}
# Filled by the annotate stage, and only when a component declares the need: old_logp, ref_logp, entropy, value (T,), hidden (T, D).
# Filled by the credit stage of an agent with a critic: gae, returns (T,).


class RolloutBatch:
    """B rollouts with all their columns. Columns read as attributes: `batch.reward`, `batch.behaviour_logp`.

    Raises ValueError when a column's length does not fit the batch.
    """

    group: Tensor
    sample: Tensor
    agent: Tensor
    version: Tensor
    role: Tensor
    source: Tensor
    finished: Tensor
    scored: Tensor
    reward: Tensor
    advantage: Tensor
    usage: Tensor
    spent: Tensor
    token: Tensor
    action: Tensor
    forced: Tensor
    behaviour_logp: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    entropy: Tensor
    value: Tensor
    hidden: Tensor
    gae: Tensor
    returns: Tensor

    def __init__(
        self,
        prompts: Sequence[Prompt],
        prompt_tokens: Ragged,
        offsets: Tensor,
        *,
        texts: Sequence[str] | None = None,
        failures: Sequence[str] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        tokens: Mapping[str, Tensor] | None = None,
    ):
        self.prompts = list(prompts)
        self.prompt_tokens = prompt_tokens
        self.offsets = offsets
        self.texts = list(texts) if texts is not None else [""] * len(self.prompts)
        self.failures = list(failures) if failures is not None else [""] * len(self.prompts)  # why a row is unscored, or is worth what it is
        size, total = len(self.prompts), int(offsets[-1])
        self.rows = _columns(ROW_COLUMNS, rows or {}, size, "row")
        self.tokens = _columns(TOKEN_COLUMNS, tokens or {}, total, "token")
        described = {"prompt_tokens": prompt_tokens, "offsets": offsets[1:], "texts": self.texts, "failures": self.failures}
        for name, found in ((name, len(column)) for name, column in described.items()):
            if found != size:
                raise ValueError(f"{name} describes {found} rollouts, the batch has {size}")

    def __getattr__(self, name: str) -> Tensor:
        for columns in ("rows", "tokens"):
            if name in self.__dict__.get(columns, ()):
                return self.__dict__[columns][name]
        raise AttributeError(f"this batch has no column {name!r}; a component that reads it must list it in `needs`")

    def __len__(self) -> int:
        return len(self.prompts)

    def __contains__(self, column: str) -> bool:
        return column in self.rows or column in self.tokens

    def __repr__(self) -> str:
        return f"RolloutBatch({len(self)} rollouts, {int(self.offsets[-1])} tokens, {len(set(self.group.tolist()))} groups)"

    @property
    def lengths(self) -> Tensor:
        """(B,) completion lengths in tokens."""
        return self.offsets.diff()

    @property
    def row_of_token(self) -> Tensor:
        """(T,) the row each token belongs to."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths)

    @property
    def completions(self) -> Ragged:
        return Ragged(self.token, self.offsets)

    def with_columns(self, **columns: Tensor) -> RolloutBatch:
        """A batch with these columns added or replaced: (B,) for a known row column or a name with '/', else (T, ...)."""
        rows = {k: v for k, v in columns.items() if k in ROW_COLUMNS or "/" in k}
        tokens = {k: v for k, v in columns.items() if k not in rows}
        return self._like(self.prompts, self.prompt_tokens, self.offsets, self.texts, self.failures, self.rows | rows, self.tokens | tokens)

    def select(self, index: Tensor) -> RolloutBatch:
        """The rollouts of `index`, (N,) int64 or a (B,) bool mask, in that order."""
        if index.dtype == torch.bool:
            if len(index) != len(self):
                raise ValueError(f"the mask has {len(index)} entries, the batch has {len(self)} rollouts")
            index = index.nonzero()[:, 0]
        at, picks = token_index(self.offsets, index), index.tolist()
        return self._like(
            [self.prompts[i] for i in picks],
            self.prompt_tokens.select(index),
            lengths_to_offsets(self.lengths[index]),
            [self.texts[i] for i in picks],
            [self.failures[i] for i in picks],
            {k: v[index] for k, v in self.rows.items()},
            {k: v[at] for k, v in self.tokens.items()},
        )

    @classmethod
    def cat(cls, batches: Sequence[RolloutBatch]) -> RolloutBatch:
        """All rollouts, one batch after the other; only columns that every batch has survive, reward parts are filled with NaN."""
        if not batches:
            raise ValueError("there is nothing to join: the list of batches is empty")
        rows = {k: [] for b in batches for k in b.rows if "/" in k or all(k in other.rows for other in batches)}
        for name, parts in rows.items():
            parts.extend(b.rows.get(name, torch.full((len(b),), torch.nan, dtype=torch.float64)) for b in batches)
        shared = [k for k in batches[0].tokens if all(k in b.tokens for b in batches)]
        return cls._like(
            [p for b in batches for p in b.prompts],
            Ragged.cat([b.prompt_tokens for b in batches]),
            lengths_to_offsets(torch.cat([b.lengths for b in batches])),
            [t for b in batches for t in b.texts],
            [f for b in batches for f in b.failures],
            {k: torch.cat(parts) for k, parts in rows.items()},
            {k: torch.cat([b.tokens[k] for b in batches]) for k in shared},
        )

    def groups(self) -> Iterator[tuple[int, Tensor]]:
        """(group id, row indices) in order of first appearance."""
        members: dict[int, list[int]] = {}
        for row, group in enumerate(self.group.tolist()):
            members.setdefault(group, []).append(row)
        for group, rows in members.items():
            yield group, torch.tensor(rows)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values: what checkpoint.save takes."""
        return {
            "prompts": [{"id": p.id, "text": p.text, "answer": p.answer, "info": dict(p.info)} for p in self.prompts],
            "prompt_values": self.prompt_tokens.values,
            "prompt_offsets": self.prompt_tokens.offsets,
            "offsets": self.offsets,
            "texts": self.texts,
            "failures": self.failures,
            "rows": dict(self.rows),
            "tokens": dict(self.tokens),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RolloutBatch:
        return cls._like(
            [Prompt(**p) for p in state["prompts"]],
            Ragged(state["prompt_values"], state["prompt_offsets"]),
            state["offsets"],
            state["texts"],
            state["failures"],
            state["rows"],
            state["tokens"],
        )

    @classmethod
    def _like(cls, prompts, prompt_tokens, offsets, texts, failures, rows, tokens) -> RolloutBatch:
        return cls(prompts, prompt_tokens, offsets, texts=texts, failures=failures, rows=rows, tokens=tokens)


def _columns(known: Mapping[str, tuple[torch.dtype, float | None]], given: Mapping[str, Tensor], size: int, kind: str) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for name, (dtype, default) in known.items():
        if name in given:
            columns[name] = given[name].to(dtype)
        elif default is None:
            raise ValueError(f"a rollout batch needs the {kind} column {name!r}")
        else:
            columns[name] = torch.full((size,), default, dtype=dtype)
    columns.update({k: v for k, v in given.items() if k not in known})
    for name, column in columns.items():
        if len(column) != size:
            raise ValueError(f"{kind} column {name!r} has {len(column)} entries, the batch has {size} {kind}s")
    return columns
