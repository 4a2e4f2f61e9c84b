"""Parquet files and hub data sets: the same records as JSON lines, and the same sentences when something is wrong."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from tacit.config import TaskConfig
from tacit.tasks.base import Task, resolve_task
from tacit.tasks.data import DataError
from tacit.tasks.records import HubRecords
from tacit.tasks.tables import rows

ROWS = [{"q": f"{i}+1=", "a": i + 1, "level": i % 2} for i in range(10)]
COLUMNS = {"prompt": "q", "answer": "a"}


@pytest.fixture
def write_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data': pip install 'tacit[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(name: str, table: list[dict[str, Any]]) -> str:
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def hub(monkeypatch) -> dict[tuple, list[dict[str, Any]]]:
    """A stand-in for the library: what it is asked for -> what it returns."""
    sets: dict[tuple, list[dict[str, Any]]] = {}

    def load_dataset(name, subset, *, split, revision):
        if (name, subset, split, revision) not in sets:
            raise FileNotFoundError(f"cannot reach\nthe hub for {name}")
        return sets[name, subset, split, revision]

    library = ModuleType("datasets")
    library.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    return sets


def test_parquet_gives_the_same_task_as_json_lines(write_parquet, write_jsonl):
    options = {"heldout_share": 0.2}
    one = resolve_task(TaskConfig(name=write_parquet("x.parquet", ROWS), columns=COLUMNS, options=options))
    other = resolve_task(TaskConfig(name=str(write_jsonl("x.jsonl", ROWS)), columns=COLUMNS, options=options))
    assert isinstance(one, Task) and one.name == "x.parquet"
    assert [(p.text, p.answer, p.info) for p in [*one.train, *one.test]] == [(p.text, p.answer, p.info) for p in [*other.train, *other.test]]
    assert [p.id for p in one.heldout(2)] == ["x.parquet:9", "x.parquet:10"]
    assert one.verify(one.test[0], " 9 ") == 1


def test_held_out_records_may_have_a_file_of_their_own(write_parquet, write_jsonl):
    task = resolve_task(
        TaskConfig(name=write_parquet("x.parquet", ROWS), columns=COLUMNS, options={"heldout": str(write_jsonl("y.jsonl", ROWS[:3]))})
    )
    assert [p.text for p in task.heldout(3)] == ["0+1=", "1+1=", "2+1="] and len(task.train) == 7


def test_mistakes_in_parquet_are_told_with_their_row(write_parquet, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"x\.parquet, row 1: there is no column 'prompt', only q, a, level"):
        resolve_task(TaskConfig(name=write_parquet("x.parquet", ROWS)))
    with pytest.raises(DataError, match=r"x\.parquet, row 1: column 'a' is int, not text"):
        resolve_task(TaskConfig(name=write_parquet("x.parquet", ROWS), columns={"prompt": "a"}))
    with pytest.raises(DataError, match=r"x\.parquet, row 3: the id '0' stands on row 1 already"):
        resolve_task(TaskConfig(name=write_parquet("x.parquet", ROWS), columns=COLUMNS | {"id": "level"}))
    with pytest.raises(DataError, match=r"there is no file .*gone\.parquet"):
        rows(str(tmp_path / "gone.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as Parquet: [^\n]+$"):
        rows(str(tmp_path / "bad.parquet"))
    with pytest.raises(DataError, match=r"none\.parquet is empty"):
        rows(write_parquet("none.parquet", []))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"x\.parquet is read with the library 'pyarrow': pip install 'tacit\[data\]'"):
        rows(str(tmp_path / "x.parquet"))


def test_a_hub_data_set_by_split_subset_and_revision(hub):
    hub["owner/name", "main", "train", "abc"], hub["owner/name", "main", "test", "abc"] = ROWS[2:], ROWS[:3]
    options = {"heldout": "test", "subset": "main", "revision": "abc"}
    task = resolve_task(TaskConfig(name="hub:owner/name", columns=COLUMNS, options=options))
    assert isinstance(task, HubRecords) and isinstance(task, Task) and task.name == "hub:owner/name"
    assert [p.text for p in task.heldout(3)] == ["0+1=", "1+1=", "2+1="] and len(task.train) == 7
    assert task.train[0].info == {"level": 1} and task.train[0].answer == 4
    hub["owner/name", None, "train", None] = ROWS
    assert len(resolve_task(TaskConfig(name="hub:owner/name", columns=COLUMNS)).test) == 1


def test_mistakes_with_the_hub_are_told_in_one_sentence(hub, monkeypatch):
    with pytest.raises(DataError, match=r"the hub data set 'a/b', split 'train', could not be loaded; offline, .*: cannot reach the hub for a/b$"):
        resolve_task(TaskConfig(name="hub:a/b"))
    hub["a/b", None, "train", None] = ROWS
    with pytest.raises(DataError, match=r"hub:a/b/train, row 1: there is no column 'prompt', only q, a, level"):
        resolve_task(TaskConfig(name="hub:a/b"))
    with pytest.raises(ValueError, match=r"task 'hub:a/b' has no option 'spilt'; did you mean 'split'\?"):
        resolve_task(TaskConfig(name="hub:a/b", options={"spilt": "test"}))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hub:a/b is loaded with the library 'datasets': pip install 'tacit\[data\]'"):
        resolve_task(TaskConfig(name="hub:a/b"))


def test_the_real_library_offline_ends_in_one_sentence():
    pytest.importorskip("datasets", reason="needs the extra 'data': pip install 'tacit[data]'")
    with pytest.raises(DataError, match="the hub data set 'nobody/nothing', split 'train', could not be loaded") as caught:
        resolve_task(TaskConfig(name="hub:nobody/nothing"))
    assert "\n" not in str(caught.value)
