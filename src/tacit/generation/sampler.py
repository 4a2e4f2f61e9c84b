"""Sampler: groups of completions, each token drawn with a number of its own, so that a rollout depends on nothing but the weights and its place."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.core.rollouts import Prompt, Ragged, Role, RolloutBatch, lengths_to_offsets
from tacit.generation.decoder import Decoder
from tacit.generation.drawing import Ended, Order, draw
from tacit.generation.noise import row_keys


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
    is cut before it, the tokens stay as sampled. `rows` bounds the sequences decoded at a time and changes nothing in what is drawn. With `entropy`
    the rollouts have a column of that name: that of the distribution each token was drawn from, in nats. `progress` is called now and then with the
    number of tokens drawn so far. Raises ValueError for settings out of range.
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
        entropy: bool = False,
        progress: Callable[[int], None] | None = None,
    ):
        if max_new_tokens < 1 or rows < 1:
            raise ValueError(f"max_new_tokens ({max_new_tokens}) and rows ({rows}) must be at least 1")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {top_p}")
        self.decoder, self.policy, self.progress = decoder, policy, progress
        self.max_new_tokens, self.temperature, self.top_p, self.rows, self.entropy = max_new_tokens, temperature, top_p, rows, entropy
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

        order = self._order(encoded, group_size, limits, row_keys(seed, step, group, sample, agent=agent), temperature)
        with self.decoder.session():
            drawn = draw(self.decoder, order)
        self.last_stats = SampleStats(len(drawn.tokens), time.perf_counter() - began, drawn.steps)

        completions = Ragged(torch.from_numpy(drawn.tokens), lengths_to_offsets(torch.from_numpy(drawn.lengths)))
        tokens = {"token": completions.values, "behaviour_logp": torch.from_numpy(drawn.logp)}
        if drawn.entropy is not None:
            tokens["entropy"] = torch.from_numpy(drawn.entropy)
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
                "finished": torch.from_numpy(drawn.finished),
                "spent": completions.lengths,
                **{name: torch.full((len(group),), value) for name, value in same.items()},
            },
            tokens=tokens,
        )

    def _order(self, encoded: list[list[int]], group_size: int, limits: list[int], keys: NDArray[np.uint64], temperature: float) -> Order:
        """Rows group by group; of equal prompts there is one entry."""
        entries: dict[tuple[int, ...], int] = {}
        entry_of_prompt = np.array([entries.setdefault(tuple(ids), len(entries)) for ids in encoded], np.int64)
        return Order(
            prompts=[list(ids) for ids in entries],
            prompt_of_row=np.repeat(entry_of_prompt, group_size),
            keys=keys,
            limits=np.repeat(np.array(limits, np.int64), group_size),
            stop_ids=np.array(sorted(self.policy.stop_ids), np.int64),
            temperature=temperature,
            top_p=self.top_p,
            entropy=self.entropy,
            at_once=self.rows,
            ended=self._stop_strings() if self.stop.strings else None,
            progress=self.progress,
        )

    def _stop_strings(self) -> Ended:
        """Which rows have come to a stop string; it remembers what they have drawn."""
        history: defaultdict[int, list[int]] = defaultdict(list)

        def ended(rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                history[row].append(token)
            return np.array([self.stop.ended(history[row]) for row in rows.tolist()], dtype=bool)

        return ended

    def _limit(self, prompt: Prompt, ids: list[int]) -> int:
        return min(self.max_new_tokens, room_after(prompt, len(ids), self.policy.context))

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


def room_after(prompt: Prompt, length: int, context: int) -> int:
    """Tokens that fit behind a prompt of this length. Raises ValueError when there are none."""
    if length >= context:
        raise ValueError(
            f"prompt {prompt.id!r} has {length} tokens and the model's context holds {context}, so no completion fits; "
            "shorten or leave out such prompts, or use a model with a longer context"
        )
    return context - length


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
