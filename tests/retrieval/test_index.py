"""Indexes on disk: atomic, incremental, refused when they are not what they should be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tacit.retrieval import store as store_module
from tacit.retrieval.dense import Nearest, joined
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.index import Changes, add, build, delete, read
from tacit.retrieval.papers import Paper
from tacit.retrieval.search import Searcher
from tacit.retrieval.store import Store, StoreError


class Spelling(Encoder):
    """Vectors from counts of letters: an encoder that needs no model."""

    def __init__(self, name: str = "spelling", shift: int = 0):
        self.name, self.shift, self.encoded = name, shift, 0

    @property
    def length(self) -> int:
        return 100

    def documents(self, texts):
        self.encoded += len(texts)
        counts = np.zeros((len(texts), 26))
        for row, text in zip(counts, texts):
            for letter in text.lower():
                if "a" <= letter <= "z":
                    row[(ord(letter) - 97 + self.shift) % 26] += 1
        return self._checked(texts, counts)

    def queries(self, texts, facet=None):
        return self.documents(texts)


def papers(*numbers: int) -> list[Paper]:
    return [Paper(f"p{n}", f"Paper {n}", f"It is about topic{n} and the letter {chr(97 + n % 26) * 5}.", "made") for n in numbers]


def ids(folder: Path) -> list[str]:
    """Of a whole index, which is searched in both ways."""
    contents = read(folder)
    names = [p.id for p in contents.papers]
    assert contents.bm25.size == len(names)
    if contents.dense is not None:
        assert contents.dense.nearest.held.owners.tolist() == list(range(len(names)))
        searcher = Searcher(contents, Spelling())
        for paper in contents.papers[:3]:
            assert paper.id in [hit.paper.id for hit in searcher.search(searcher.query(paper.text), len(names))]
    return names


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_add_and_delete_equal_an_index_made_at_once(tmp_path, kind):
    a, b = tmp_path / "a", tmp_path / "b"
    assert build(a, papers(1, 2, 3), Spelling(), kind=kind) == Changes(added=3, total=3)
    encoder = Spelling()
    new = [*papers(2, 4), Paper("p3", "Paper 3", "A new text.")]
    assert add(a, new, lambda name: encoder) == Changes(added=1, changed=1, unchanged=1, total=4)
    assert encoder.encoded == 2 + 6  # the new and the changed paper, and the probe
    assert delete(a, ["p1"]) == Changes(deleted=1, total=3)
    build(b, [papers(2)[0], new[2], papers(4)[0]], Spelling(), kind=kind)
    first, second = read(a), read(b)
    assert first.papers == second.papers
    assert first.dense and second.dense and np.array_equal(first.dense.nearest.held.vectors, second.dense.nearest.held.vectors)
    for text in ("topic4 letter", "new text", "topic1"):
        one, two = (Searcher(c, Spelling()) for c in (first, second))
        assert one.search(one.query(text)) == two.search(two.query(text))
    assert add(a, papers(5), lambda name: Spelling()).total == 4  # the graph grows
    assert ids(a)[-1] == "p5"


def test_an_index_without_a_model_needs_none(tmp_path):
    build(tmp_path / "i", papers(1, 2))
    add(tmp_path / "i", papers(3), lambda name: pytest.fail("no model is needed"))
    assert ids(tmp_path / "i") == ["p1", "p2", "p3"] and read(tmp_path / "i").dense is None


def test_nothing_new_writes_nothing(tmp_path):
    build(tmp_path / "i", papers(1, 2))
    before = (tmp_path / "i" / "CURRENT").read_text()
    assert add(tmp_path / "i", papers(1)) == Changes(unchanged=1, total=2)
    assert (tmp_path / "i" / "CURRENT").read_text() == before


def test_what_is_refused(tmp_path):
    folder = tmp_path / "i"
    with pytest.raises(StoreError, match="there is no index in"):
        read(folder)
    with pytest.raises(StoreError, match="there is no index in"):
        add(folder, papers(1))
    with pytest.raises(StoreError, match="there is no index in"):
        delete(folder, ["p1"])
    assert not folder.exists()
    build(folder, papers(1, 2), Spelling())
    with pytest.raises(StoreError, match="already is an index; add to it with: tacit search add, or replace it with --force"):
        build(folder, papers(3))
    with pytest.raises(ValueError, match="--ann must be flat or hnsw, not 'flatt'; did you mean 'flat'"):
        build(tmp_path / "j", papers(1), kind="flatt")
    with pytest.raises(ValueError, match="the index was made with spelling, and other gives other vectors for the same texts"):
        add(folder, papers(3), lambda name: Spelling("other", shift=1))
    with pytest.raises(ValueError, match="the paper must be p1 or p2, not 'p9'"):
        delete(folder, ["p1", "p9"])
    with pytest.raises(ValueError, match="that would leave no paper in"):
        delete(folder, ["p1", "p2"])
    assert ids(folder) == ["p1", "p2"]
    build(folder, papers(7), force=True)
    assert ids(folder) == ["p7"]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"is not an index: it holds 'thesis\.tex'"):
        build(tmp_path, papers(1))
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_damage_is_told(tmp_path):
    build(tmp_path / "i", papers(1), Spelling())
    generation = tmp_path / "i" / "00000001"
    vectors = generation / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(
        StoreError, match=r"vectors\.npy is not as it was written; make the index anew with: tacit search index FOLDER --index .* --force"
    ):
        read(tmp_path / "i")
    vectors.unlink()
    with pytest.raises(StoreError, match=r"vectors\.npy is missing; make the index anew"):
        read(tmp_path / "i")
    with pytest.raises(StoreError, match=r"vectors\.npy is missing; make the index anew"):
        delete(tmp_path / "i", ["p1"])
    build(tmp_path / "i", papers(1), Spelling(), force=True)
    assert ids(tmp_path / "i") == ["p1"]


def test_another_format_is_told(tmp_path, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr("tacit.retrieval.index.FORMAT", 9)
        build(tmp_path / "i", papers(1))
    with pytest.raises(StoreError, match="has format 9, this version of tacit reads format 2; make the index anew"):
        read(tmp_path / "i")


@pytest.mark.parametrize("name", ["FILES", "about.json", "papers.jsonl", "vectors.npy", "owners.npy", "frequency.npy", "vocab.index.json"])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: bytes(len(data)), lambda data: data[:-1], lambda data: b""]
)
def test_no_changed_byte_is_read(tmp_path, name, change):
    build(tmp_path / "i", papers(1, 2), Spelling())
    file = tmp_path / "i" / "00000001" / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(StoreError, match=rf"{name} is (no list of files|not as it was written); make the index anew"):
        read(tmp_path / "i")


@pytest.mark.parametrize("text", ["", "2", "../elsewhere", "00000009"])
def test_a_pointer_to_nowhere_costs_no_generation(tmp_path, text):
    build(tmp_path / "i", papers(1))
    (tmp_path / "i" / "CURRENT").write_text(text)
    for change in (lambda: read(tmp_path / "i"), lambda: add(tmp_path / "i", papers(2))):
        with pytest.raises(StoreError, match=r"names no generation|is missing; make the index anew"):
            change()
    (tmp_path / "i" / "CURRENT").write_text("00000001")
    assert ids(tmp_path / "i") == ["p1"]


def test_one_writer_at_a_time(tmp_path):
    build(tmp_path / "i", papers(1))
    with Store(tmp_path / "i").writing(), pytest.raises(StoreError, match="is being written by another process"):
        add(tmp_path / "i", papers(2))
    assert ids(tmp_path / "i") == ["p1"]


def test_a_reader_whose_generation_was_removed_reads_the_next(tmp_path):
    build(tmp_path / "i", papers(1))
    seen = []

    def reader(generation: Path) -> str:
        seen.append(generation.name)
        if len(seen) == 1:
            add(tmp_path / "i", papers(2))
        return (generation / "papers.jsonl").read_text()

    assert Store(tmp_path / "i").read(reader).count("\n") == 2 and seen == ["00000001", "00000002"]


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", range(16))
def test_dying_at_any_step_of_a_write_leaves_old_or_new(tmp_path, monkeypatch, step):
    """Every call that changes the disk on purpose is made the last one, in turn."""
    folder = tmp_path / "i"
    build(folder, papers(1, 2), Spelling())
    calls = iter(range(100))

    def deadly(function):
        def call(*args, **kwargs):
            if next(calls) == step:
                raise Died
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((store_module, "flush"), (os, "rename"), (os, "replace"), (store_module.shutil, "rmtree"), (np, "save")):
            patch.setattr(module, name, deadly(getattr(module, name)))
        try:
            add(folder, papers(3), lambda name: Spelling())
            finished = True
        except Died:
            finished = False
    assert ids(folder) == ["p1", "p2", "p3"] if finished else ids(folder) in (["p1", "p2"], ["p1", "p2", "p3"])
    add(folder, papers(3, 4), lambda name: Spelling())
    assert ids(folder) == ["p1", "p2", "p3", "p4"]
    assert len(list(folder.iterdir())) == 3  # CURRENT, LOCK and one generation


def test_a_graph_behind_equal_passages_still_finds_every_paper():
    same, other = np.eye(4, dtype=np.float32)[[0]], np.eye(4, dtype=np.float32)[[1]]
    for kind in ("flat", "hnsw"):
        nearest = Nearest.build(joined([np.repeat(same, 500, 0), other, same]), kind)
        assert nearest.search(same[0], 1)[0] == 1
        assert nearest.search(same[0], 3) == {0: 1.0, 2: 1.0, 1: 0.0}
