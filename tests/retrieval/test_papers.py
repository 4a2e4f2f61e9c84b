"""Papers from files of every kind; what cannot be read is named and costs nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.retrieval.bibtex import entries, plain
from tacit.retrieval.papers import gather
from tacit.retrieval.sentences import LONGEST, SENTENCE_END, behind, passages, sentences, size, spaced


def test_a_folder_of_every_kind(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden.txt").write_text("not seen")
    (tmp_path / "deep" / "a.md").write_text("intro\n\n# Cats\n\nsleep")
    (tmp_path / "b.txt").write_text("Dogs bark.")
    (tmp_path / "c.html").write_text("<html><title>Graphs &amp; trees</title><script>x</script><p>A <b>net</b>work</p></html>")
    (tmp_path / "d.bib").write_text("@article{key, title={On Cats}, author={Li, A}, abstract={They purr.}}")
    (tmp_path / "e.jsonl").write_text('{"paper_id": 7, "title": "T", "abstract": ["One.", "Two."]}\n\n{"text": "no id"}\n')
    (tmp_path / "f.png").write_bytes(b"\x89PNG")
    found = gather([tmp_path])
    got = {p.id: (p.title, p.text) for p in found.papers}
    assert got == {
        "b.txt": ("b", "Dogs bark."),
        "c.html": ("Graphs & trees", "A network"),
        "key": ("On Cats", "They purr.\n\nLi, A"),
        "deep/a.md": ("Cats", "intro\n\n\n\nsleep"),
        "7": ("T", "One. Two."),
        "e:3": ("", "no id"),
    }
    assert found.left_out == [] and found.passed_over == {".png": 1}
    assert found.papers[-1].source == f"{tmp_path / 'e.jsonl'}, line 3"


def test_a_corrupt_pdf_among_a_hundred_files_costs_itself_alone(tmp_path):
    for n in range(99):
        (tmp_path / f"{n:02}.txt").write_text(f"paper number {n}")
    (tmp_path / "50.pdf").write_bytes(b"%PDF-1.7\n1 0 obj <</Type/Catalog" + bytes(range(256)) * 20)
    found = gather([tmp_path])
    assert len(found.papers) == 99 and len(found.left_out) == 1
    assert found.left_out[0].startswith(f"{tmp_path / '50.pdf'} is no readable PDF")


def test_empty_documents_and_taken_ids_are_named(tmp_path):
    rows = [{"id": "a", "title": "Same"}, {"id": "a", "title": "Same"}, {"id": "a", "title": "Other"}, {"id": "b", "title": " ", "abstract": ""}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "empty.txt").write_text("  \n")
    found = gather([tmp_path])
    assert [(p.id, p.title) for p in found.papers] == [("a", "Same")]
    assert found.left_out == [
        f"{tmp_path / 'empty.txt'} holds no text",
        f"{tmp_path / 'r.jsonl'}, line 3: the id 'a' is taken by {tmp_path / 'r.jsonl'}, line 1, with another text; give each paper an id of its own",
        f"{tmp_path / 'r.jsonl'}, line 4 has neither title nor text",
    ]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b'{"title": 3}', r"line 1: the title is int; it must be text or a list of sentences"),
        ("a.jsonl", b'{"title": "x"}\n{', r"line 2: this is not valid JSON"),
        ("a.pdf", b"no", r"is no readable PDF"),
        ("a.txt", b" ", r"holds no text"),
        ("a.csv", b"title,abstract", r"a\.csv is not read; make it JSON lines, an object with title and abstract on each line"),
        ("a.bib", b"% nothing", r"a.bib holds no entry of BibTeX"),
    ],
)
def test_a_single_file_that_is_broken_is_an_error(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words):
        gather([tmp_path / name])


def test_sources_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is no file or folder"):
        gather([tmp_path / "none"])
    with pytest.raises(ValueError, match=r"there is nothing to index in .*: no file ends in \.txt, .*\.ndjson$"):
        gather([tmp_path])
    for name in ("a.docx", "b.DOCX", "c"):
        (tmp_path / name).write_text("passed over")
    with pytest.raises(ValueError, match=r"no file ends in .*\.ndjson; passed over: 2 \.docx, 1 without ending$"):
        gather([tmp_path])


def test_a_broken_line_of_a_folder_costs_itself_alone(tmp_path):
    lines = [b'{"id": 1, "title": "A"}', b"no JSON", b"[]", b"\xff", b'{"id": 2, "title": 3}', b"", b'{"id": 3, "title": "B"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.txt").write_text("C")
    (tmp_path / "c.jsonl").write_text("\n")
    (tmp_path / "d.bib").write_text("@comment{none}")
    found = gather([tmp_path])
    assert [p.id for p in found.papers] == ["1", "3", "b.txt"]
    for n, place in enumerate(
        ("a.jsonl, line 2: ", "a.jsonl, line 3: ", "a.jsonl, line 4: ", "a.jsonl, line 5: ", "c.jsonl is empty", "d.bib holds no")
    ):
        assert place in found.left_out[n]
    assert len(found.left_out) == 6


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Root may read everything, so the system's refusal is played."""
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "b.txt").write_text("B")
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut" / "c.txt").write_text("C")

    def refused(function: Any, name: str) -> Any:
        def call(path: Path) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return call

    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "d.txt").write_text("D")
    stat, access = os.stat, os.access

    def no_stat(path: Any, **how: Any) -> Any:
        if "shut/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", no_stat)
    monkeypatch.setattr(os, "access", lambda path, mode: "listed" not in str(path) and access(path, mode))
    monkeypatch.setattr(Path, "read_bytes", refused(Path.read_bytes, "b.txt"))
    monkeypatch.setattr(os, "scandir", refused(os.scandir, "shut"))
    found = gather([tmp_path])
    assert [p.id for p in found.papers] == ["a.txt"]
    assert sorted(found.left_out) == [
        f"{tmp_path / 'b.txt'}: permission denied; give the path of a text, Markdown, HTML or PDF file",
        f"{tmp_path / 'listed'}: permission denied",
        f"{tmp_path / 'shut'}: permission denied",
    ]


