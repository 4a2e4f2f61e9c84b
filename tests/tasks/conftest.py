"""Small files in the formats of the data sets, and the real ones where TACIT_DATA holds them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("TACIT_DATA") or "data").resolve()  # read before any test changes the environment


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Points TACIT_DATA at the real data, and returns the folder of a set; skips where it is not there."""

    def folder(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"needs the real data set {name}: there is no {DATA / name}; set TACIT_DATA to the folder that holds {name}/")
        monkeypatch.setenv("TACIT_DATA", str(DATA))
        return DATA / name

    return folder


@pytest.fixture
def real_gsm8k(real_data: Callable[[str], Path]) -> Path:
    return real_data("gsm8k")
