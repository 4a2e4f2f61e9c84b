"""Measures the cells that a study lacks: a few processes of one thread each, every cell written down as soon as it is done."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

from tacit.core.environment import machine
from tacit.core.progress import Reporter, duration
from tacit.studies.records import Cell, Record, Records, plain, starting_point
from tacit.studies.study import LIMITS, Plan, Study, StudyError, find_study, plan_of

Outcome = Record | str  # what was measured, or why it could not be


def measure(
    study: Study, preset: str, records: Records, wanted: Sequence[Cell], *, processes: int, force: bool, reporter: Reporter
) -> dict[Cell, str]:
    """Measures the cells of `wanted` that have no record yet, those they start from first; returns those that failed, and why.

    Raises StudyError, once the first cell has been timed, when the rest would take longer than the preset may, unless `force` is set.
    """
    plan = plan_of(study, preset)
    done, stale = records.read(plan)
    records.clear(stale)
    waiting = needed(plan, records, wanted, done)
    if not waiting:
        return {}
    reporter.message(
        f"{study.name}, {preset}: {len(plan.arms)} arms x {len(plan.seeds)} seeds, {len(waiting)} of them to measure on {processes} processes"
    )
    reporter.phase("cells", len(waiting))
    failed: dict[Cell, str] = {}
    busy: list[Cell] = []
    told, count = False, 0
    with pool(study, preset, records.folder, processes) as workers:
        while waiting or busy:
            while workers.idle and (cell := next_ready(plan, waiting, busy)) is not None:
                waiting.remove(cell)
                busy.append(cell)
                workers.start(cell)
            for cell, outcome in workers.finished():
                busy.remove(cell)
                if isinstance(outcome, str):
                    failed[cell] = outcome
                    after = following(plan, waiting, cell)
                    failed |= dict.fromkeys(after, f"{cell}, which it starts from, failed")
                    waiting[:] = [c for c in waiting if c not in after]
                    reporter.warning(f"{cell} failed: {outcome}")
                else:
                    done[cell] = outcome
                    reporter.message(f"{cell}: {outcome.seconds:.0f} s")
                reporter.step(count, {})
                count += 1
            if not told and done and waiting:
                left = forecast(plan, done, [*waiting, *busy], processes)
                reporter.message(f"the rest will take about {duration(left)}")
                if left > LIMITS[preset] and not force:
                    raise StudyError(
                        f"the {preset} preset of {study.name} would take {duration(left)} here and may take {duration(LIMITS[preset])}; "
                        "share the seeds out over machines with --seed and --collect, or run it all the same with --force"
                    )
                told = True
    return failed


def needed(plan: Plan, records: Records, wanted: Sequence[Cell], done: Mapping[Cell, Record]) -> list[Cell]:
    """The cells of `wanted` without a record, after those that they start from where their folder is not here."""
    missing: list[Cell] = []

    def add(cell: Cell) -> None:
        start = starting_point(plan.arm(cell.arm), cell.seed)
        if start is not None and not (start in done and records.work(start).is_dir()):
            add(start)
        if cell not in missing:
            missing.append(cell)

    for cell in wanted:
        if cell not in done:
            add(cell)
    return missing


def following(plan: Plan, waiting: Sequence[Cell], cell: Cell) -> list[Cell]:
    """The cells of `waiting` that start from this one, and those that start from them."""
    found = [c for c in waiting if starting_point(plan.arm(c.arm), c.seed) == cell]
    return found + [later for one in found for later in following(plan, waiting, one)]


def next_ready(plan: Plan, waiting: Sequence[Cell], busy: Sequence[Cell]) -> Cell | None:
    """The first cell whose starting point is done."""
    open_ = {*waiting, *busy}
    return next((cell for cell in waiting if starting_point(plan.arm(cell.arm), cell.seed) not in open_), None)


def forecast(plan: Plan, done: Mapping[Cell, Record], left: Sequence[Cell], processes: int) -> float:
    """Seconds: arms that were measured take what they took, the others what their cost says."""
    rate = median(record.seconds / plan.arm(cell.arm).cost for cell, record in done.items())
    known = {arm.name: [r.seconds for c, r in done.items() if c.arm == arm.name] for arm in plan.arms}
    return sum(median(known[cell.arm]) if known[cell.arm] else rate * plan.arm(cell.arm).cost for cell in left) / max(1, processes)


def measure_cell(study: Study, plan: Plan, records: Records, cell: Cell) -> Record:
    """Measures one cell in this process and writes its record."""
    arm, begun = plan.arm(cell.arm), time.monotonic()
    start = starting_point(arm, cell.seed)
    measured = study.measure(arm, cell.seed, records.work(cell), records.work(start) if start else None)
    record = Record(cell, plain(arm.settings), measured, time.monotonic() - begun, machine())
    records.write(record)
    return record


# --- processes ---


class Here:
    """A worker that is this process: for tests, and for stepping through with a debugger."""

    def __init__(self, study: Study, preset: str, folder: Path):
        self.study, self.plan, self.records = study, plan_of(study, preset), Records(folder)
        self.cell: Cell | None = None

    @property
    def idle(self) -> bool:
        return self.cell is None

    def start(self, cell: Cell) -> None:
        self.cell = cell

    def finished(self) -> list[tuple[Cell, Outcome]]:
        assert self.cell is not None
        cell, self.cell = self.cell, None
        return [(cell, attempt(self.study, self.plan, self.records, cell))]


class Workers:
    """`count` processes that measure a cell at a time. One that dies is replaced, its cell has failed."""

    def __init__(self, study: Study, preset: str, folder: Path, count: int):
        self.made = (study.name, preset, str(folder))
        self.free: list[tuple[BaseProcess, Any]] = [self._new() for _ in range(count)]
        self.busy: dict[Any, tuple[BaseProcess, Cell]] = {}

    def _new(self) -> tuple[BaseProcess, Any]:
        context = get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, *self.made), daemon=True)
        process.start()
        theirs.close()
        return process, mine

    @property
    def idle(self) -> bool:
        return bool(self.free)

    def start(self, cell: Cell) -> None:
        process, connection = self.free.pop()
        connection.send(cell)
        self.busy[connection] = (process, cell)

    def finished(self) -> list[tuple[Cell, Outcome]]:
        """Waits until at least one cell is done."""
        found: list[tuple[Cell, Outcome]] = []
        done: list[Any] = wait(list(self.busy))
        for connection in done:
            process, cell = self.busy.pop(connection)
            try:
                found.append((cell, connection.recv()))
                self.free.append((process, connection))
            except EOFError:
                process.join()
                found.append((cell, f"its process died with exit code {process.exitcode}"))
                self.free.append(self._new())
        return found

    def close(self) -> None:
        for process in [p for p, _ in self.free] + [p for p, _ in self.busy.values()]:
            process.terminate()
            process.join()


@contextmanager
def pool(study: Study, preset: str, folder: Path, processes: int) -> Iterator[Here | Workers]:
    if processes == 0:
        yield Here(study, preset, folder)
        return
    workers = Workers(study, preset, folder, processes)
    try:
        yield workers
    finally:
        workers.close()


def attempt(study: Study, plan: Plan, records: Records, cell: Cell) -> Outcome:
    """The record, or the failure in one line: one cell that cannot be measured does not end a study."""
    try:
        return measure_cell(study, plan, records, cell)
    except Exception as error:  # noqa: BLE001 - told, and listed among what is missing
        log = records.path(cell).with_suffix(".error.txt")  # not in the cell's own folder: the next attempt goes on with what is there
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {error} (the traceback is in {log})"


def serve(connection: Any, name: str, preset: str, folder: str) -> None:
    """The life of a worker: a cell at a time, on one thread, until the study ends or its process is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group of processes; the first one decides
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    study = find_study(name)
    plan, records = plan_of(study, preset), Records(Path(folder))
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        connection.send(attempt(study, plan, records, cell))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def environments(records: Mapping[Cell, Record]) -> dict[str, Any]:
    """What the records have in common and, where they differ, every value with the number of its records."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in records.values() for key in record.environment):
        counts: dict[str, int] = {}
        for record in records.values():
            value = str(record.environment.get(key))
            counts[value] = counts.get(value, 0) + 1
        merged[key] = next(iter(counts)) if len(counts) == 1 else counts
    return merged
