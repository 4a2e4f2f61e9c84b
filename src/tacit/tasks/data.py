"""Where data lives, and reading JSON lines with errors that name the file and the line."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that are missing, damaged or not what they should be: which file, which line, what to do."""


def data_root() -> Path:
    """The folder of all data sets: the environment variable TACIT_DATA, else ./data."""
    return Path(os.environ.get("TACIT_DATA") or "data")


def locate(name: str) -> Path:
    """The file `name` ("gsm8k/train.jsonl.gz", or the same without .gz) below the data root. Raises DataError when it is not there."""
    root = data_root()
    for path in (root / name, root / name.removesuffix(".gz")):
        if path.is_file():
            return path
    raise DataError(f"the file {name} is not in {root.resolve()}: set TACIT_DATA to the folder that holds {Path(name).parts[0]}/")


def read_jsonl(path: str | Path, broken: list[str] | None = None) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank; a name that ends in .gz is read through gzip.

    Raises DataError: missing file, damaged gzip, no line at all; text that is not UTF-8, or a line that is not a JSON object, unless a list
    `broken` is given, which then takes a sentence for each such line in place of an error.
    """
    path, known = Path(path), len(broken or ())
    rows = list(_parsed(path, broken))
    if not rows and len(broken or ()) == known:
        raise DataError(f"{path} is empty: it must hold one JSON object a line")
    return rows


def read_set(name: str) -> list[dict[str, Any]]:
    """The objects of a file below the data root. Raises DataError as `locate` and `read_jsonl` do."""
    return [row for _, row in read_jsonl(locate(name))]


def _parsed(path: Path, broken: list[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, raw in _lines(path):
        try:
            row = _object(raw, number, path)
        except DataError as error:
            if broken is None:
                raise
            broken.append(str(error))
        else:
            if row is not None:
                yield number, row


def _object(raw: bytes, number: int, path: Path) -> dict[str, Any] | None:
    """The object of a line; None of a blank one."""
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        value = json.loads(text) if text else None
    except UnicodeDecodeError:
        raise DataError(f"{path}, line {number}: this is not text in UTF-8; convert the file or remove the line") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: this is not valid JSON ({error.msg} at column {error.colno}); mend or remove the line") from None
    if text and not isinstance(value, dict):
        raise DataError(f'{path}, line {number}: expected a JSON object like {{"prompt": ...}}, this is {type(value).__name__}')
    return value


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except FileNotFoundError:
        raise DataError(f"there is no file {path} (looked in {Path.cwd()})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path} is damaged after line {number}: its gzip data break off or do not add up; fetch it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def text_field(row: dict[str, Any], name: str, path: str | Path, line: int) -> str:
    """The text in column `name` of a row. Raises DataError when there is none."""
    value = row.get(name)
    if not isinstance(value, str):
        found = f"column {name!r} is {type(value).__name__}, not text" if name in row else f"there is no column {name!r}, only {', '.join(row)}"
        raise DataError(f"{path}, line {line}: {found}")
    return value
