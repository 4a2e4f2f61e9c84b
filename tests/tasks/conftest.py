"""GSM8K in its own format, small enough to count by hand; and the real one where TACIT_DATA holds it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REAL = Path(os.environ.get("TACIT_DATA") or "data") / "gsm8k"  # read before any test changes the environment


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
def real_gsm8k(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (REAL / "train.jsonl.gz").is_file():
        pytest.skip(f"needs the real GSM8K: there is no train.jsonl.gz in {REAL}; set TACIT_DATA to the folder that holds gsm8k/")
    monkeypatch.setenv("TACIT_DATA", str(REAL.parent))
    return REAL
