"""Replies on disk: whoever asks the same again pays nothing. A file a reply, named by a hash of the whole request."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def request_key(url: str, body: Mapping[str, Any], draw: int) -> str:
    """The name of a request: where it goes, all that it says, and which of several draws it is. API keys travel in headers and are no part of it."""
    told = json.dumps({"url": url, "body": body, "draw": draw}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


class ReplyCache:
    """Raw replies below `folder`. Files appear whole or not at all, so several processes may share one; what cannot be read counts as absent."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, key: str) -> Any:
        """The reply stored under `key`, or None."""
        try:
            return json.loads(self._path(key).read_bytes())["reply"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, body: Mapping[str, Any], reply: Any) -> None:
        """Stores a reply beside the request that it answers. Raises OSError when the disk refuses."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"request": body, "reply": reply}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
