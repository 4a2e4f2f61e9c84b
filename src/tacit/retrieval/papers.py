"""Papers from folders and files: text, Markdown, HTML, PDF, BibTeX and JSON lines. One that cannot be read is named, and costs no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tacit.core.documents import DocumentError, read_document
from tacit.core.progress import Reporter, SilentReporter
from tacit.retrieval.bibtex import entries
from tacit.tasks.data import DataError, read_jsonl

TEXTS = (".txt", ".text", ".md", ".markdown", ".html", ".htm", ".xhtml", ".pdf")
LINES = (".jsonl", ".jsonl.gz", ".ndjson")
ENDINGS = (*TEXTS, ".bib", *LINES)
IDS, BODIES = ("id", "paper_id", "doc_id", "_id", "corpus_id"), ("abstract", "text", "body", "contents")  # columns of JSON lines, the first counts


@dataclass(frozen=True, slots=True)
class Paper:
    """What is searched: an id of its own, a title, a text, and where it came from."""

    id: str
    title: str
    text: str
    source: str = ""

    @property
    def whole(self) -> str:
        return f"{self.title}\n\n{self.text}"


@dataclass(frozen=True, slots=True)
class Gathered:
    """Papers with ids that differ; a sentence for each thing left out; and how many files of a folder were of other kinds."""

    papers: list[Paper]
    left_out: list[str]
    passed_over: int

    def tell(self, reporter: Reporter, most: int) -> None:
        """Warns of what was left out, naming `most` of it."""
        for sentence in self.left_out[:most]:
            reporter.warning(f"left out: {sentence}")
        if (more := len(self.left_out) - most) > 0:
            reporter.warning(f"left out: {more} more")


def gather(sources: Sequence[str | Path], reporter: Reporter | None = None) -> Gathered:
    """All papers below the sources. Files of a folder are called by their path in it, entries and lines by their own ids.

    Raises ValueError when a source is not there, is a broken file of its own, or nothing at all can be read.
    """
    reporter = reporter or SilentReporter()
    files, passed_over = _files(sources)
    papers: dict[str, Paper] = {}
    left_out: list[str] = []
    reporter.phase("reading", len(files))
    for n, (path, name) in enumerate(files):
        try:
            for paper in _papers(path, name):
                _take(paper, papers, left_out)
        except (DocumentError, DataError) as error:
            if len(files) == 1:
                raise
            left_out.append(str(error))
        reporter.step(n, {"papers": len(papers)})
    if not papers:
        raise ValueError(
            f"there is nothing to index in {', '.join(map(str, sources))}: {left_out[0] if left_out else f'no file ends in {_endings()}'}"
        )
    return Gathered(list(papers.values()), left_out, passed_over)


def _take(paper: Paper, papers: dict[str, Paper], left_out: list[str]) -> None:
    known = papers.get(paper.id)
    if not paper.whole.strip():
        left_out.append(f"{paper.source} has neither title nor text")
    elif known is None:
        papers[paper.id] = paper
    elif (known.title, known.text) != (paper.title, paper.text):
        left_out.append(f"{paper.source}: the id {paper.id!r} is taken by {known.source}, with another text; give each paper an id of its own")


def _files(sources: Sequence[str | Path]) -> tuple[list[tuple[Path, str]], int]:
    """(file, its name as an id), in an order that does not depend on the file system; and how many others there were."""
    found, others = [], 0
    for source in map(Path, sources):
        if not source.is_dir():
            if not source.exists():
                raise ValueError(f"there is no file or folder {source} (looked in {Path.cwd()})")
            found.append((source, source.as_posix()))
            continue
        inside = sorted(p for p in source.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(source).parts))
        mine = [p for p in inside if p.name.lower().endswith(ENDINGS)]
        others += len(inside) - len(mine)
        found += [(p, p.relative_to(source).as_posix()) for p in mine]
    return found, others


def _papers(path: Path, name: str) -> Iterator[Paper]:
    ending = path.name.lower()
    if ending.endswith(LINES):
        yield from _from_lines(path)
    elif ending.endswith(".bib"):
        for key, fields in entries(_source_text(path)):
            text = "\n\n".join(filter(None, (fields.get("abstract", ""), fields.get("author", ""), fields.get("keywords", ""))))
            yield _paper(key, fields.get("title", ""), text, f"{path}, entry {key}")
    else:
        title, text = read_document(path)
        yield _paper(name, title or path.stem, text, str(path))


def _source_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DocumentError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _from_lines(path: Path) -> Iterator[Paper]:
    for line, row in read_jsonl(path):
        place = f"{path}, line {line}"
        given = next((row[column] for column in IDS if row.get(column) not in (None, "")), f"{path.name.split('.')[0]}:{line}")
        body = next((row[column] for column in BODIES if row.get(column)), "")
        yield _paper(str(given), _text(row.get("title") or "", "title", place), _text(body, "abstract or text", place), place)


def _text(value: Any, column: str, place: str) -> str:
    """A text, or a list of sentences as one."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    if not isinstance(value, str):
        raise DataError(f"{place}: the {column} is {type(value).__name__}; it must be text or a list of sentences")
    return value


def _paper(name: str, title: str, text: str, source: str) -> Paper:
    """Without what cannot be written as UTF-8, which PDFs hold at times."""
    clean = [part.replace("\0", " ").encode("utf-8", "replace").decode() for part in (name, " ".join(title.split()), text.strip(), source)]
    return Paper(*clean)


def _endings() -> str:
    return ", ".join(ENDINGS)


def by_id(papers: Iterable[Paper]) -> dict[str, Paper]:
    return {paper.id: paper for paper in papers}