@pytest.mark.parametrize(
    ("name", "text", "left"),
    [
        ("a.md", "# On cats #\n\nThey sleep.", "They sleep."),
        ("a.md", "On *big*\ncats\n===\n\nThey sleep.\n\n# On *big* cats", "They sleep.\n\nOn *big* cats"),
        ("a.html", "<title>On cats</title><h1>On  cats</h1><p>On cats we write.</p>", "On cats we write."),
        ("a.md", "# Only a title", ""),
        (
            "a.md",
            "# On cats\n\n## Abstract ##\n\nC# is no cat\n- nor\n\n---\nResults\n---\n\nnone",
            "Abstract\n\nC# is no cat\n- nor\n\n---\nResults\n\nnone",
        ),
        ("a.txt", "a\n\nThe file name is no title of the text.", "a\n\nThe file name is no title of the text."),
    ],
)
def test_a_title_is_not_said_twice(tmp_path, name, text, left):
    (tmp_path / name).write_text(text)
    [paper] = gather([tmp_path]).papers
    assert paper.text == left and (paper.title == "a") == name.endswith("txt")


def test_text_that_is_no_unicode_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "title": "T", "text": "lone \\ud800 and \\u0000 here"}')
    assert gather([tmp_path]).papers[0].text == "lone ? and   here"


BIB = r"""
Free text is a comment. @comment{ignored, title={no}}
@string{acl = "Annual Meeting"}
@preamble{"\newcommand{\x}{y}"}
@InProceedings{li:20,
  title = {The {BERT} of \"{U}ber-models -- {\ss} \& more},
  author = "M{\"u}ller, Anna and Erd{\H o}s, P.",
  booktitle = acl # " of " # {the ACL}, month = jan, year = 2020,
}
@misc(paren, title = "Quotes {"}inside{"}")
@article{open, title = {Never closed,
@book{last, title={Last}}
@article{,title={no key}}
"""


