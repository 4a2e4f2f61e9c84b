"""From the records of an evaluation to its result: what was measured of each task, by difficulty, and what could not be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from tacit.core.answers import answer_part, final_choice
from tacit.core.numbers import final_number, parse_number
from tacit.core.rollouts import Prompt
from tacit.evaluation.items import Key
from tacit.rewards.metrics import RIGHT, measure
from tacit.tasks.base import Task

LETTERS = tuple("ABCDE")
THE_ANSWER = object()  # what right completions vote for


def candidate(task: Task, prompt: Prompt, completion: str, reward: float) -> Hashable | None:
    """What a completion votes for in maj@k.

    Right completions of a prompt with one reference answer are equal to it, and so to each other, however they write it. Others vote for what
    `task.final_answer(prompt, completion)` returns where the task has such a method (None abstains); else for the number they end on where the
    reference is a number, and the letter they settle on where it is one of A to E; else for what stands in their last \\boxed{}, or their text.
    """
    if prompt.answer is not None and reward > RIGHT:
        return THE_ANSWER
    own = getattr(task, "final_answer", None)
    if own is not None:
        return own(prompt, completion)
    reference = str(prompt.answer)
    if parse_number(reference) is not None:
        return final_number(completion)
    return final_choice(completion) if reference in LETTERS else answer_part(completion).strip()


def summarise(
    task: Task, name: str, prompts: Sequence[Prompt], records: Mapping[Key, dict[str, Any]], samples: int, ks: Sequence[int]
) -> dict[str, Any]:
    """The result of one task, from the records there are of it."""
    rewards, votes = list[list[float]](), list[list[Hashable | None]]()
    places: dict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        found = [records[key] for sample in range(samples) if (key := (name, prompt.id, sample)) in records]
        scored = [record for record in found if record["reward"] is not None]
        rewards.append([record["reward"] for record in scored])
        votes.append([candidate(task, prompt, record["completion"], record["reward"]) for record in scored])
        if (difficulty := prompt.info.get("difficulty")) is not None:
            places[str(difficulty)].append(place)
    mine = [record for record in records.values() if record["task"] == name]
    answered = [record for record in mine if not record["error"]]
    lengths = [record["tokens"] for record in answered if record["tokens"] is not None]

    def measured(of: Sequence[int]) -> dict[str, Any]:
        found = measure([rewards[place] for place in of], [votes[place] for place in of], samples, ks)
        return {metric: estimate._asdict() for metric, estimate in found.items()}

    return {
        "problems": len(prompts),
        "samples": samples,
        "metrics": measured(range(len(prompts))),
        "by_difficulty": {name: measured(of) for name, of in sorted(places.items(), key=_natural)},
        "failed": len(mine) - len(answered),
        "unscored": sum(record["reward"] is None for record in answered),
        "truncated": sum(not record["finished"] for record in answered),
        "length": sum(lengths) / len(lengths) if lengths else None,
        "baselines": task.baselines(),
    }


def failures(records: Mapping[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every item without an answer or without a verdict, and why."""
    found = []
    for record in records.values():
        if record["error"] or record["reward"] is None:
            what = "no answer" if record["error"] else "no verdict"
            found.append({name: record[name] for name in ("task", "prompt", "sample")} | {"what": what, "why": record["error"] or record["failure"]})
    return found


def spent(records: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    """Tokens and money of the whole evaluation, over all its sittings; the cost is None when that of any answer is unknown."""
    paid = [record for record in records.values() if not record["error"] and not record["cached"]]
    costs = [record["cost"] for record in paid]
    return {
        "completion_tokens": sum(record["tokens"] or 0 for record in paid),
        "prompt_tokens": sum(record["prompt_tokens"] or 0 for record in paid),
        "cost": sum(costs) if costs and None not in costs else 0.0 if not costs else None,
    }


def _natural(entry: tuple[str, Any]) -> list[tuple[bool, float, str]]:
    """ "9 digits" before "10 digits"."""
    return [(not word.isdigit(), float(word) if word.isdigit() else 0.0, word) for word in entry[0].split()]
