"""`tacit search` as a user types it, and the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tacit.cli import app
from tacit.report.search import MOST, text, write_page


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    Path("papers").mkdir()
    Path("papers/cats.md").write_text("# On cats\n\nCats sleep all day. Dogs <b>bark</b>.")
    Path("papers/graphs.txt").write_text("A neural network on a graph passes messages.")


def search(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["search", *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def test_two_commands_find_a_paper():
    assert "Indexed 2 papers in papers.index." in search("index", "papers").output
    lines = search("query", "which animals sleep all day?").output.splitlines()
    assert lines[0].split(None, 2)[0] == "1" and lines[0].endswith("On cats  (cats.md)")
    assert lines[1].strip() == "Cats sleep all day."


def test_add_change_delete():
    search("index", "papers", "-i", "my.index")
    Path("papers/new.txt").write_text("Quokkas smile.")
    Path("papers/broken.pdf").write_bytes(b"%PDF")
    Path("papers/graphs.txt").write_text("Another text.")
    done = search("add", "papers", "-i", "my.index").output
    assert "warning: left out: papers/broken.pdf is no readable PDF" in done
    assert "Added 1, changed 1, unchanged 1: 3 papers in my.index." in done
    assert "Deleted 1: 2 papers in my.index." in search("delete", "new.txt", "-i", "my.index").output
    assert search("query", "quokkas", "-i", "my.index").output.startswith("Nothing was found")


def test_an_index_among_the_papers_is_not_read(monkeypatch):
    monkeypatch.chdir("papers")
    assert "Indexed 2 papers in papers.index." in search("index", ".").output
    Path("cats.md").write_text("# On cats\n\nCats wake at night.")
    output = search("add", ".").output
    assert "Added 0, changed 1, unchanged 1: 2 papers" in output and "passed over" not in output and "left out" not in output
    assert "Cats wake at night." in search("query", "night").output


def test_one_paper_is_one():
    assert "Indexed 1 paper in papers.index." in search("index", "papers/cats.md").output
    assert "Added 1, changed 0, unchanged 0: 2 papers in" in search("add", "papers/graphs.txt").output
    assert "Deleted 1: 1 paper in papers.index." in search("delete", "papers/cats.md").output


@pytest.mark.parametrize(
    ("asked", "told"), [("the of 7 🦘", "the query has no word to search for"), ("quokkas", "no paper of the index shares a word")]
)
def test_why_nothing_was_found(asked, told):
    search("index", "papers")
    assert search("query", asked).output.startswith(f"Nothing was found: {told}")
    assert told in json.loads(search("query", asked, "--json").output)["nothing"]
    search("query", asked, "--html", "found.html")
    assert told in Path("found.html").read_text()


def test_lines_fit_the_terminal(monkeypatch):
    Path("papers/long.md").write_text(f"# On long {'titles ' * 40}\n\n{'Quokkas smile and ' * 30} sleep.")
    search("index", "papers")
    for width in (60, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = search("query", "long quokkas").output.splitlines()
        assert all(width - 1 <= len(line) <= width for line in lines) and lines[0].endswith("…  (long.md)"), lines


def test_json_and_page(bert):
    search("index", "papers", "--model", str(bert), "--ann", "hnsw")
    done = search("query", "cats that sleep", "--json", "--html", "out/found.html")
    told = json.loads(done.stdout)
    assert (told["method"], told["papers"], told["hits"][0]["id"]) == ("hybrid", 2, "cats.md")
    assert set(told["hits"][0]["parts"]) == {"bm25", "dense"}
    page = Path("out/found.html").read_text()
    assert "Cats sleep all day.</mark>" in page and "Dogs &lt;b&gt;bark&lt;/b&gt;." in page and "<b>bark" not in page
    assert "Page: like.html" in search("query", "--like", "cats.md", "--html", "like.html").output
    assert "<h1>Like cats.md</h1>" in Path("like.html").read_text()


def test_the_page_leads_to_the_papers():
    Path("papers/an odd'name.md").write_text("# Odd\n\nQuokkas smile.")
    Path("papers/lines.jsonl").write_text('{"id": "1", "title": "Quokkas"}')
    search("index", "papers")
    search("query", "quokkas", "--html", "out/found.html")
    page = Path("out/found.html").read_text()
    assert "<a href='../papers/an%20odd%27name.md'>papers/an odd&#x27;name.md</a>" in page
    assert "· papers/lines.jsonl, line 1 ·" in page


def test_explain(bert):
    search("index", "papers", "--model", str(bert))
    lines = search("explain", "cats.md", "cats that sleep").output.splitlines()
    assert lines[0].startswith("On cats  (cats.md): rank 1, score 0.0")
    assert lines[1].startswith("bm25: rank 1") and lines[2].startswith("dense: rank ")
    assert lines[3].startswith("words: ") and lines[4].startswith("nearest passage of 1, cosine 0.")
    assert "Cats sleep all day." in "\n".join(lines[5:])
    assert json.loads(search("explain", "graphs.txt", "--like", "cats.md", "--json").output)["paper"] == "graphs.txt"
    assert "On cats  (cats.md): not found" in search("explain", "cats.md", "messages", "--method", "bm25").output


def test_a_model_that_was_moved_and_one_that_is_another(bert, other_bert, tmp_path):
    shutil.copytree(bert, "here")
    search("index", "papers", "--model", "here")
    shutil.move("here", "there")
    assert (
        f"no sentence-transformers model could be loaded from '{tmp_path / 'here'}': there is no such folder"
        in search("query", "cats", code=2).output
    )
    assert "On cats" in search("query", "cats", "--model", "there").output
    Path("papers/new.txt").write_text("Quokkas smile.")
    assert "gives other vectors for the same texts" in search("query", "cats", "--model", str(other_bert), code=2).output
    assert "gives other vectors for the same texts" in search("add", "papers", "--model", str(other_bert), code=2).output
    assert "3 papers" in search("add", "papers", "--model", "there").output
    assert "gives other vectors for the same texts" in search("add", "papers", "--model", str(other_bert), code=2).output, "also of nothing new"
    search("index", "papers", "-i", "words.index")
    assert "was made without a model" in search("add", "papers", "-i", "words.index", "--model", "there", code=2).output


@pytest.mark.parametrize("name", ["papers/model", "./model", "~/model", "/model", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("sentence_transformers.SentenceTransformer.__init__", lambda *_, **__: pytest.fail("sought"))
    output = search("index", "papers", "--model", name, code=2).output
    assert f"no sentence-transformers model could be loaded from '{name}': there is no such folder; name where it is with --model" in output


def test_a_folder_without_a_model():
    output = search("index", "papers", "--model", "papers", code=2).output
    assert "holds neither modules.json nor config.json; the run of a training has its model when it has ended" in output


def test_mistakes_take_one_sentence():
    for words in (["query", "cats"], ["index", "nowhere"], ["delete", "x"], ["explain", "x", "y"], ["add", "papers"]):
        output = search(*words, code=2).output
        assert len(output.strip().splitlines()) == 1 or words[0] == "add", output
    assert "--ann hnsw is for vectors" in search("index", "papers", "--ann", "hnsw", code=2).output
    search("index", "papers")
    assert "already is an index" in search("index", "papers", code=2).output
    search("index", "papers", "--force")


def test_many_left_out_are_counted():
    for n in range(13):
        Path(f"papers/{n:02}.pdf").write_bytes(b"no")
    output = search("index", "papers").output
    assert output.count("warning: left out: papers/") == 10 and "warning: left out: 3 more" in output


def test_the_page_shows_what_lies_around_the_best_sentence(tmp_path):
    many = [{"text": f"s{n}.", "weight": 1.0 if n == 70 else 0.0} for n in range(100)]
    shown = text(many)
    assert shown.startswith("<p>… s50. ") and shown.endswith(f"s{50 + MOST - 1}. …</p>") and "<mark" in shown
    nothing = {"query": "<q>", "like": None, "facet": None, "method": "bm25", "papers": 0, "hits": [], "nothing": "Nothing was found, alas."}
    page = write_page(nothing, tmp_path / "p.html").read_text()
    assert "Nothing was found, alas." in page and "<h1>&lt;q&gt;</h1>" in page
