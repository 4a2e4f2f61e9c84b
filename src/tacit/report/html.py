"""Pieces of HTML. Whatever comes from a run is escaped here or before it gets here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

ABSENT = "<span class='faint'>–</span>"


def asset(name: str) -> str:
    return files("tacit.report").joinpath("assets", name).read_text(encoding="utf-8")


def fill(template: str, **parts: str) -> str:
    """The template with each {{name}} replaced, once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def document(title: str, header: str, sections: Sequence[tuple[str, str, str]], scripts: str = "") -> str:
    """A whole page of sections (id, title, content), the first of which is the result. Without `scripts`, none may run."""
    return fill(
        asset("page.html"),
        allowed="; script-src 'unsafe-inline'; img-src data:" if scripts else "",
        title=escape(title),
        style=asset("style.css"),
        links="".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections),
        header=header,
        body="".join(section(*parts) for parts in sections),
        scripts=scripts,
    )


def in_script(data: Any) -> str:
    """JSON that can stand inside a <script> element whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def section(name: str, title: str, content: str) -> str:
    return f"<section id='{name}' aria-labelledby='{name}-title'><h2 id='{name}-title'>{title}</h2>{content}</section>"


def absent(text: str) -> str:
    return f"<p class='card absent'>{escape(text)}</p>"


def table(head: Iterable[str], rows: Iterable[str], style: str = "") -> str:
    cells = "".join(f"<th scope='col'>{name}</th>" for name in head)
    return f"<div class='card scroll'><table class='{style}'><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def text(value: Any) -> str:
    if value is None:
        return ABSENT
    return escape(value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False))
