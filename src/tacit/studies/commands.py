"""`tacit study`: plan, measure what is missing, judge, write result.json and a page. Heavy imports wait until it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tacit.core.progress import Reporter


def run_study(
    name: str,
    preset: str,
    folder: Path,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    collect: Sequence[Path] = (),
    processes: int | None = None,
    force: bool = False,
    measure_missing: bool = True,
    reporter: Reporter,
) -> dict[str, Any]:
    """Measures what `folder` lacks of the preset, or only of these `arms` and `seeds`; judges all that is there.

    Returns the content of result.json.
    """
    from tacit.core.processors import usable_processors
    from tacit.core.rundir import write_json
    from tacit.studies import runner
    from tacit.studies.page import write_page
    from tacit.studies.records import Records, cells
    from tacit.studies.result import by_arm, result
    from tacit.studies.study import find_study, plan_of

    study = find_study(name)
    plan, records = plan_of(study, preset), Records(folder)
    wanted = [cell for cell in cells(plan) if (not arms or cell.arm in arms) and (not seeds or cell.seed in seeds)]
    check(arms, [arm.name for arm in plan.arms], "--arm", f"{name}, {preset}")
    check(seeds, list(plan.seeds), "--seed", f"{name}, {preset}")
    with records.held():
        if copied := records.collect(collect, plan):
            reporter.message(f"{copied} records were collected")
        failed = {}
        if measure_missing:
            processes = usable_processors() if processes is None else processes
            failed = runner.measure(study, preset, records, wanted, processes=processes, force=force, reporter=reporter)
        done, _ = records.read(plan)
        found = result(study, preset, plan, done, failed)
        write_json(folder / "result.json", found)
        write_page(found, study.about, by_arm(plan, done), folder / "report.html")
    return found


def check(given: Sequence[object], there: Sequence[object], option: str, where: str) -> None:
    from tacit.mistakes import choice
    from tacit.studies.study import StudyError

    for one in given:
        if one not in there:
            raise StudyError(choice(f"{option} of {where}", one, [str(name) for name in there]))
