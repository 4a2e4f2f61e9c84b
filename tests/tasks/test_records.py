from __future__ import annotations

import pytest

from tacit.tasks.data import DataError
from tacit.tasks.records import Records

ROWS = [{"id": f"r{i}", "prompt": f"{i}+1=", "answer": i + 1, "level": i % 2} for i in range(10)]


def test_columns_reach_the_prompt_under_their_roles(write_jsonl):
    rows = [{"q": "1+1=", "a": "2", "key": "x", "level": 3, "prompt": "another column"}, {"q": "1+2=", "a": "3", "key": "y"}]
    task = Records(str(write_jsonl("mine.jsonl", rows)), {"prompt": "q", "answer": "a", "id": "key"}, heldout_share=0.5)
    prompt = task.prompt_at(0, 0)
    assert (prompt.id, prompt.text, prompt.answer) == ("x", "1+1=", "2")
    assert prompt.info == {"level": 3, "prompt": "another column"}
    assert task.name == "mine.jsonl"


def test_the_last_share_is_held_out(write_jsonl):
    path = str(write_jsonl("mine.jsonl", ROWS))
    assert [p.id for p in Records(path).heldout(1)] == ["r9"]
    task = Records(path, heldout_share=0.3)
    assert [p.id for p in task.heldout(3)] == ["r7", "r8", "r9"]
    assert sorted(task.prompt_at(i, 0).id for i in range(7)) == [f"r{i}" for i in range(7)]
    with pytest.raises(ValueError, match=r"'mine\.jsonl' has 3 held-out prompts, 4 were asked for"):
        task.heldout(4)


def test_heldout_file_and_no_prompt_in_both(write_jsonl):
    path = str(write_jsonl("mine.jsonl", ROWS))
    task = Records(path, heldout=str(write_jsonl("test.jsonl", [{"prompt": "3+1=", "answer": "4"}, {"prompt": "new"}])))
    assert [p.text for p in task.heldout(2)] == ["3+1=", "new"]
    stream = {task.prompt_at(i, 0).text for i in range(30)}
    assert len(stream) == 9 and "3+1=" not in stream
    repeated = Records(str(write_jsonl("twice.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])), heldout_share=0.3)
    assert {repeated.prompt_at(i, 0).text for i in range(5)} == {"b"}


def test_default_ids_name_the_line(write_jsonl):
    task = Records(str(write_jsonl("mine.jsonl", [{"prompt": "a"}, "", {"prompt": "b"}])), heldout_share=0.5)
    assert [p.id for p in [*task.train, *task.test]] == ["mine.jsonl:1", "mine.jsonl:3"]


def test_default_verdict(write_jsonl):
    task = Records(str(write_jsonl("mine.jsonl", [{"prompt": "a?", "answer": 7}, {"prompt": "b?", "answer": " yes "}, {"prompt": "c?"}])))
    number, text, nothing = [*task.train, *task.test]
    assert (task.verify(number, " 7\n"), task.verify(number, "7.0"), task.solve(number)) == (1, 0, "7")
    assert (task.verify(text, "yes"), task.verify(text, "Yes")) == (1, 0)
    assert task.verify(nothing, "anything") is None and task.solve(nothing) is None
    assert set(task.alphabet) == set("abc?7 yes")
    assert task.baselines() == {}


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ([], {}, r"mine\.jsonl is empty: it must hold one JSON object a line"),
        (["", ""], {}, "is empty"),
        ([{"prompt": "a"}, {"promt": "b"}], {}, r"mine\.jsonl, line 2: there is no column 'prompt', only promt"),
        ([{"prompt": 5}], {}, "line 1: column 'prompt' is int, not text"),
        ([{"prompt": "a"}], {"columns": {"answer": "a"}}, "line 1: there is no column 'a', only prompt"),
        ([{"prompt": "a"}], {"columns": {"id": "key"}}, "line 1: there is no column 'key', only prompt"),
        ([{"prompt": "a"}], {"columns": {"question": "a"}}, r"task\.columns maps prompt, answer, id, messages .* there is no 'question'"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b"}, {"prompt": "c", "id": 1}], {}, "line 3: the id '1' stands on line 1 already"),
        ([{"prompt": "a"}, '{"prompt": "b"', {"prompt": "c"}], {}, "line 2: this is not valid JSON"),
        ([{"prompt": "a"}], {}, "leaves nothing to train on"),
        ([{"prompt": "a"}] * 5, {}, "leaves nothing to train on"),
        ([{"prompt": "a"}], {"heldout_share": 1.0}, "heldout_share must lie between 0 and 1, not at 1.0"),
        ([{"prompt": "a"}], {"heldout": "gone.jsonl"}, r"there is no file gone\.jsonl"),
    ],
)
def test_mistakes_are_told_in_one_sentence(rows, options, told, write_jsonl):
    with pytest.raises(DataError, match=told) as caught:
        Records(str(write_jsonl("mine.jsonl", rows)), **options)
    assert "\n" not in str(caught.value)


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c?"},
    {"role": "assistant", "content": "d"},
]


def test_each_turn_of_the_assistant_is_an_answer(write_jsonl):
    rows = [{"id": "x", "messages": TALK, "level": 3}, {"messages": [{"role": "user", "content": "e?"}, {"role": "assistant", "content": "f"}]}]
    task = Records(str(write_jsonl("talk.jsonl", rows)), heldout_share=0.5)
    first, second = task.train
    assert (first.id, first.answer, first.info) == ("x/3", "b", {"level": 3, "chat_turns": TALK[:2]})
    assert (second.id, second.answer, second.info["chat_turns"]) == ("x/5", "d", TALK[:4])
    assert second.text == "system: Be brief.\nuser: a?\nassistant: b\nuser: c?"
    (held,) = task.heldout(1)  # a conversation is held out whole
    assert (held.id, held.text, task.solve(held), task.verify(held, "f")) == ("talk.jsonl:2", "e?", "f", 1)


def test_messages_may_have_another_name_and_a_prompt_comes_first(write_jsonl):
    task = Records(str(write_jsonl("talk.jsonl", [{"talk": TALK}, {"talk": TALK[1:3]}])), {"messages": "talk"}, heldout_share=0.5)
    assert [p.answer for p in task.train] == ["b", "d"]
    task = Records(str(write_jsonl("both.jsonl", [{"prompt": "p", "messages": [1]}, {"prompt": "q"}])), heldout_share=0.5)
    assert task.train[0].info == {"messages": [1]}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("hello", "column 'messages' must be a list of messages with role and content"),
        ([{"content": "a"}], "column 'messages' must be a list of messages with role and content"),
        ([{"role": "user", "content": ["a"]}], "the content of message 1 in column 'messages' is not text"),
        ([{"role": "user", "content": "a"}], "the assistant answers nothing in column 'messages', so there is nothing to learn from"),
        ([{"role": "assistant", "content": "a"}], "the assistant answers nothing"),
    ],
)
def test_conversations_that_cannot_be_learnt_from_are_told(write_jsonl, messages, told):
    with pytest.raises(DataError, match=rf"talk\.jsonl, line 2: {told}"):
        Records(str(write_jsonl("talk.jsonl", [{"messages": TALK}, {"messages": messages}])))
