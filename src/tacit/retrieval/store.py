"""An index on disk, whole or not at all.

    papers.index/
      CURRENT      the name of the generation that counts: replaced in one step, after that generation is on the disk
      LOCK         held by whoever writes; readers need none
      00000012/    a generation: files and SIZES, which lists them

A write makes a new generation beside the old one. Whenever the process dies, CURRENT names a complete one, the old or the new; what a dead
writer left lying is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tacit.core.disk import flush

CURRENT, LOCK, SIZES, TEMPORARY = "CURRENT", "LOCK", "SIZES", ".writing"
GENERATION = re.compile(r"\d{8}")
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

    def read(self, reader: Callable[[Path], Read]) -> Read:
        """What `reader` makes of the current generation. Raises StoreError when there is none or a file is missing or cut."""
        for left in reversed(range(READS)):
            generation = self._current()
            try:
                self._check(generation)
                return reader(generation)
            except (FileNotFoundError, StoreError) as error:
                if self._current() == generation or not left:  # nobody wrote meanwhile: it is damaged
                    if isinstance(error, StoreError):
                        raise
                    raise StoreError(f"{error.filename} is missing from the index {self.folder}; make the index anew") from None
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the lock; what an earlier writer left is removed. Raises StoreError when another process writes, or the folder is no index."""
        self.folder.mkdir(parents=True, exist_ok=True)
        strangers = [p.name for p in self.folder.iterdir() if p.name not in (CURRENT, LOCK) and not self._is_ours(p.name)]
        if strangers:
            raise StoreError(f"{self.folder} is not an index: it holds {sorted(strangers)[0]!r}; give a folder of its own with --index")
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
        sizes = {p.name: p.stat().st_size for p in sorted(temporary.iterdir())}
        (temporary / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        os.rename(temporary, final)
        pointer = self.folder / f"{TEMPORARY}-{CURRENT}"
        pointer.write_text(final.name, encoding="utf-8")
        flush(pointer)
        os.replace(pointer, self.folder / CURRENT)
        flush(self.folder)
        self._sweep()

    def _current(self) -> Path:
        try:
            return self.folder / (self.folder / CURRENT).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise StoreError(f"there is no index in {self.folder}; make one with: tacit search index FOLDER --index {self.folder}") from None

    def _check(self, generation: Path) -> None:
        for name, size in json.loads((generation / SIZES).read_text(encoding="utf-8")).items():
            if (generation / name).stat().st_size != size:
                raise StoreError(f"{generation / name} has lost or gained bytes; make the index anew")

    def _sweep(self) -> None:
        """Removes everything but the current generation."""
        keep = (self.folder / CURRENT).read_text(encoding="utf-8").strip() if self.exists() else None
        for path in self.folder.iterdir():
            if self._is_ours(path.name) and path.name != keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @staticmethod
    def _is_ours(name: str) -> bool:
        return bool(GENERATION.fullmatch(name)) or name.startswith(TEMPORARY)
