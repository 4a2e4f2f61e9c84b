"""`tacit search`: make an index of papers, change it, ask it; score systems on benchmarks. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tacit.core.progress import Reporter
    from tacit.retrieval.papers import Paper
    from tacit.retrieval.search import Query, Searcher

app = typer.Typer(help="Find papers: by words, by any sentence-transformers model, or by both.", no_args_is_help=True)
Page = Callable[[Mapping[str, Any], Path], Path]
MOST_TOLD = 10  # papers left out that are named on the terminal
WIDE, INDENT, SHORTEST = 160, 15, 30  # columns: of a line that goes to no terminal, before a title, and of a title at least
Place = Annotated[Path, typer.Option("--index", "-i", metavar="FOLDER", help="Folder of the index.")]
Sources = Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders, documents, .bib files, JSON lines.", show_default=False)]
Like = Annotated[str | None, typer.Option(metavar="ID", help="Instead of a text: papers like this one of the index.")]
Facet = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="background, method or result: what the papers should share. Needs a UniFAR-style model.", show_default="as asked"
    ),
]
Method = Annotated[str | None, typer.Option(help="bm25, dense or hybrid.", show_default="hybrid where the index has a model")]
OneModel = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Where the model of the index now is, if it was moved.")]
Models = Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="A sentence-transformers model: folder or hub name; repeatable.")]
INDEX = Path("papers.index")


def add_to(parent: typer.Typer, guard: Callable[[], ContextDecorator], make_reporter: Callable[[], Reporter], write_page: Page) -> None:
    """Puts `search` below `parent`; `guard` turns mistakes of the user into sentences, as everywhere on this command line, `make_reporter` shows
    progress, `write_page` writes what was found as HTML."""
    context = {"make_reporter": make_reporter, "write_page": write_page}

    for command in (index, add, delete, query, explain, table):
        app.command(command.__name__, context_settings={"obj": context})(guard()(command))
    parent.add_typer(app, name="search")


def index(
    context: typer.Context,
    sources: Sources,
    folder: Place = INDEX,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A sentence-transformers model, folder or hub name, to search by meaning too.", show_default="words alone"),
    ] = None,
    ann: Annotated[str, typer.Option(help="flat: exact. hnsw: a graph, for hundreds of thousands of papers.")] = "flat",
    force: Annotated[bool, typer.Option("--force", help="Replace the index that is there.")] = False,
) -> None:
    """Make an index of papers: text, Markdown, HTML, PDF, BibTeX, JSON lines."""
    from tacit.retrieval.encoder import Encoder
    from tacit.retrieval.index import build, free

    free(folder, ann, force)  # before anything is read
    if ann != "flat" and not model:
        raise ValueError(f"--ann {ann} is for vectors, and an index by words alone has none; name a model with --model")
    with _writing(folder, context.obj["make_reporter"]()) as reporter:
        encoder = Encoder.load(model) if model else None
        done = build(folder, _gathered(sources, reporter), encoder, kind=ann, force=force, reporter=reporter)
    print(f"Indexed {_papers(done.total)} in {folder}.")


def add(context: typer.Context, sources: Sources, folder: Place = INDEX, model: OneModel = None) -> None:
    """Add papers to an index; one whose id is there takes its place if its text differs. Only new texts are encoded."""
    from tacit.retrieval.encoder import Encoder
    from tacit.retrieval.index import add as added
    from tacit.retrieval.index import existing
    from tacit.retrieval.search import Searcher

    existing(folder)
    given = Searcher.open(folder, model).encoder if model else None  # another model is refused even where nothing is new
    with _writing(folder, context.obj["make_reporter"]()) as reporter:
        papers = _gathered(sources, reporter)
        done = added(folder, papers, lambda name: given or Encoder.load(name), reporter=reporter)
    print(f"Added {done.added:,}, changed {done.changed:,}, unchanged {done.unchanged:,}: {_papers(done.total)} in {folder}.")


def delete(ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of papers.", show_default=False)], folder: Place = INDEX) -> None:
    """Take papers out of an index: all of those named, or none where one is not there."""
    from tacit.retrieval.index import delete as deleted

    done = deleted(folder, ids)
    print(f"Deleted {done.deleted:,}: {_papers(done.total)} in {folder}.")


def query(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Words or a question.", show_default=False)] = None,
    folder: Place = INDEX,
    like: Like = None,
    facet: Facet = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Papers to show.")] = 10,
    method: Method = None,
    model: OneModel = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with highlighted sentences.")] = None,
) -> None:
    """Find papers by words, by a question, or like a paper of the index; with a model that has facets also by one of these."""
    from tacit.retrieval.search import Searcher

    searcher = Searcher.open(folder, model)
    asked = searcher.query(text, like, facet)
    found = answered(searcher, asked, k, method, by_meaning=html is not None or as_json)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("\n".join(told(found, shutil.get_terminal_size((WIDE, 0)).columns)))
    if html is not None:
        page = context.obj["write_page"](found, html)
        if not as_json:
            print(f"Page: {page}")


def answered(searcher: Searcher, asked: Query, k: int, method: str | None, by_meaning: bool) -> dict[str, Any]:
    """A search and what it found, as plain data."""
    hits = searcher.search(asked, k, method)
    return {
        "query": asked.text if asked.like is None else None,
        "like": asked.like,
        "facet": asked.facet,
        "method": method or searcher.default,
        "papers": len(searcher.contents.papers),
        "nothing": None if hits else none_found(asked, method or searcher.default),
        "hits": [
            {
                "rank": hit.rank,
                "id": hit.paper.id,
                "title": hit.paper.title,
                "source": hit.paper.source,
                "score": hit.score,
                "parts": {part: {"rank": rank, "score": score} for part, (rank, score) in hit.parts.items()},
                "sentences": searcher.told_sentences(asked, hit.paper, by_meaning and method != "bm25"),
            }
            for hit in hits
        ],
    }


def none_found(asked: Query, method: str) -> str:
    if method == "bm25" and not asked.words:
        return "Nothing was found: the query has no word to search for; common English words, lone letters, numbers and signs are none."
    return "Nothing was found: no paper of the index shares a word with the query."


def told(found: Mapping[str, Any], width: int = WIDE) -> Iterable[str]:
    """A search for people: a paper on two lines, the second with its best sentence; cut to a width, but for ids."""
    if found["facet"]:
        yield f"By facet: {found['facet']}"
    if not found["hits"]:
        yield found["nothing"]
    for hit in found["hits"]:
        title = shortened(hit["title"], max(SHORTEST, width - INDENT - len(f"  ({hit['id']})")))
        yield f"{hit['rank']:>3}  {hit['score']:8.4f}  {title}  ({hit['id']})"
        best = max(hit["sentences"], key=lambda sentence: sentence["weight"])
        if best["weight"] > 0:
            yield f"{'':{INDENT}}{shortened(best['text'], max(SHORTEST, width - INDENT))}"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def explain(
    name: Annotated[str, typer.Argument(metavar="ID", help="A paper of the index.", show_default=False)],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What was asked.", show_default=False)] = None,
    folder: Place = INDEX,
    like: Like = None,
    facet: Facet = None,
    method: Method = None,
    model: OneModel = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say why a paper stands where it stands for a query: ranks, the share of each word and facet, the nearest passage, the sentences."""
    from tacit.retrieval.search import Searcher

    searcher = Searcher.open(folder, model)
    found = searcher.explain(searcher.query(text, like, facet), name, method)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(reasons(found)))


