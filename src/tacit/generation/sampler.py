"""Sampler: groups of completions, each token drawn with a number of its own, so that a rollout depends on nothing but the weights and its place."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.core.rollouts import Prompt, Ragged, Role, RolloutBatch, lengths_to_offsets
from tacit.generation.decoder import Decoder, Handle
from tacit.generation.noise import row_keys, sample_from, uniforms


class SamplingPolicy(Protocol):
    """What the sampler needs of a policy."""

    @property
    def stop_ids(self) -> frozenset[int]: ...
    @property
    def context(self) -> int: ...
    @property
    def version(self) -> int: ...
    def encode_prompt(self, prompt: Prompt) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class SampleStats:
    """What a call cost: completion tokens drawn, wall-clock seconds, and decoder steps after the prompts."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0


class Sampler:
    """Draws groups of completions from `decoder`. A completion ends at a stop id, with a stop string, or at the length limit.

    A stop id stays in the completion as its last token. A stop string is looked for in the decoded text and may begin and end inside tokens: the text
    is cut before it, the tokens stay as sampled. `rows` bounds the sequences decoded at a time and changes nothing in what is drawn. `progress` is
    called once a step with the number of tokens drawn so far. Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        decoder: Decoder,
        policy: SamplingPolicy,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        rows: int = 512,
        progress: Callable[[int], None] | None = None,
    ):
        if max_new_tokens < 1 or rows < 1:
            raise ValueError(f"max_new_tokens ({max_new_tokens}) and rows ({rows}) must be at least 1")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {top_p}")
        self.decoder, self.policy, self.progress = decoder, policy, progress
        self.max_new_tokens, self.temperature, self.top_p, self.rows = max_new_tokens, temperature, top_p, rows
        self.stop = StopStrings(stop, policy.decode)
        self.last_stats = SampleStats()

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        *,
        seed: int,
        step: int,
        groups: Sequence[int],
        temperature: float | None = None,
        agent: int = 0,
        role: Role = Role.TRAIN,
    ) -> RolloutBatch:
        """`group_size` rollouts of each prompt, group by group; `groups` are the ids of the groups. A temperature of 0 is greedy.

        Raises ValueError when a prompt leaves no room in the context, and when training rollouts are asked for with greedy or truncated sampling.
        """
        began = time.perf_counter()
        temperature = self.temperature if temperature is None else temperature
        if len(groups) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(groups)} group ids; give one for each")
        if role == Role.TRAIN:
            self._refuse_unsuitable_for_training(temperature)
        encoded = [self.policy.encode_prompt(prompt) for prompt in prompts]
        limits = [self._limit(prompt, ids) for prompt, ids in zip(prompts, encoded, strict=True)]
        group, sample = np.repeat(np.array(groups, np.int64), group_size), np.tile(np.arange(group_size), len(prompts))

        draw = Draw(row_keys(seed, step, group, sample, agent=agent), np.repeat(np.array(limits, np.int64), group_size), temperature)
        with self.decoder.session():
            self._decode_all(encoded, group_size, draw)
        token, logp, lengths = draw.columns()
        self.last_stats = SampleStats(len(token), time.perf_counter() - began, draw.steps)

        completions = Ragged(torch.from_numpy(token), lengths_to_offsets(torch.from_numpy(lengths)))
        row_of_prompt = torch.arange(len(prompts)).repeat_interleave(group_size)
        same = {"agent": agent, "version": self.policy.version, "role": int(role)}
        return RolloutBatch(
            [prompt for prompt in prompts for _ in range(group_size)],
            Ragged.from_lists(encoded).select(row_of_prompt),
            completions.offsets,
            texts=[self._text(ids) for ids in completions.to_lists()],
            rows={
                "group": torch.from_numpy(group),
                "sample": torch.from_numpy(sample),
                "finished": torch.from_numpy(draw.finished),
                "spent": completions.lengths,
                **{name: torch.full((len(group),), value) for name, value in same.items()},
            },
            tokens={"token": completions.values, "behaviour_logp": torch.from_numpy(logp)},
        )

    def _decode_all(self, encoded: list[list[int]], group_size: int, draw: Draw) -> None:
        """Each prompt is read once; prompts of like length go together, since equal lengths need no padding."""
        order = np.argsort([len(ids) for ids in encoded], kind="stable")
        together = max(1, self.rows // group_size)
        for first in range(0, len(order), together):
            part = order[first : first + together]
            read = self.decoder.prefill([encoded[i] for i in part])
            places = np.arange(len(part) * group_size)
            for chunk in np.split(places, range(self.rows, len(places), self.rows)):
                handle = self.decoder.fork(read, torch.from_numpy(chunk // group_size))
                self._decode(handle, part[chunk // group_size] * group_size + chunk % group_size, draw)
                self.decoder.release(handle)
            self.decoder.release(read)

    def _decode(self, handle: Handle, rows: NDArray[np.int64], draw: Draw) -> None:
        """Draws the rows (R,) to their ends; those that have ended leave the batch."""
        stop_ids = np.array(sorted(self.policy.stop_ids))
        for position in itertools.count():
            number = torch.from_numpy(uniforms(draw.keys[rows], position)).to(handle.logits.device)
            token, logp = sample_from(handle.logits, number, draw.temperature, self.top_p)
            ids = token.cpu().numpy()
            draw.add(rows, ids, logp.float().cpu().numpy())
            if self.progress is not None:
                self.progress(draw.total)

            ended = np.isin(ids, stop_ids)
            if self.stop.strings:
                for row, token_id in zip(rows, ids.tolist(), strict=True):
                    draw.history[row].append(token_id)
                ended |= [self.stop.ended(draw.history[row]) for row in rows]
            draw.finished[rows[ended]] = True
            going = ~ended & (draw.limits[rows] > position + 1)
            if not going.any():
                return
            if not going.all():
                index = packed(going)
                rows, index = rows[index], torch.from_numpy(index)
                self.decoder.keep(handle, index)
                token = token[index.to(token.device)]
            self.decoder.step(handle, token)
            draw.steps += 1

    def _limit(self, prompt: Prompt, ids: list[int]) -> int:
        room = self.policy.context - len(ids)
        if room < 1:
            raise ValueError(
                f"prompt {prompt.id!r} has {len(ids)} tokens and the model's context holds {self.policy.context}, so no completion fits; "
                "shorten or leave out such prompts, or use a model with a longer context"
            )
        return min(self.max_new_tokens, room)

    def _refuse_unsuitable_for_training(self, temperature: float) -> None:
        if self.top_p < 1:
            raise ValueError(
                f"top_p={self.top_p} is for evaluation: it draws from a truncated distribution, while log-probs and importance ratios are those of "
                "the whole one, so the ratios average below 1 and bias every update; train with top_p=1, or pass role=Role.PROBE to measure only"
            )
        if temperature <= 0:
            raise ValueError(
                "greedy completions are for evaluation: drawn with certainty, they have no importance ratio; "
                "train with a temperature above 0, or pass role=Role.GREEDY or Role.PROBE"
            )

    def _text(self, ids: list[int]) -> str:
        if ids[-1] in self.policy.stop_ids:  # not every stop id counts as special for the tokenizer
            ids = ids[:-1]
        return self.stop.cut(self.policy.decode(ids))


class Draw:
    """What a call of `sample` has drawn so far, of all its rows (B,), in the order of drawing."""

    def __init__(self, keys: NDArray[np.uint64], limits: NDArray[np.int64], temperature: float):
        self.keys, self.limits, self.temperature = keys, limits, temperature
        self.finished = np.zeros(len(keys), dtype=bool)
        self.history: list[list[int]] = [[] for _ in keys]  # tokens by row, kept only where stop strings need them
        self.steps = self.total = 0
        self._rows, self._ids, self._logp = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]

    def add(self, rows: NDArray[np.int64], ids: NDArray[np.int64], logp: NDArray[np.float32]) -> None:
        """One token for each of these rows."""
        self.total += len(rows)
        self._rows.append(rows)
        self._ids.append(ids)
        self._logp.append(logp)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Token ids (T,) and log-probs (T,), row after row, and the lengths (B,)."""
        rows = np.concatenate(self._rows)
        order = np.argsort(rows, kind="stable")
        return np.concatenate(self._ids)[order], np.concatenate(self._logp)[order], np.bincount(rows, minlength=len(self.keys))


