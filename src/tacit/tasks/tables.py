"""Rows of the user's own data: JSON lines, Parquet, and data sets of the hub, each with the place that errors name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tacit.tasks.data import DataError, read_jsonl

Row = tuple[str, dict[str, Any]]  # "line 3" or "row 3", and its columns
HUB = "hub:"
FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


def rows(source: str) -> list[Row]:
    """The rows of a file, by its ending. Raises DataError in one sentence: missing, damaged, empty, or no library to read it."""
    if source.endswith(".parquet"):
        return _numbered(_parquet(Path(source)), source)
    return [(f"line {line}", row) for line, row in read_jsonl(source)]


def hub_rows(name: str, split: str, subset: str | None = None, revision: str | None = None) -> list[Row]:
    """The rows of a split of the hub data set owner/name, from the local cache where it is there. Raises DataError in one sentence."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise DataError(f"{HUB}{name} is loaded with the library 'datasets': pip install 'tacit[data]'") from None
    try:
        data: Any = load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError) as error:  # unreachable, unknown, gated; no such subset or split
        told = " ".join(str(error).split())
        raise DataError(f"the hub data set {name!r}, split {split!r}, could not be loaded; offline, it must be in the local cache: {told}") from None
    return _numbered((dict(row) for row in data), f"{HUB}{name}")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise DataError(f"{path} is read with the library 'pyarrow': pip install 'tacit[data]'") from None
    if not path.is_file():
        raise DataError(f"there is no file {path} (looked in {Path.cwd()})")
    try:
        yield from parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _numbered(found: Iterator[dict[str, Any]], source: str) -> list[Row]:
    numbered = [(f"row {number}", row) for number, row in enumerate(found, start=1)]
    if not numbered:
        raise DataError(f"{source} is empty: it must hold one prompt a row")
    return numbered
