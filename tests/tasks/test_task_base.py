from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.config import TaskConfig
from tacit.tasks.base import Task, first, resolve_task, stream_order
from tacit.tasks.records import Records
from tacit.tasks.sorting import Sorting

OWN = """
from __future__ import annotations
from typing import TYPE_CHECKING
from tacit.tasks.sorting import Sorting
if TYPE_CHECKING:
    from somewhere import Something

class Own(Sorting):
    name = "own"
    def __init__(self, size: int, note: str | None = None, other: Something = None):
        super().__init__(size, size)

class Open(Sorting):
    def __init__(self, **options):
        self.options = options

class Half:
    name = "half"
    def verify(self, prompt, completion): ...

NUMBER = 3
"""


@given(size=st.integers(1, 40), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    assert sorted(stream_order(epoch * size + i, size, seed) for i in range(size)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own_that_do_not_depend_on_the_way_there():
    def order(seed, epoch):
        return [stream_order(epoch * 50 + i, 50, seed) for i in range(50)]

    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(o) for o in orders.values()}) == 9
    assert order(0, 2) == orders[0, 2]  # after other epochs were asked for in between
    assert [stream_order(i, 1, 0) for i in range(3)] == [0, 0, 0]
    with pytest.raises(ValueError, match="no ordinal -1"):
        stream_order(-1, 5, 0)


def test_first():
    assert first([1, 2, 3], 2, "x") == [1, 2]
    with pytest.raises(ValueError, match=r"task 'x' has 3 held-out prompts, 4 were asked for: lower evaluation\.prompts to 3"):
        first([1, 2, 3], 4, "x")


def test_built_in_task_with_options():
    task = resolve_task(TaskConfig(name="sorting", options={"min_length": 2, "max_length": 3}))
    assert isinstance(task, Sorting) and isinstance(task, Task)
    assert {len(task.prompt_at(i, 0).text) - 1 for i in range(50)} == {2, 3}


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_file_of_records(name, write_jsonl):
    path = write_jsonl(name, [{"q": "1+1=", "prompt": "kept as a column"}, {"q": "1+2="}])
    task = resolve_task(TaskConfig(name=str(path), columns={"prompt": "q"}, options={"heldout_share": 0.5}))
    assert isinstance(task, Records) and isinstance(task, Task)
    assert task.prompt_at(0, 0).text == "1+1=" and task.prompt_at(0, 0).info == {"prompt": "kept as a column"}


def test_own_class_from_a_file_and_from_a_module(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    task = resolve_task(TaskConfig(name=f"{tmp_path / 'mine.py'}:Own", options={"size": 4}))
    assert task.name == "own" and len(task.prompt_at(0, 0).text) == 5
    assert resolve_task(TaskConfig(name=f"{tmp_path / 'mine.py'}:Open", options={"anything": 1})).options == {"anything": 1}
    assert isinstance(resolve_task(TaskConfig(name="tacit.tasks.sorting:Sorting")), Sorting)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"name": "sortin"},
            r"unknown task 'sortin': did you mean 'sorting'\? choose one of sorting, .*, a .jsonl or .parquet file, hub:owner/name, or your own",
        ),
        ({"name": "zzz"}, "unknown task 'zzz': choose one of sorting"),
        ({"name": "sorting", "columns": {"prompt": "q"}}, r"task\.columns maps the columns of a file or a hub data set, and task 'sorting' is none"),
        ({"name": "sorting", "options": {"max_len": 3}}, r"task 'sorting' has no option 'max_len'; did you mean 'max_length'\?"),
        ({"name": "sorting", "options": {"zzz": 3}}, "has no option 'zzz'; its options are min_length, max_length"),
        ({"name": "sorting", "options": {"max_length": "x"}}, "task 'sorting', option 'max_length': .*integer.*, not 'x'"),
        ({"name": "gone.jsonl"}, r"there is no file gone\.jsonl"),
        ({"name": "FILE:Own"}, r"needs the option 'size'; set it among its options"),
        ({"name": "FILE:Half"}, "lacks alphabet, prompt_at, heldout, solve, baselines"),
        ({"name": "FILE:NUMBER"}, "is a int, expected a class"),
        ({"name": "FILE:Onw"}, "did you mean 'Own'"),
        ({"name": "gone.py:Own"}, r"there is no file gone\.py"),
    ],
)
def test_mistakes_are_told_in_one_sentence(config, told, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    config = config | {"name": config["name"].replace("FILE", str(tmp_path / "mine.py"))}
    with pytest.raises(ValueError, match=told) as caught:
        resolve_task(TaskConfig(**config))
    assert "\n" not in str(caught.value)
