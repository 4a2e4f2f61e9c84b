from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tacit.tasks.data import DataError, data_root, locate, read_jsonl, text_field


def test_root(monkeypatch):
    monkeypatch.setenv("TACIT_DATA", "elsewhere")
    assert data_root() == Path("elsewhere")
    for unset in (lambda: monkeypatch.setenv("TACIT_DATA", ""), lambda: monkeypatch.delenv("TACIT_DATA")):
        unset()
        assert data_root() == Path("data")


def test_locate_takes_the_file_packed_or_not(tmp_path, monkeypatch, write_jsonl):
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"the file set/a.jsonl.gz is not in {tmp_path}: set TACIT_DATA to the folder that holds set/"):
        locate("set/a.jsonl.gz")
    plain = write_jsonl("set/a.jsonl", [{}])
    assert locate("set/a.jsonl.gz") == plain
    packed = write_jsonl("set/a.jsonl.gz", [{}])
    assert locate("set/a.jsonl.gz") == packed


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_with_their_line_numbers(name, write_jsonl):
    rows = [{"a": 1}, "", '  {"b": "é\\u2028"}  ', "\t", {"c": None}]
    assert read_jsonl(write_jsonl(name, rows)) == [(1, {"a": 1}), (3, {"b": "é\u2028"}), (5, {"c": None})]


def test_line_ends_and_byte_order_mark_of_windows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert read_jsonl(path) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 3}\n', r"a\.jsonl, line 2: this is not valid JSON \(.* at column \d+\); mend or remove the line"),
        (b'{"a": 1}\n[1, 2]\n', "line 2: expected a JSON object .* this is list"),
        (b"3\n", "line 1: expected a JSON object .* this is int"),
        (b"null\n", "line 1: expected a JSON object .* this is NoneType"),
        (b'{"a": "\xff"}\n', "line 1: this is not text in UTF-8"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
    ],
)
def test_broken_lines(content, told, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_jsonl(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*gone\.jsonl \(looked in "):
        read_jsonl(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_jsonl(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b"not gzip", lambda b: b[:12] + b"\xff" * 40 + b[52:], lambda b: b[:-6] + b"x" + b[-5:]]
)
def test_damaged_gzip(damage, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b"".join(b'{"a": %d}\n' % i for i in range(3000)))))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is damaged after line \d+"):
        read_jsonl(path)


def test_text_field():
    assert text_field({"a": "x"}, "a", "f.jsonl", 3) == "x"
    with pytest.raises(DataError, match=r"f\.jsonl, line 3: there is no column 'b', only a"):
        text_field({"a": "x"}, "b", "f.jsonl", 3)
    with pytest.raises(DataError, match="column 'a' is list, not text"):
        text_field({"a": []}, "a", "f.jsonl", 3)
