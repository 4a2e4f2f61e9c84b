"""Who answers: a policy on this machine, or an endpoint."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tacit.clients.endpoint import Endpoint, Reply
from tacit.config import EvalConfig
from tacit.core.policy import Policy
from tacit.core.rollouts import Role
from tacit.evaluation.items import Answer, Item, Stop, Take
from tacit.generation.decoders import decoder_for
from tacit.generation.sampler import Sampler

ROWS = 256  # completions that a policy draws between two entries in the log


def sampler(policy: Policy, **settings: Any) -> Sampler:
    """A sampler over the decoder that suits the policy."""
    return Sampler(decoder_for(policy), policy, **settings)


class LocalPolicy:
    """Draws with the sampler, every completion from random numbers of its own: an interrupted evaluation gives what an undisturbed one would."""

    def __init__(self, policy: Policy, config: EvalConfig):
        self.config = config
        self.sampler = sampler(policy, max_new_tokens=config.max_new_tokens, top_p=config.top_p, stop=config.stop)

    def answer(self, items: Sequence[Item], take: Take, stop: Stop) -> None:
        wanted: dict[tuple[str, int], list[Item]] = defaultdict(list)
        for item in items:
            wanted[item.task, item.ordinal].append(item)
        groups, together = list(wanted.values()), max(1, ROWS // self.config.samples)
        for first in range(0, len(groups), together):
            if stop.is_set():
                return
            take(self._draw(groups[first : first + together]))

    def _draw(self, groups: list[list[Item]]) -> list[tuple[Item, Answer]]:
        samples, ordinals = self.config.samples, [group[0].ordinal for group in groups]
        how: dict[str, Any] = {"seed": self.config.seed, "temperature": self.config.temperature, "role": Role.PROBE}
        batch = self.sampler.sample([group[0].prompt for group in groups], samples, step=0, groups=ordinals, **how)
        lengths, finished = batch.lengths.tolist(), batch.finished.tolist()
        rows = [(place * samples + item.sample, item) for place, group in enumerate(groups) for item in group]
        return [(item, Answer(batch.texts[row], finished[row], lengths[row])) for row, item in rows]


class RemoteModel:
    """Asks an endpoint, one request an item; `options` are those of Endpoint."""

    def __init__(self, config: EvalConfig, concurrency: int, **options: Any):
        self.config, self.concurrency, self.options = config, concurrency, options

    def answer(self, items: Sequence[Item], take: Take, stop: Stop) -> None:
        asyncio.run(self._answer(items, take, stop))

    async def _answer(self, items: Sequence[Item], take: Take, stop: Stop) -> None:
        waiting = iter(items)
        async with Endpoint(self.config.policy, self.config.model or "", concurrency=self.concurrency, **self.options) as endpoint:

            async def work() -> None:
                while not stop.is_set() and (item := next(waiting, None)) is not None:
                    reply = await self._ask(endpoint, item)
                    await asyncio.to_thread(take, [(item, _answer_of(reply))])  # judging and writing hold up no request

            await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(items)))))

    async def _ask(self, endpoint: Endpoint, item: Item) -> Reply:
        config = self.config
        options: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_new_tokens, "seed": config.seed + item.sample}
        options |= {"top_p": config.top_p} if config.top_p < 1 else {}
        options |= {"stop": config.stop} if config.stop else {}
        options = {name: value for name, value in (options | config.request).items() if value is not None}
        if not config.chat:
            return await endpoint.complete(item.prompt.text, draw=item.sample, **options)
        turns = [{"role": "system", "content": config.system}] if config.system else []
        return await endpoint.chat([*turns, {"role": "user", "content": item.prompt.text}], draw=item.sample, **options)


def _answer_of(reply: Reply) -> Answer:
    if reply.failure:
        return Answer(error=reply.failure)
    return Answer(reply.text, reply.finish != "length", reply.completion_tokens, reply.prompt_tokens, reply.cost, reply.cached)
