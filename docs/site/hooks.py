"""What the site needs beyond the Markdown that a repository shows: pages of the API, and links into the tree turned into what the site has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tacit"
ROOMS = ("config", "core", "tasks", "rewards", "generation", "rl", "sft", "evaluation", "report", "studies", "routing", "retrieval", "clients")
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?:#[^)]*)?\)")
LANGUAGE = re.compile(r"^```(\w+)[ \t]+(\S+\.\w+)[ \t]*$", re.MULTILINE)


def modules(room: str) -> list[str]:
    """Dotted names of a room's public modules, in alphabetical order; a room of one file is that module."""
    if (PACKAGE / f"{room}.py").exists():
        return [f"tacit.{room}"]
    names = sorted(path.stem for path in (PACKAGE / room).glob("*.py") if not path.stem.startswith("_"))
    return [f"tacit.{room}.{name}" for name in names]


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each room, whose text mkdocstrings takes from the docstrings without running anything."""
    for room in ROOMS:
        text = f"# tacit.{room}\n\n" + "\n\n".join(f"::: {name}" for name in modules(room)) + "\n"
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the API where it has the file, and become the path itself elsewhere; file names of fences become titles."""
    here = Path("docs", page.file.src_uri).parent
    markdown = LANGUAGE.sub(r'```\1 title="\2"', markdown)
    return LINK.sub(lambda link: inside(link, here, page.file.src_uri.count("/")), markdown)


def inside(link: re.Match[str], here: Path, depth: int) -> str:
    target = (ROOT / here / link["up"] / link["path"]).resolve()
    if target.is_relative_to(ROOT / "docs"):
        return link[0]
    path = target.relative_to(ROOT)
    if target.is_relative_to(PACKAGE):
        room, *rest = target.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(("tacit", room, *rest))
        if room in ROOMS and (not rest or module in modules(room)):
            return f"[{link['text']}]({'../' * depth}api/{room}.md{'#' + module if module in modules(room) else ''})"
    return f"`{path}`"
