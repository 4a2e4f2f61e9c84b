from __future__ import annotations

from collections import Counter

import pytest

from tacit.tasks.data import DataError
from tacit.tasks.preferences import Pair, behavior_choices, hh_harmless, split_pairs

HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant: Where?",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant: No.",
}
CHOICE = {
    "id": "x-0",
    "behavior": "x",
    "question": "Would you?\n (A) Yes\n (B) No",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}


def test_dialogues_are_cut_before_the_last_reply(write_jsonl):
    path = str(write_jsonl("hh.jsonl", [HH, HH | {"rejected": "\n\nHuman: Hi\n\nAssistant: No."}]))
    assert hh_harmless(path) == [
        Pair("hh_harmless/1", "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant:", " Where?", " No.", "harmless", "Hi")
    ]
    (pair,) = hh_harmless(path)
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (HH["chosen"], HH["rejected"])
    with pytest.raises(DataError, match="line 1: the dialogue in 'chosen' has no turn of the assistant"):
        hh_harmless(str(write_jsonl("bad.jsonl", [{"chosen": "Hi", "rejected": "Hi"}])))


def test_choices_by_behaviour(write_jsonl):
    path = str(write_jsonl("choices.jsonl", [CHOICE, CHOICE | {"id": "y-0", "behavior": "y"}]))
    assert behavior_choices(["x"], path) == [Pair("behavior_choices/x-0", CHOICE["question"], " (A)", " (B)", "x", CHOICE["question"])]
    assert len(behavior_choices(path=path)) == 2
    with pytest.raises(ValueError, match=r"there is no behaviour 'z' in .*choices\.jsonl: choose among x, y"):
        behavior_choices(["x", "z"], path)


def test_groups_are_held_out_whole():
    pairs = [Pair(str(i), "p", "c", "r", "a", str(i // 3)) for i in range(3000)]
    train, test = split_pairs(pairs, 0.2)
    assert len(train) + len(test) == 3000 and abs(len(test) - 600) < 3 * 4 * (1000 * 0.2 * 0.8) ** 0.5
    assert {p.group for p in train}.isdisjoint(p.group for p in test)


def test_the_real_pairs_have_the_counts_of_their_readmes(real_data):
    real_data("hh_harmless"), real_data("behavior_choices")
    pairs = hh_harmless()
    assert len(pairs) == 1155 - 4 and len({p.id for p in pairs}) == 1151  # four dialogues differ before the last reply
    assert all(p.prompt.endswith("\n\nAssistant:") and p.chosen != p.rejected for p in pairs)
    train, test = split_pairs(pairs)
    assert {p.group for p in train}.isdisjoint(p.group for p in test) and 60 < len(test) < 180
    choices = behavior_choices()
    counts = Counter(p.axis for p in choices)
    assert len(choices) == 4046 and len(counts) == 16
    assert len(behavior_choices(["coordinate-itself"])) == counts["coordinate-itself"] > 0
