"""Preference pairs: of two replies to one prompt, which is preferred, and on which axis. For reward models, DPO and steering."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tacit.tasks.data import DataError, locate, read_jsonl, text_field
from tacit.tasks.finite import split

REPLY = "\n\nAssistant:"
TURN = "\n\nHuman:"


@dataclass(frozen=True, slots=True)
class Pair:
    """prompt + chosen and prompt + rejected are the two texts; pairs of one `group` must not stand on both sides of a split."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    axis: str
    group: str


def hh_harmless(path: str | None = None) -> list[Pair]:
    """Dialogues that end on a more and a less harmless reply; the prompt is the dialogue up to that reply. CONTENT WARNING: they are offensive.

    Reads $TACIT_DATA/hh_harmless/test.jsonl.gz, or `path`. The few records whose dialogues differ before the last reply are left out: they say
    nothing about one prompt. A group is all that begins with the same human turn. Raises DataError.
    Source: Bai et al. 2022, "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback".
    """
    source, pairs = Path(path) if path else locate("hh_harmless/test.jsonl.gz"), list[Pair]()
    for line, row in read_jsonl(source):
        chosen, rejected = (text_field(row, name, source, line) for name in ("chosen", "rejected"))
        prompt, mark, better = chosen.rpartition(REPLY)
        other, _, worse = rejected.rpartition(REPLY)
        if not mark:
            raise DataError(f"{source}, line {line}: the dialogue in 'chosen' has no turn of the assistant")
        if prompt == other:
            opening = prompt.split(TURN, 2)[1] if TURN in prompt else prompt
            pairs.append(Pair(f"hh_harmless/{row.get('id', line)}", prompt + mark, better, worse, "harmless", opening.split(REPLY)[0].strip()))
    return pairs


def behavior_choices(behaviors: Collection[str] | None = None, path: str | None = None) -> list[Pair]:
    """Questions with the choice that exhibits a behaviour and one that does not; the axis is the behaviour, and `chosen` exhibits it.

    Whether that is desirable depends on the behaviour. Reads $TACIT_DATA/behavior_choices/human_generated.jsonl.gz, or `path`; of `behaviors`
    only, if given. Raises DataError for a missing or broken file, ValueError for a behaviour that it does not have.
    Source: Perez et al. 2022, "Discovering Language Model Behaviors with Model-Written Evaluations".
    """
    source, pairs = Path(path) if path else locate("behavior_choices/human_generated.jsonl.gz"), list[Pair]()
    for line, row in read_jsonl(source):
        names = ("behavior", "question", "answer_matching_behavior", "answer_not_matching_behavior")
        behavior, question, matching, other = (text_field(row, name, source, line) for name in names)
        pairs.append(Pair(f"behavior_choices/{row.get('id', line)}", question, matching, other, behavior, question))
    known = {pair.axis for pair in pairs}
    if unknown := sorted(set(behaviors or ()) - known):
        raise ValueError(f"there is no behaviour {unknown[0]!r} in {source}: choose among {', '.join(sorted(known))}")
    return pairs if behaviors is None else [pair for pair in pairs if pair.axis in behaviors]


def split_pairs(pairs: list[Pair], heldout_share: float = 0.1) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out), whole groups at a time."""
    return split(pairs, heldout_share, key=lambda pair: pair.group)
