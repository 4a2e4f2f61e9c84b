"""What may lie in the folder of an index beside it."""

from __future__ import annotations

import pytest

from tacit.retrieval.index import add, build, delete, read
from tacit.retrieval.papers import Paper
from tacit.retrieval.store import StoreError


def test_what_file_managers_and_nfs_leave_there_is_passed_over(tmp_path):
    left = [".DS_Store", "Thumbs.db", ".nfs000000000a0b00000001"]
    for name in left:
        (tmp_path / name).write_text("left")
    build(tmp_path, [Paper("a", "cats", "")])
    add(tmp_path, [Paper("b", "dogs", "")])
    delete(tmp_path, ["a"])
    build(tmp_path, [Paper("c", "bats", "")], force=True)
    assert [paper.id for paper in read(tmp_path).papers] == ["c"]
    assert all((tmp_path / name).read_text() == "left" for name in left)
    (tmp_path / "DS_Store").write_text("mine")
    with pytest.raises(StoreError, match="is not an index: it holds 'DS_Store'"):
        add(tmp_path, [Paper("d", "owls", "")])
