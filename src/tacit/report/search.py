"""What a search found, as one self-contained page: papers with the sentences that answer, the stronger the more they do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tacit.report.html import absent, document

PALE = 0.15  # sentences with less of the greatest weight are not marked
MOST = 40  # sentences of a paper on the page; of a longer one, those around the best


def write_page(result: Mapping[str, Any], output: Path) -> Path:
    """Writes the page of a search: its query, method, and hits with rank, score, parts and weighed sentences. Returns the path."""
    asked = f"Like {result['like']}" if result["like"] else result["query"]
    how = escape(result["method"]) + (f", by facet: {escape(result['facet'])}" if result["facet"] else "")
    header = f"<h1>{escape(asked)}</h1><p class='about'>{len(result['hits'])} of {result['papers']:,} papers, by {how}</p>"
    body = "".join(paper(hit, output.parent) for hit in result["hits"]) or absent(result["nothing"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(document(asked[:80], header, [("result", "Papers", body)]), encoding="utf-8", errors="replace")
    return output


def paper(hit: Mapping[str, Any], folder: Path) -> str:
    """One hit on a page in `folder`: title, where it is from, ranks, and its text."""
    parts = " · ".join(f"{name} rank {part['rank']}, {part['score']:.3f}" for name, part in hit["parts"].items())
    told = f"{escape(hit['id'])} · {link(hit['source'], folder)} · {parts}"
    head = f"<h3>{hit['rank']}. {escape(hit['title'])}</h3><p class='soft'>{told}</p>"
    return f"<article class='card' style='margin-bottom:14px'>{head}{text(hit['sentences'])}</article>"


def link(source: str, folder: Path) -> str:
    """To a source that is a file still; other sources by name."""
    if not Path(source).is_file():
        return escape(source)
    return f"<a href='{escape(quote(Path(os.path.relpath(source, folder)).as_posix()))}'>{escape(source)}</a>"


def text(sentences: Iterable[Mapping[str, Any]]) -> str:
    """The sentences, each marked as strongly as it weighs, with its facet where it is known; of many only those around the best."""
    every = list(sentences)
    best = max(range(len(every)), key=lambda n: (every[n]["weight"], -n), default=0)
    first = max(0, min(best - MOST // 2, len(every) - MOST))
    shown = [tag(s.get("facet", "")) + marked(s["text"], s["weight"]) for s in every[first : first + MOST]]
    dots = ["… "] if first else []
    return f"<p>{''.join(dots)}{' '.join(shown)}{' …' if first + MOST < len(every) else ''}</p>"


def tag(facet: str) -> str:
    return f"<small class='faint'>{escape(facet)}</small> " if facet else ""


def marked(sentence: str, weight: float) -> str:
    if weight < PALE:
        return escape(sentence)
    shade = f"background:color-mix(in srgb, var(--shade) {round(45 * min(1.0, weight))}%, transparent);color:inherit"
    return f"<mark style='{shade}' title='{weight:.2f}'>{escape(sentence)}</mark>"
