"""Outlines of text, Markdown, HTML and PDF; the head is all that is kept of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.documents import DocumentError, decoded, read_document
from tacit.routing.decision import UNKNOWN
from tacit.routing.documents import Outline, by_bytes, describe, head_of, kind_of, outline, outline_text


def pdf(path: Path, text: str, title: str = "") -> Path:
    """A PDF of one page, written by hand."""
    page = f"BT /F1 12 Tf 20 700 Td ({text}) Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(page)}>>\nstream\n{page}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        f"<</Title({title})>>",
    ]
    data, places = "%PDF-1.4\n", []
    for number, told in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{told}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    data += f"xref\n0 7\n0000000000 65535 f \n{table}trailer<</Size 7/Root 1 0 R/Info 6 0 R>>\nstartxref\n{len(data)}\n%%EOF\n"
    path.write_bytes(data.encode("latin-1"))
    return path


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_text(tmp_path):
    found = outline(written(tmp_path, "my notes.txt", "Chapter I\n\nIt  was " + "x" * 4000))
    assert (found.title, found.type, found.tokens) == ("my notes", "book", (18 + 4000) // 4)
    assert found.head.startswith("Chapter I It was xxx") and len(found.head) <= 800


def test_markdown(tmp_path):
    found = outline(written(tmp_path, "a.md", "intro\n\nThe *new* way\n===\n\nAbstract: we show"))
    assert (found.title, found.type) == ("The *new* way", "paper")
    assert outline(written(tmp_path, "b.md", "x" * 900 + "\n\n# Beyond the head\n")).title == "b"


def test_html(tmp_path):
    page = "<html><head><title>Form\n 10-K</title><style>p{}</style></head><body><script>var x</script><p>Annual report &amp; more</p></body></html>"
    found = outline(written(tmp_path, "a.html", page))
    assert (found.title, found.type, found.head) == ("Form 10-K", "financial", "Annual report & more")
    assert outline(written(tmp_path, "b.htm", "<h1>One</h1>")).title == "b"


def test_html_lines(tmp_path):
    page = "<nav>Home</nav><h1>A <i>Title</i></h1><div><p>A <b>net</b>work<br>of neu<em>rons</em>.</p></div>"
    page += "<ul><li>one<li>two</ul><table><tr><td>1<td>2</table>"
    text = read_document(written(tmp_path, "a.html", page))[1]
    assert text.split("\n\n") == ["A Title", "A network\nof neurons.", "one", "two", "1\n2"]


def test_encodings(tmp_path):
    for name, encoding in (("a.md", "utf-8-sig"), ("b.md", "utf-16"), ("c.md", "utf-8")):
        (tmp_path / name).write_bytes("# Größe\n\nδ".encode(encoding))
        assert read_document(tmp_path / name) == ("Größe", "# Größe\n\nδ")


def test_what_is_no_utf_8_is_windows_1252_unless_most_of_it_is():
    assert decoded("Größe – “naïve”".encode("cp1252")) == "Größe – “naïve”"
    assert decoded("Größe".encode() + b"\xff" + "Maß".encode()) == "Größe\ufffdMaß"
    assert decoded(b"a\r\n\r\nb\rc\n") == "a\n\nb\nc\n"
    assert decoded("\ufffd".encode()) == "\ufffd" and decoded(b"") == ""


def test_pdf(tmp_path):
    found = outline(pdf(tmp_path / "a.pdf", "Annual report of a company", "The report"))
    assert (found.title, found.type, found.head) == ("The report", "financial", "Annual report of a company")
    assert found.tokens == 26 // 4
    assert outline(pdf(tmp_path / "b.pdf", "x")).title == "b"


def test_words_that_lines_of_a_pdf_break_are_made_whole(tmp_path):
    lines = "gener-) Tj 0 -14 Td (alises to CIFAR-) Tj 0 -14 Td (10 and GPT-) Tj 0 -14 Td (Neo; 3-) Tj 0 -14 Td (gram"
    assert read_document(pdf(tmp_path / "a.pdf", lines))[1] == "generalises to CIFAR-\n10 and GPT-\nNeo; 3-\ngram"
    lines = "state-of-the-) Tj 0 -14 Td (art, or state-of-the-art; self-) Tj 0 -14 Td (supervised and Self-) Tj 0 -14 Td (taught"
    told = read_document(pdf(tmp_path / "b.pdf", lines, "Self-supervised"))[1]
    assert told == "state-of-the-art, or state-of-the-art; self-supervised and Selftaught"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"  \n", "holds no text"),
        ("a.pdf", b"no pdf at all", "is no readable PDF"),
        ("a.pdf", b"", "is no readable PDF"),
        ("a.docx", b"PK\x00\x00", "is no text, for it holds null bytes"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DocumentError, match=words):
        outline(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DocumentError, match="no such file or directory; give the path of"):
        outline(tmp_path / "none.txt")


@given(st.text(max_size=300), st.integers(1, 30), st.text(max_size=300))
def test_nothing_beyond_the_head_is_in_an_outline(text, tokens, other):
    cut = text[: 4 * tokens].ljust(4 * tokens, "x")
    a, b = (outline_text(cut + tail, count=lambda _: 7, head_tokens=tokens) for tail in (text, other))
    assert a == b and a.head == head_of(cut, tokens)


def test_types_lengths_and_unknowns():
    assert kind_of("nothing typical") == UNKNOWN == outline_text("nothing").title
    assert by_bytes("") == 1 and by_bytes("ä" * 8) == 4
    m = describe("Q?", Outline("T", "book", 9, "h"), task="lookup")
    assert (m.question, m.doc_title, m.doc_type, m.doc_tokens, m.doc_head, m.task) == ("Q?", "T", "book", 9, "h", "lookup")
