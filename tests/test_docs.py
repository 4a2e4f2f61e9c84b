"""The documents keep their word: examples run as written, names and paths exist, every key, metric and formula is explained.

Fenced blocks: `python` is run; `python name.py`, `yaml name.yaml`, `json name.jsonl` are written to that file; of `console`, the lines that
begin "$ tacit" are run. Blocks of one page share a folder and a namespace. `py` and blocks without a language are only shown.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from tacit.cli import app
from tacit.core.thresholds import THRESHOLDS
from tacit.rl import advantages, losses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(\w+)?(?:[ \t]+(\S+))?[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:src|tests|docs|recipes|benchmarks|results)/[\w./-]*|(?:rl|sft|core|generation|tasks|rewards|report)/\w+\.py)`")
METRIC = re.compile(r"(?:reward|length|loss|eval|health|optimiser|data|time|throughput)/[\w@]+")
INTERMEDIATE = {"health/importance_weight_squared"}  # summed up on the way to another metric, never logged


@dataclass
class Block:
    """A fenced block: where it begins, in which language, under which file name (or none)."""

    page: Path
    line: int
    language: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[: m.start()].count("\n") + 1, m[1] or "", m[2] or "", m[3]) for m in FENCE.finditer(text)]


def active(page: Path) -> list[Block]:
    return [b for b in blocks(page) if b.file or b.language in ("python", "console")]


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Runs a block in the current folder; lines of a traceback are those of the page."""
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        exec(compile("\n" * block.line + block.text, str(block.page), "exec"), namespace)
    elif block.language == "console":
        for command in re.findall(r"^\$ tacit (.*)$", block.text, re.MULTILINE):
            done = CliRunner().invoke(app, shlex.split(command))
            assert done.exit_code == 0, f"{block.page.name}:{block.line}: tacit {command}\n{done.output}{done.exception!r}"


@pytest.mark.parametrize("page", [pytest.param(p, id=p.name) for p in PAGES if active(p)])
def test_examples_run_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in active(page):
        run(block, namespace)


def test_blocks_are_found_with_language_file_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n\n```python own.py\nx = 1\n```\n\n```\nshown\n```\n```console\n$ tacit --version\n```\n")
    assert [(b.line, b.language, b.file) for b in blocks(page)] == [(3, "python", "own.py"), (7, "", ""), (10, "console", "")]
    assert [b.language for b in active(page)] == ["python", "console"]


def test_an_example_that_fails_names_its_page_and_line(tmp_path: Path) -> None:
    block = Block(tmp_path / "page.md", 5, "python", "", "x = 1\ny = x / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(block, {})
    assert caught.traceback[-1].lineno == 6  # counted from 0: line 7 of the page
    block = Block(tmp_path / "page.md", 5, "console", "", "$ tacit train missing.yaml\n")
    with pytest.raises(AssertionError, match=r"page\.md:5: tacit train missing\.yaml"):
        run(block, {})


@pytest.mark.parametrize("page", [pytest.param(p, id=p.name) for p in PAGES])
def test_links_and_paths_exist(page: Path) -> None:
    """A path below the root, or `rl/name.py` below the package, must be there, unless its line says that it is planned."""
    missing = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        absent = [t for t in LINK.findall(line) if "://" not in t and not (page.parent / t).exists()]
        if "planned" not in line:
            absent += [p for p in PATH.findall(line) if not ((ROOT / p).exists() or (ROOT / "src/tacit" / p).exists())]
        missing += [f"{page.name}:{number}: {target} is not there" for target in absent]
    assert not missing, "\n".join(missing)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    assert [p.name for p in DOCS.glob("*.md") if p.name != "index.md" and f"({p.name})" not in index] == []


def test_every_config_key_is_documented() -> None:
    writer = load(DOCS / "write_configuration.py")
    assert writer.page() == writer.PAGE.read_text(encoding="utf-8"), "docs/configuration.md is behind src/tacit/config.py: run `make docs`"
    keys = set(re.findall(r"^\| `([\w.]+)` \|", writer.PAGE.read_text(), re.MULTILINE))
    assert {"seed", "model.tiny.hidden", "algorithm.kl.form", "components.N.name", "packing"} <= keys


def test_every_metric_is_explained() -> None:
    guide = (DOCS / "metrics.md").read_text()
    named = set(METRIC.findall(guide))
    logged = {name for room in ("core", "rewards", "rl", "sft") for path in (ROOT / "src/tacit" / room).glob("*.py") for name in metrics_in(path)}
    assert len(logged) > 20
    assert logged - named == INTERMEDIATE & logged


def test_metric_thresholds_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(health/\w+)` \|[^\n]*?(?<!\\)\| ([^|]*?) \| [^|]* \|$", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    for name, limit in THRESHOLDS.items():
        numbers = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", rows[name])]
        expected = {"0": [limit.high] if limit.high == 0 else [limit.low, limit.high], "≥": [limit.low]}["≥" if "≥" in rows[name] else "0"]
        assert numbers == expected, f"{name}: metrics.md says {rows[name]!r}, core/thresholds.py says {expected}"


def metrics_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value):
            yield node.value


def test_every_formula_is_in_the_paper_index_and_every_function_named_there_exists() -> None:
    page = (DOCS / "paper-index.md").read_text()
    named = re.findall(r"`((?:advantages|losses|aggregation|kl|correction|filters)\.\w+)`", page)
    for name in named:
        module, function = name.split(".")
        assert hasattr(importlib.import_module(f"tacit.rl.{module}"), function), f"paper-index.md names {name}, which does not exist"
    in_code = {f"advantages.{f.__name__}" for f in advantages.ADVANTAGES.values()} | {f"losses.{f.__name__}" for f in losses.LOSSES.values()}
    assert in_code - set(named) == set()


def test_the_paper_index_has_ten_systems() -> None:
    rows = re.findall(
        r"^\| .* \| \[\d{4}\.\d{5}\]\(https://arxiv\.org/abs/\d{4}\.\d{5}\) \| .* \| (\w+) \| (.*) \|$", (DOCS / "paper-index.md").read_text(), re.M
    )
    assert len(rows) == 10
    assert all(status in ("planned", "partly", "works") for status, _ in rows)
    assert all(result != "–" for status, result in rows if status == "works"), "a system that works has a result file"
    assert all(result == "–" for status, result in rows if status == "planned"), "a planned one has none"


def test_error_messages_in_the_guide_are_those_of_the_code() -> None:
    """Every literal piece of a quoted message (between …, quoted values and numbers) stands somewhere in the source."""
    said = re.findall(r"^\| `(.*?)` \|", (DOCS / "errors.md").read_text().partition("## What the sentence says")[2], re.MULTILINE)
    source = "\n".join(joined(p) for p in (ROOT / "src/tacit").rglob("*.py"))
    pieces = {m: [x.strip(" :;,.") for x in re.split(r"…|'[^']*'|\d+", m)] for m in said}
    unknown = [f"{m!r}: {x!r}" for m, parts in pieces.items() for x in parts if len(x) > 3 and x not in source]
    assert len(said) > 10
    assert not unknown, "\n".join(unknown)


def joined(path: Path) -> str:
    """All text in the literals of a file, a line each, f-strings with a gap where a value goes."""
    return "\n".join(
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values) if isinstance(node, ast.JoinedStr) else node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
