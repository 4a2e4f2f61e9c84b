"""Papers from folders and files: text, Markdown, HTML, PDF, BibTeX and JSON lines. One that cannot be read is named, and costs no other."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tacit.core.documents import DocumentError, decoded, read_document
from tacit.core.progress import Reporter, SilentReporter
from tacit.retrieval.bibtex import entries
from tacit.retrieval.store import CURRENT
from tacit.tasks.data import DataError, read_jsonl

TEXTS = (".txt", ".text", ".md", ".markdown", ".html", ".htm", ".xhtml", ".pdf")
LINES = (".jsonl", ".jsonl.gz", ".ndjson")
TABLES = (".json", ".csv", ".tsv")  # that hold papers at times, and are not read
MARKS = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+|[ \t]+#+[ \t]*$|(?<=\S)\n[ \t]{0,3}(?:=+|-+)[ \t]*$", re.MULTILINE)  # of headings in Markdown
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
    """Papers with ids that differ; a sentence for each thing left out; and how many files of folders have which ending that is not read."""

    papers: list[Paper]
    left_out: list[str]
    passed_over: dict[str, int]

    def tell(self, reporter: Reporter, most: int) -> None:
        """Warns of what was left out, naming `most` of it, and tells what was passed over."""
        for sentence in self.left_out[:most]:
            reporter.warning(f"left out: {sentence}")
        if (more := len(self.left_out) - most) > 0:
            reporter.warning(f"left out: {more} more")
        if self.passed_over:
            reporter.message(f"Files of other kinds, passed over: {_counted(self.passed_over)}")


def gather(sources: Sequence[str | Path], reporter: Reporter | None = None) -> Gathered:
    """All papers below the sources. Files of a folder are called by their path in it, entries and lines by their own ids.

    Raises ValueError when a source is not there, is a broken file of its own, or nothing at all can be read.
    """
    reporter = reporter or SilentReporter()
    files, passed_over, left_out = _files(sources)
    papers: dict[str, Paper] = {}
    reporter.phase("reading", len(files))
    for n, (path, name) in enumerate(files):
        try:
            for paper in _papers(path, name, left_out if len(files) > 1 else None):
                _take(paper, papers, left_out)
        except (DocumentError, DataError) as error:
            if len(files) == 1:
                raise
            left_out.append(str(error))
        reporter.step(n, {"papers": len(papers)})
    if not papers:
        others = f"; passed over: {_counted(passed_over)}" if passed_over else ""
        why = left_out[0] if left_out else f"no file ends in {', '.join(ENDINGS)}{others}"
        raise ValueError(f"there is nothing to index in {', '.join(map(str, sources))}: {why}")
    return Gathered(list(papers.values()), left_out, passed_over)


def _take(paper: Paper, papers: dict[str, Paper], left_out: list[str]) -> None:
    known = papers.get(paper.id)
    if not paper.whole.strip():
        left_out.append(f"{paper.source} has neither title nor text")
    elif known is None:
        papers[paper.id] = paper
    elif (known.title, known.text) != (paper.title, paper.text):
        left_out.append(f"{paper.source}: the id {paper.id!r} is taken by {known.source}, with another text; give each paper an id of its own")


def _files(sources: Sequence[str | Path]) -> tuple[list[tuple[Path, str]], Counter[str], list[str]]:
    """(file, its name as an id), in an order that does not depend on the file system; other endings; and a sentence for each closed folder."""
    found, others, closed = [], Counter[str](), []
    for source in map(Path, sources):
        if not source.is_dir():
            if not source.exists():
                raise ValueError(f"there is no file or folder {source} (looked in {Path.cwd()})")
            found.append((source, source.as_posix()))
            continue
        inside = sorted(_inside(source, closed))
        mine = [p for p in inside if p.name.lower().endswith(ENDINGS)]
        others.update(p.suffix.lower() or "without ending" for p in inside if not p.name.lower().endswith(ENDINGS))
        found += [(p, p.relative_to(source).as_posix()) for p in mine]
    return found, others, closed


def _inside(source: Path, closed: list[str]) -> Iterator[Path]:
    """The files of a folder, but for hidden ones and those of indexes; a sentence for each folder that may not be read."""
    for folder, folders, names in os.walk(source, onerror=lambda error: closed.append(f"{error.filename}: {(error.strerror or str(error)).lower()}")):
        if not os.access(folder, os.X_OK):  # names can be read, files cannot
            closed.append(f"{folder}: permission denied")
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".") and not os.path.isfile(os.path.join(folder, name, CURRENT))]
        yield from (path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file())


def _papers(path: Path, name: str, broken: list[str] | None) -> Iterator[Paper]:
    """Those of a file. A broken line of JSON lines raises DataError, unless a list is given to note it."""
    ending = path.name.lower()
    if ending.endswith(LINES):
        yield from _from_lines(path, broken)
    elif ending.endswith(".bib"):
        found = list(entries(_source_text(path)))
        if not found:
            raise DocumentError(f"{path} holds no entry of BibTeX")
        for key, fields in found:
            text = "\n\n".join(filter(None, (fields.get("abstract", ""), fields.get("author", ""), fields.get("keywords", ""))))
            yield _paper(key, fields.get("title", ""), text, f"{path}, entry {key}")
    elif ending.endswith(TABLES):
        raise DocumentError(f"{path} is not read; make it JSON lines, an object with title and abstract on each line")
    else:
        title, text = read_document(path)
        if ending.endswith((".md", ".markdown")):
            text = MARKS.sub("", text)
        yield _paper(name, title or path.stem, _without(title, text), str(path))


def _without(title: str, text: str) -> str:
    """A text without the line that says its title."""
    words = r"\s+".join(map(re.escape, title.split()))
    return re.sub(rf"^[ \t]*{words}[ \t]*$", "", text, count=1, flags=re.MULTILINE) if words else text


def _source_text(path: Path) -> str:
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise DocumentError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _from_lines(path: Path, broken: list[str] | None) -> Iterator[Paper]:
    for line, row in read_jsonl(path, broken):
        place = f"{path}, line {line}"
        given = next((row[column] for column in IDS if row.get(column) not in (None, "")), f"{path.name.split('.')[0]}:{line}")
        body = next((row[column] for column in BODIES if row.get(column)), "")
        try:
            yield _paper(str(given), _text(row.get("title") or "", "title", place), _text(body, "abstract or text", place), place)
        except DataError as error:
            if broken is None:
                raise
            broken.append(str(error))


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


def _counted(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))


def by_id(papers: Iterable[Paper]) -> dict[str, Paper]:
    return {paper.id: paper for paper in papers}