class StopStrings:
    """Finds stop strings in a completion as it grows. Raises ValueError for an empty string, which would end everything at once."""

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]):
        if "" in strings:
            raise ValueError("a stop string is empty; every completion would end before its first character")
        self.strings, self.decode = tuple(strings), decode
        self._reach = 1 + max((len(s.encode()) for s in strings), default=0)
        self._silent: dict[int, bool] = {}

    def ended(self, ids: list[int]) -> bool:
        """Whether a stop string has appeared with the last token. Most of the time it is enough to decode a few tokens."""
        return self._found(self.decode(self._tail(ids))) and self._found(self.decode(ids))

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        places = [place for place in (text.find(s) for s in self.strings) if place >= 0]
        return text[: min(places)] if places else text

    def _found(self, text: str) -> bool:
        return any(s in text for s in self.strings)

    def _tail(self, ids: list[int]) -> list[int]:
        """The last tokens, enough to hold the longest stop string: each gives a byte or more, except the silent ones, such as special tokens."""
        start, heard = len(ids), 0
        while start > 0 and heard < self._reach:
            start -= 1
            heard += not self._is_silent(ids[start])
        return ids[start:]

    def _is_silent(self, token: int) -> bool:
        if token not in self._silent:
            self._silent[token] = not self.decode([token])
        return self._silent[token]


def packed(going: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the n true entries, arranged so that those among the first n stay where they are and the others fill the holes."""
    count = int(going.sum())
    index = np.arange(count)
    index[~going[:count]] = count + np.flatnonzero(going[count:])
    return index
