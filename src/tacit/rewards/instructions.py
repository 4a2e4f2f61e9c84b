"""Reward for following instructions that a program can verify (IFEval): all of them, and the share of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tacit.core.rollouts import Prompt
from tacit.rewards.base import Score, each
from tacit.rewards.instruction_checks import CHECKS


def follows(completion: str, instruction: str, **arguments: Any) -> bool:
    """Whether a completion follows one instruction: `follows(text, "length_constraints:number_words", relation="at least", num_words=100)`.

    An empty completion follows none. Raises ValueError for an unknown instruction, Unscorable (one too) where no program could tell.
    """
    if instruction not in CHECKS:
        raise ValueError(f"unknown instruction {instruction!r}: choose one of {', '.join(CHECKS)}")
    return bool(completion.strip()) and CHECKS[instruction](completion, **arguments)


def score(prompt: str, completion: str, instructions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """1 when every instruction, {"id": ..., "arguments": {...}}, is followed; the part `followed` is the share of them that are.

    Source: the strict prompt-level and instruction-level accuracy of Zhou et al. 2023, section 3. Raises as `follows` does, unless an
    instruction that can be judged is not followed, which settles the reward, though not the share.
    """
    verdicts = [_verdict(completion, instruction) for instruction in instructions]
    undecided = next((verdict for verdict in verdicts if isinstance(verdict, ValueError)), None)
    if undecided is None:
        return {"reward": float(all(verdicts)), "followed": sum(map(bool, verdicts)) / len(verdicts)}
    if False in verdicts:
        return {"reward": 0.0}
    raise undecided


class Instructions:
    """`score` for prompts that carry their instructions in `info`, as those of ifeval do; it needs no stream, so that all may be held out."""

    def __call__(self, prompts: list[Prompt], completions: list[str]) -> list[Score]:
        return each(lambda prompt, completion: score(prompt.text, completion, prompt.info["instructions"]))(prompts, completions)


def _verdict(completion: str, instruction: Mapping[str, Any]) -> bool | ValueError:
    try:
        return follows(completion, instruction["id"], **instruction["arguments"])
    except ValueError as undecided:
        return undecided
