"""Records: one JSON file for each (arm, seed) that was measured, which may come from several days and machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tacit.core.rundir import Lock, write_json
from tacit.studies.study import Arm, Measured, Plan, StudyError


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: what is measured at a time."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """What a cell gave, when and where it was measured."""

    cell: Cell
    settings: Mapping[str, Any]
    measured: Measured
    seconds: float
    environment: Mapping[str, Any]


class Records:
    """The records below one folder. One whose settings are not those of the plan is stale: it counts as missing."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        return self.folder / "records" / cell.arm.replace("/", "-") / f"seed-{cell.seed}.json"

    def work(self, cell: Cell) -> Path:
        """Where the cell is measured, and what later cells start from."""
        return self.folder / "work" / cell.arm.replace("/", "-") / f"seed-{cell.seed}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes here meanwhile. Raises RunDirectoryError when another process does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder)
        try:
            yield
        finally:
            lock.release()

    def write(self, record: Record) -> None:
        path = self.path(record.cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(record))

    def read(self, plan: Plan) -> tuple[dict[Cell, Record], list[Cell]]:
        """Records of the plan by cell, in its order, and the cells whose record is stale. Raises StudyError when a file is broken."""
        found, stale = dict[Cell, Record](), list[Cell]()
        for cell in cells(plan):
            record = read_record(self.path(cell))
            if record is None:
                continue
            if record.settings == plain(plan.arm(cell.arm).settings):
                found[cell] = record
            else:
                stale.append(cell)
        return found, stale

    def collect(self, others: Sequence[Path], plan: Plan) -> int:
        """Copies what other folders have and this one lacks; returns how many. Raises StudyError when two folders disagree about a cell."""
        copied = 0
        for other in others:
            if not (other / "records").is_dir():
                raise StudyError(f"{other} holds no records of a study; give a folder that `tacit study` has written")
            theirs, _ = Records(other).read(plan)
            mine, _ = self.read(plan)
            for cell, record in theirs.items():
                if cell not in mine:
                    self.write(record)
                    copied += 1
                elif mine[cell].measured != record.measured:
                    raise StudyError(f"{self.path(cell)} and {Records(other).path(cell)} disagree about {cell}; remove the one that is wrong")
        return copied

    def clear(self, cells: Iterable[Cell]) -> None:
        """Forgets what was measured of these cells."""
        for cell in cells:
            self.path(cell).unlink(missing_ok=True)
            shutil.rmtree(self.work(cell), ignore_errors=True)


def cells(plan: Plan) -> list[Cell]:
    """Seed by seed, so that what is there early compares arms over few seeds, not few arms over all."""
    return [Cell(arm.name, seed) for seed in plan.seeds for arm in plan.arms]


def read_record(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        measured = found["measured"]
        curves = {name: (x, y) for name, (x, y) in measured["curves"].items()}
        what = Measured(measured["numbers"], curves, tuple(measured["clusters"]))
        return Record(Cell(**found["cell"]), found["settings"], what, found["seconds"], found["environment"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is no record of a study ({error}); remove it, and it is measured again") from error


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings))


def starting_point(arm: Arm, seed: int) -> Cell | None:
    return None if arm.after is None else Cell(arm.after, seed)
