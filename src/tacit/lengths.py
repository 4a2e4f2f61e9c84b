"""Whether the texts of a run fit its model: looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from tacit.config import RLConfig, SFTConfig
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt
from tacit.generation.sampler import room_after
from tacit.tasks.base import Task

LOOKED_AT = 256  # prompts of the stream, which may be endless


def first_prompts(task: Task, heldout: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The held-out prompts of a run, and the first that it trains on."""
    return [*heldout, *(task.prompt_at(ordinal, seed) for ordinal in range(LOOKED_AT))]


def check_room(config: RLConfig | SFTConfig, policy: Policy, prompts: Sequence[Prompt]) -> list[int]:
    """The lengths of these prompts, in tokens. Raises ValueError unless the longest leaves room for as long a completion as the recipe allows."""
    encoded = policy.encode_prompts(prompts)
    place = max(range(len(prompts)), key=lambda i: len(encoded[i]))
    longest, limit = len(encoded[place]), config.completion_limit
    room = room_after(prompts[place], longest, policy.context)
    if limit > room:
        key = "sampling.max_new_tokens" if isinstance(config, RLConfig) else "max_new_tokens"
        longer = "raise model.tiny.context" if config.model.tiny is not None else "use a model with a longer context"
        raise ValueError(
            f"{key} ({limit}) goes beyond the model's context of {policy.context} tokens: prompt {prompts[place].id!r} has {longest}; "
            f"set {key} to {room} or less, leave long prompts out, or {longer}"
        )
    return [len(ids) for ids in encoded]