def test_bibtex():
    got = dict(entries(BIB))
    assert set(got) == {"li:20", "paren", "open", "last"}
    assert got["li:20"] == {
        "title": "The BERT of Über-models – ß & more",
        "author": "Müller, Anna and Erdős, P.",
        "booktitle": "Annual Meeting of the ACL",
        "month": "January",
        "year": "2020",
    }
    assert got["paren"] == {"title": 'Quotes "inside"'} and got["last"] == {"title": "Last"}
    assert plain(r"na\"ive \v{S}koda \c{c}a \o re $x_1$") == "naïve Škoda ça øre x_1"


@pytest.mark.parametrize("brackets", ["{}", "()"])
@pytest.mark.parametrize(
    "abstract",
    [
        "We reach NDCG@10 (0.45, up from 0.40).",
        "It costs\n@ 10 (cents, at most) of each.",
        "See @k (a, b) or @article{x, title={y}}",
        "no \\{ but \\{a\\}, a",
    ],
)
def test_an_entry_ends_where_its_brace_is_closed(brackets, abstract):
    """Not at an @ within it; what stands between two entries is a comment, and they may share a line."""
    left, right = brackets
    first = f'@article{left}one, title={{On (cats)}}, abstract={{{abstract}}}, author="Li (A)", keywords={{purr}}{right}'
    got = list(entries(f"a@b.org wrote: {first} and @misc{{two, title={{Dogs}}}}\n  @book(three, title={{Bats}})"))
    assert [key for key, _ in got] == ["one", "two", "three"]
    assert got[0][1] == {"title": "On (cats)", "abstract": plain(abstract), "author": "Li (A)", "keywords": "purr"}
    assert "\\" not in got[0][1]["abstract"]


@given(st.text(alphabet='@{}=,"# \\abc\n', max_size=80))
def test_any_text_is_read_as_bibtex(text):
    for key, fields in entries(text):
        assert key and all(isinstance(value, str) for value in fields.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We propose X. It works! Does it? Yes.", ["We propose X.", "It works!", "Does it?", "Yes."]),
        ("See Fig. 3, e.g. Smith et al. (2020). Next.", ["See Fig. 3, e.g. Smith et al. (2020).", "Next."]),
        ("Accuracy is 3.5 %. lower case goes on. So.", ["Accuracy is 3.5 %. lower case goes on.", "So."]),
        ("我们提出方法。结果很好！", ["我们提出方法。", "结果很好！"]),
        ("A heading\n\nA paragraph\nof two lines.", ["A heading", "A paragraph of two lines."]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("  ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@given(st.text())
def test_sentences_lose_no_letter(text):
    joined = "".join("".join(sentences(text)).split())
    assert joined == "".join(text.split())


def test_ten_thousand_words_without_a_full_stop_are_cut():
    found = sentences("word " * 10_000)
    assert len(found) == 100 and all(size(s) == LONGEST for s in found)
    assert [size(s) for s in sentences("字" * 250)] == [100, 100, 50]


def test_passages_are_whole_sentences_behind_the_title():
    assert passages("On cats.", "One two three. Four five. Six.", 7) == [["One two three.", "Four five."], ["Six."]]
    assert passages("On cats", "", 7) == [[]] and passages("", "One. Two.", 1) == [["One."], ["Two."]]
    assert passages("A title of many words that fills all the room", "One. Two.", 5) == [["One."], ["Two."]]


@pytest.mark.parametrize(
    ("title", "group", "text"),
    [("On cats", ["One.", "Two"], "On cats.|One.|Two"), ("On cats", [], "On cats"), ("", ["One.", "Two."], "One.|Two."), ("Cats.", ["A"], "Cats.|A")],
)
def test_sentences_that_are_known_stay_apart(title, group, text):
    assert behind(title, group) == text.replace("|", SENTENCE_END)
    assert spaced(behind(title, group)) == text.replace("|", " ")
    assert sentences(f"A.{SENTENCE_END}b") == ["A. b"], "the mark is white space in texts of users"


def test_a_document_given_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("an ending is not needed")
    assert [p.id for p in gather(["notes"]).papers] == ["notes"]
