"""An index on disk, whole or not at all.

    papers.index/
      CURRENT      the name of the generation that counts: replaced in one step, after that generation is on the disk
      LOCK         held by whoever writes; readers need none
      00000012/    a generation: files, and FILES, which lists them with their sizes and checksums

A write makes a new generation beside the old one. Whenever the process dies, CURRENT names a complete one, the old or the new; what a dead
writer left lying is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tacit.core.disk import flush

CURRENT, LOCK, FILES, TEMPORARY = "CURRENT", "LOCK", "FILES", ".writing"
LEFT = re.compile(r"\.DS_Store|Thumbs\.db|\.nfs.*", re.DOTALL)  # what Finder, Explorer and NFS leave in any folder
GENERATION = re.compile(r"\d{8}")
BLOCK = 2**20  # bytes read at once
READS = 5  # tries of a reader whose generation a writer removed under it
Read = TypeVar("Read")


class StoreError(ValueError):
    """An index that is not there, damaged or in use: which, and what to do."""


class Store:
    """The folder of one index."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def exists(self) -> bool:
        return (self.folder / CURRENT).is_file()

    def refuse_strangers(self) -> None:
        """Raises StoreError when this is a file, or a folder with files of others."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file; give the folder of an index with --index")
        strangers = [p.name for p in self.folder.iterdir() if p.name not in (CURRENT, LOCK) and not self._is_ours(p.name)]
        if strangers:
            raise StoreError(f"{self.folder} is not an index: it holds {sorted(strangers)[0]!r}; give a folder of its own with --index")

    def read(self, reader: Callable[[Path], Read]) -> Read:
        """What `reader` makes of the current generation. Raises StoreError when there is none, or a file is missing or not as it was written."""
        for left in reversed(range(READS)):
            generation = self.current()
            try:
                self._check(generation)
                return reader(generation)
            except (FileNotFoundError, StoreError) as error:
                if self.current() == generation or not left:  # nobody wrote meanwhile: it is damaged
                    if isinstance(error, StoreError):
                        raise
                    raise self._damaged(f"{error.filename} is missing") from None
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the lock; what an earlier writer left is removed. Raises StoreError when another process writes, or the folder is no index."""
        self.refuse_strangers()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"the index {self.folder} is being written by another process; try again when it is done") from None
            self._sweep()
            yield

    def publish(self, write: Callable[[Path], None]) -> None:
        """Makes what `write` puts into a folder the current generation. Only within `writing`."""
        number = 1 + max((int(p.name) for p in self.folder.iterdir() if GENERATION.fullmatch(p.name)), default=0)
        temporary, final = self.folder / TEMPORARY, self.folder / f"{number:08d}"
        temporary.mkdir()
        write(temporary)
        listed = {p.name: _fingerprint(p) for p in sorted(temporary.iterdir())}
        (temporary / FILES).write_text(json.dumps(listed), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        os.rename(temporary, final)
        pointer = self.folder / f"{TEMPORARY}-{CURRENT}"
        pointer.write_text(final.name, encoding="utf-8")
        flush(pointer)
        os.replace(pointer, self.folder / CURRENT)
        flush(self.folder)
        self._sweep()

    def current(self) -> Path:
        """The generation that counts. Raises StoreError when there is none."""
        try:
            name = self._named()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"there is no index in {self.folder}; make one with: tacit search index FOLDER --index {self.folder}") from None
        if not GENERATION.fullmatch(name):
            raise self._damaged(f"{self.folder / CURRENT} names no generation")
        return self.folder / name

    def _named(self) -> str:
        return (self.folder / CURRENT).read_bytes().decode("ascii", "replace").strip()

    def _check(self, generation: Path) -> None:
        try:
            listed = dict(json.loads((generation / FILES).read_bytes()))
        except (ValueError, TypeError):
            raise self._damaged(f"{generation / FILES} is no list of files") from None
        for name, fingerprint in listed.items():
            if _fingerprint(generation / name) != fingerprint:
                raise self._damaged(f"{generation / name} is not as it was written")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{what}; make the index anew with: tacit search index FOLDER --index {self.folder} --force")

    def _sweep(self) -> None:
        """Removes everything but the current generation; no generation where the one that counts is not there."""
        keep = self._named() if self.exists() else None
        lost = keep is not None and not (self.folder / keep / FILES).is_file()
        for path in self.folder.iterdir():
            if path.name.startswith(TEMPORARY) or (GENERATION.fullmatch(path.name) and path.name != keep and not lost):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @staticmethod
    def _is_ours(name: str) -> bool:
        return name.startswith(TEMPORARY) or bool(GENERATION.fullmatch(name) or LEFT.fullmatch(name))


def _fingerprint(path: Path) -> list[int]:
    """Size in bytes and CRC-32 of a file."""
    size = check = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, check = size + len(block), zlib.crc32(block, check)
    return [size, check]
