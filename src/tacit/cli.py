"""The command line. Heavy imports wait until a command needs them, so that help and mistakes are instant."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tacit.core.progress import Reporter

WRONG_INPUT, INTERRUPTED = 2, 130
EXIT_CODES = "Exit codes: 0 done · 1 unexpected error · 2 wrong input, told in one sentence · 130 stopped by Ctrl-C."

app = typer.Typer(
    help="Train language models with verifiable rewards, and look at what came of it.",
    epilog=EXIT_CODES + " TACIT_DEBUG=1 shows the traceback of every error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from tacit import __version__

        print(f"tacit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None: ...


@app.command(epilog=EXIT_CODES)
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as algorithm.clip_low=0.1.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the output folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, take one small step, write nothing.")] = False,
) -> None:
    """Run a training job: reinforcement learning (kind: rl) or supervised fine-tuning (kind: sft)."""
    with errors_in_one_sentence():
        from tacit.config import load

        config = load(recipe, overrides or [])
        reporter = make_reporter()
        try:
            from tacit.job import run

            run(config, resume=resume, dry_run=dry_run, reporter=reporter)
        except KeyboardInterrupt:
            reporter.close()
            if is_first_rank():
                flags = ["--resume"] if Path(config.output).exists() else []
                again = shlex.join(["tacit", "train", str(recipe), *(overrides or []), *flags])
                print(f"Stopped. Continue with: {again}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            reporter.close()
        if not dry_run and is_first_rank():
            tell_outcome(Path(config.output))


def tell_outcome(run: Path) -> None:
    """What came of a run, and its report where plotly is installed."""
    from tacit.report import ReportError, verdicts, write_report

    for line in verdicts([run]):
        print(line)
    try:
        print(f"Report: {write_report([run], run / 'report.html')}")
    except ReportError as error:
        print(f"Done. No report was written: {error}")


@app.command(epilog=EXIT_CODES)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; several are compared.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write. Default: report.html, in the run if it is one.", show_default=False)
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run, or comparing several."""
    with errors_in_one_sentence():
        from tacit.report import verdicts, write_report

        page = write_report(runs, output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html")))
        for line in verdicts(runs):
            print(line)
        print(f"Report: {page}")


def make_reporter() -> Reporter:
    """Live on a terminal, lines elsewhere; with several processes only the first one speaks."""
    from rich.console import Console

    from tacit.core.progress import PlainReporter, SilentReporter

    if not is_first_rank():
        return SilentReporter()
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        return PlainReporter()
    from tacit.report.live import LiveReporter

    return LiveReporter(console)


def is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """Errors written for users become their sentence on stderr and exit code 2; any other keeps its traceback and gives 1."""
    try:
        yield
    except Exception as error:
        if os.environ.get("TACIT_DEBUG") or not is_for_users(error):
            raise
        print(sentence(error), file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None


def is_for_users(error: Exception) -> bool:
    """What files do, what a checkpoint says, and ValueErrors that tacit itself raised: one from deeper down is a bug to be traced."""
    checkpoint = sys.modules.get("tacit.core.checkpoint")  # its error can only come from it when it is loaded, and loading takes seconds
    if isinstance(error, OSError) or (checkpoint is not None and isinstance(error, checkpoint.CheckpointError)):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and frame.f_globals.get("__name__", "").split(".")[0] == "tacit"


def sentence(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror[:1].lower()}{error.strerror[1:]}"