def reasons(found: Mapping[str, Any]) -> Iterable[str]:
    """An explanation for people."""
    place = f"rank {found['rank']}, score {found['score']:.4f}" if found["rank"] else "not found"
    yield f"{found['title']}  ({found['paper']}): {place}"
    for part, where in found["parts"].items():
        yield f"{part}: rank {where['rank']}, score {where['score']:.4f}"
    if found["words"]:
        yield "words: " + ", ".join(f"{word} {share:.2f}" for word, share in list(found["words"].items())[:15])
    if "passage" in found:
        kind = "score" if "facets" in found else "cosine"
        yield f"nearest passage of {found['passage']['of']}, {kind} {found['passage']['score']:.3f}: {shortened(found['passage']['text'], 300)}"
    if "facets" in found:
        yield f"its score: {' + '.join(f'{name} {term:.3f}' for name, term in found['facets']['terms'].items())}"
        yield f"asked for: {', '.join(f'{name} {share:.0%}' for name, share in found['facets']['asked'].items())}"
    for sentence in sorted(found["sentences"], key=lambda s: -s["weight"])[:3]:
        if sentence["weight"] > 0:
            yield f"{sentence['weight']:.2f}  {sentence['text']}" + (f"  [{sentence['facet']}]" if sentence.get("facet") else "")


@contextmanager
def _writing(folder: Path, reporter: Reporter) -> Iterator[Reporter]:
    """Ctrl-C ends the command with a sentence: an index is written in one step, so what is there is whole."""
    try:
        yield reporter
    except KeyboardInterrupt:
        reporter.close()
        print(f"Stopped; {folder} is as it was, or complete if it was just being written. The same command begins anew.", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        reporter.close()


def _gathered(sources: list[Path], reporter: Reporter) -> list[Paper]:
    from tacit.retrieval.papers import gather

    found = gather(sources, reporter)
    found.tell(reporter, MOST_TOLD)
    return found.papers


def _papers(count: int) -> str:
    return f"{count:,} {'paper' if count == 1 else 'papers'}"


def table(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="csfcube or dorismae, read from TACIT_DATA.", show_default=False)],
    model: Models = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Also mix each model with our TF-IDF and BM25 by scores: its share.", show_default="fused by ranks alone"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for every metric, by facet and over folds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print that JSON instead of the table.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Score published rankings, our own TF-IDF, LSA and BM25, and models, side by side, by the protocol of the benchmark."""
    from tacit.mistakes import choice
    from tacit.retrieval.benchmarks import BENCHMARKS
    from tacit.retrieval.encoder import Encoder
    from tacit.retrieval.systems import all_systems
    from tacit.retrieval.tables import table as scored
    from tacit.retrieval.tables import table_lines

    if benchmark not in BENCHMARKS:
        raise ValueError(choice("BENCHMARK", benchmark, list(BENCHMARKS)))
    encoders = [Encoder.load(name) for name in model or ()]
    for name, encoder in zip(model or (), encoders, strict=True):
        encoder.name = name  # rows are called as the user calls them
    data = BENCHMARKS[benchmark]()
    told = scored(data, all_systems(data, encoders, weight), seed=seed)
    text = json.dumps(told, indent=1)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    print(text if as_json else "\n".join(table_lines(told)))
