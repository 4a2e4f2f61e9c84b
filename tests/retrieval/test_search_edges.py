"""Odd papers and odd questions, as a user meets them on the command line; by words and with a UniFAR-style model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tacit.cli import app

SCRIPTS = {
    "han.txt": ("我们提出一种用于科学文献检索的方法。结果表明该方法优于基线。", "文献检索"),
    "kana.txt": ("論文を検索する方法を提案する。", "検索する方法"),
    "arabic.md": ("# استرجاع\n\nنقترح طريقة جديدة للبحث في الأوراق العلمية.", "طريقة البحث"),
    "cyrillic.txt": ("Мы предлагаем метод поиска научных статей.", "МЕТОД поиска"),
    "devanagari.txt": ("हम वैज्ञानिक लेखों की खोज के लिए एक विधि प्रस्तावित करते हैं।", "वैज्ञानिक लेखों"),
    "emoji.txt": ("🦘🦘 Quokkas 😀 smile. 🎉", "🦘 quokkas"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    Path("papers").mkdir()


def search(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["search", *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def first(*words: str) -> dict[str, Any]:
    return json.loads(search("query", *words, "--json"))["hits"][0]


@pytest.fixture(params=["words", "faceted"])
def model(request: pytest.FixtureRequest) -> list[str]:
    """Options of `index`."""
    return [] if request.param == "words" else ["--model", str(request.getfixturevalue("faceted"))]


def test_any_script_is_found(model):
    for name, (text, _) in SCRIPTS.items():
        Path("papers", name).write_text(text, encoding="utf-8")
    search("index", "papers", *model)
    for name, (_, asked) in SCRIPTS.items():
        hit = first(asked, "--method", "bm25")
        assert hit["id"] == name and max(s["weight"] for s in hit["sentences"]) == 1
        if model:
            assert len(json.loads(search("query", asked, "--json", "--method", "dense", "--facet", "method"))["hits"]) == len(SCRIPTS)


def test_ten_thousand_words_are_read_to_their_end(model):
    Path("papers/a.txt").write_text(" ".join(f"word{n % 977}" for n in range(10_000)) + ". At last the okapi appears.")
    Path("papers/b.md").write_text("# Lone\n\n" + "okapi-free words without any full stop " * 1700)
    Path("papers/c.txt").write_text("Short.")
    search("index", "papers", *model)
    hit = first("okapi", "--method", "bm25")
    assert hit["id"] == "a.txt" and [s["text"] for s in hit["sentences"] if s["weight"] > 0] == ["At last the okapi appears."]
    assert "At last the okapi appears." in search("query", "okapi")
    if model:
        assert json.loads(search("explain", "a.txt", "okapi", "--json"))["passage"]["of"] > 100


def test_a_corrupt_pdf_among_a_hundred(model):
    for n in range(99):
        Path(f"papers/{n:02}.txt").write_text(f"paper {n} of beast{n}")
    Path("papers/50.pdf").write_bytes(b"%PDF-1.7\n1 0 obj <</Type/Catalog" + bytes(range(256)) * 20)
    output = search("index", "papers", *model)
    assert "warning: left out: papers/50.pdf is no readable PDF" in output and "Indexed 99 papers" in output
    assert first("beast98", "--method", "bm25")["id"] == "98.txt"


@pytest.mark.parametrize("asked", ["", " ", "\n\t\u3000 "])
def test_a_query_of_nothing(asked, model):
    Path("papers/a.txt").write_text("Cats.")
    search("index", "papers", *model)
    assert search("query", asked, code=2).strip() == search("explain", "a.txt", asked, code=2).strip() == "the query is empty; ask something"


def test_one_paper_has_none_like_it(model):
    Path("papers/a.txt").write_text("Cats.")
    search("index", "papers", *model)
    assert search("query", "--like", "a.txt").startswith("Nothing was found: ")


def test_a_page_of_html_is_read_as_it_looks(model):
    Path("papers/a.html").write_text(
        "<title>Nets</title><h1>Nets</h1><script>hidden()</script><p>A <b>net</b>work learns.</p><p>Then &amp; there</p>"
    )
    Path("papers/b.txt").write_text("Dogs.")
    search("index", "papers", *model)
    assert [s["text"] for s in first("network", "--method", "bm25")["sentences"]] == ["A network learns.", "Then & there"]
    assert "Nothing was found" in search("query", "hidden", "--method", "bm25")


@pytest.mark.parametrize("name", ["thesis.docx", "table.csv"])
def test_endings_that_are_not_known(name):
    Path("papers", name).write_bytes(b"PK\3\4 something")
    assert f"passed over: 1 {Path(name).suffix}" in search("index", "papers", code=2)
    Path("papers/a.txt").write_text("Cats.")
    output = search("index", "papers")
    assert f"Files of other kinds, passed over: 1 {Path(name).suffix}" in output and "Indexed 1 paper in" in output
