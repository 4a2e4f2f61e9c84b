from __future__ import annotations

import json

import pytest

from tacit.evaluation.items import ItemLog


def line(sample: int, **more) -> dict:
    return {"task": "t", "prompt": "p", "sample": sample, **more}


def test_what_was_appended_is_there_again(tmp_path):
    log = ItemLog(tmp_path / "items.jsonl")
    log.append([line(0, completion="ä\n\ud800"), line(1)])
    log.append([line(1, completion="later")])
    log.close()
    again = ItemLog(tmp_path / "items.jsonl")
    assert again.records == log.records == {("t", "p", 0): line(0, completion="ä\n\ud800"), ("t", "p", 1): line(1, completion="later")}
    again.close()


@pytest.mark.parametrize("torn", [1, 10, 30])
def test_a_torn_last_line_is_cut_away(tmp_path, torn):
    path = tmp_path / "items.jsonl"
    whole = json.dumps(line(0)) + "\n"
    path.write_text(whole + json.dumps(line(1))[:torn])
    log = ItemLog(path)
    assert list(log.records) == [("t", "p", 0)] and path.read_text() == whole
    log.append([line(2)])
    log.close()
    again = ItemLog(path)
    assert [key[2] for key in again.records] == [0, 2]
    again.close()


@pytest.mark.parametrize("damaged", ["{", "[]", '{"task": "t"}'])
def test_a_damaged_line_in_the_middle_is_told(tmp_path, damaged):
    path = tmp_path / "items.jsonl"
    path.write_text(f"{json.dumps(line(0))}\n{damaged}\n{json.dumps(line(1))}\n")
    with pytest.raises(ValueError, match=r"items\.jsonl, line 2: this is no item"):
        ItemLog(path)
