"""The command line. Heavy imports wait until a command needs them, so that help and mistakes are instant."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tacit import completion
from tacit.retrieval import commands as retrieval
from tacit.routing import commands as routing
from tacit.studies.study import NAMES as STUDIES

if TYPE_CHECKING:
    from tacit.core.progress import Reporter

WRONG_INPUT, INTERRUPTED = 2, 130
EXIT_CODES = "Exit codes: 0 done · 1 unexpected error · 2 wrong input, told in one sentence · 130 stopped by Ctrl-C."

CHANGES = "Changes to the recipe, such as algorithm.clip_low=0.1."
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=CHANGES, show_default=False, autocompletion=completion.overrides)
]

app = typer.Typer(
    help="Train language models with verifiable rewards, and look at what came of it.",
    epilog=EXIT_CODES + " TACIT_DEBUG=1 shows the traceback of every error.",
    no_args_is_help=True,
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
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the output folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, take one small step, write nothing.")] = False,
    replay_step: Annotated[
        int | None, typer.Option(metavar="N", help="Learn from step N of the run again, from its dump, and compare. Writes nothing.")
    ] = None,
) -> None:
    """Run a training job: reinforcement learning (kind: rl), supervised fine-tuning (sft, wmss), or an encoder of papers (retrieval)."""
    with errors_in_one_sentence():
        from tacit.config import load, load_job

        if replay_step is not None:
            from tacit import replay

            config = load(recipe, overrides or [])
            for line in replay.lines(replay.replay(config, replay_step)):
                print(line)
            return
        config = load_job(recipe, overrides or [])
        reporter = make_reporter()
        try:
            from tacit.processes import companions

            flags = [flag for flag, given in {"--resume": resume, "--dry-run": dry_run}.items() if given]
            with companions(config.runtime.processes, ["train", str(recipe), *(overrides or []), *flags]):
                job = import_module("tacit.retrieval.job" if config.kind == "retrieval" else "tacit.job")
                job.run(config, resume=resume, dry_run=dry_run, reporter=reporter)
                reporter.close()
                if not dry_run and is_first_rank():
                    tell_outcome(Path(config.output))  # while the other processes end
        except KeyboardInterrupt:
            reporter.close()
            if is_first_rank():
                flags = ["--resume"] if Path(config.output).exists() else []
                again = shlex.join(["tacit", "train", str(recipe), *(overrides or []), *flags])
                print(f"Stopped. Continue with: {again}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            reporter.close()


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
    """Write one self-contained HTML page about a run or an evaluation, or comparing several runs."""
    with errors_in_one_sentence():
        from tacit.report import ReportError, verdicts, write_report
        from tacit.report.evaluation import result_in

        evaluations = {run: found for run in runs if (found := result_in(run)) is not None}
        if evaluations and len(runs) > 1:
            raise ReportError(f"{next(iter(evaluations))} holds an evaluation; ask for the report of each on its own")
        if evaluations:
            tell_evaluation(evaluations[runs[0]], runs[0], output)
            return
        page = write_report(runs, output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html")))
        for line in verdicts(runs):
            print(line)
        print(f"Report: {page}")


@app.command("eval", epilog=EXIT_CODES)
def evaluate(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="[RUN_OR_MODEL]", help="Folder of a run or a model, or a hub id.", show_default=False)
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task, .jsonl file, file.py:Class, or '{name: ..., options: {...}}'; repeat it for several.", show_default="the run's"),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible endpoint to ask instead, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model at the endpoint.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="Completions per prompt.")] = 1,
    k: Annotated[str | None, typer.Option(metavar="K,K...", help="Which pass@k and maj@k.", show_default="1 and the samples")] = None,
    prompts: Annotated[int | None, typer.Option(help="Held-out prompts of each task.", show_default="up to 512")] = None,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Limit of a completion.", show_default="the run's, else 512")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends a completion; repeat it for several.", show_default="the run's")] = None,
    reward: Annotated[str | None, typer.Option(help="file.py:function instead of the task's own verifier.", show_default="the run's")] = None,
    sandbox: Annotated[
        str | None, typer.Option(help="unsafe: run programs of the model where they cannot be isolated.", show_default="the run's, else required")
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Chat messages, or plain text.", show_default="the run's, else chat at endpoints")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of a chat.", show_default="the run's")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float64: of the weights.", show_default="the run's, else float32")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the evaluation.", show_default="runs/eval-...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Ask for what is missing in the output folder.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: ask again where no answer came.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    key_env: Annotated[str | None, typer.Option(metavar="NAME", help="Environment variable with the API key.", show_default="OPENAI_API_KEY")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Tries of a request after the first.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a try may take.")] = 300.0,
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="Price of a million prompt and completion tokens.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps replies of the endpoint for other evaluations.")] = None,
    request: Annotated[str | None, typer.Option(metavar="YAML", help="Further fields of a request, such as '{reasoning_effort: low}'.")] = None,
) -> None:
    """Measure a run, a model or an endpoint on held-out prompts: pass@k, maj@k and avg@n with intervals."""
    with errors_in_one_sentence():
        asked = {name: value for name, value in context.params.items() if value not in (None, [], ())}
        reporter, plan = make_reporter(), None
        try:
            from tacit.evaluation import front

            plan = front.plan(asked)
            result = front.run(plan, asked, resume=resume, retry_failed=retry_failed, reporter=reporter)
        except KeyboardInterrupt:
            reporter.close()
            begun = plan is not None and plan.output.exists()
            print(f"Stopped. Continue with: {same_command(context, '--resume' if begun else None)}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            reporter.close()
        tell_evaluation(result, plan.output)
        if any(failure["what"] == "no answer" for failure in result["failures"]):
            print(f"Ask again for what got no answer with: {same_command(context, '--resume', '--retry-failed')}")


def tell_evaluation(result: dict[str, Any], folder: Path, page: Path | None = None) -> None:
    """What was measured, and a page about it."""
    from rich.console import Console

    from tacit.report.evaluation import lines, terminal, write_page

    console = Console()
    console.print(terminal(result), soft_wrap=not console.is_terminal)
    for line in lines(result):
        print(line)
    print(f"Report: {write_page(result, folder / 'items.jsonl', page or folder / 'report.html')}")


def same_command(context: typer.Context, *flags: str | None) -> str:
    """What was typed, as one line for a shell, with further flags."""
    words = ["tacit", str(context.info_name)]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name or ""]
        for one in value if isinstance(value, list) else [value]:
            if parameter.param_type_name == "argument":
                words.append(str(one))
            elif isinstance(one, bool):
                words.append(parameter.opts[0] if one else parameter.secondary_opts[0])
            else:
                words += [parameter.opts[0], str(one)]
    return shlex.join([*words, *(flag for flag in flags if flag and flag not in words)])


@app.command(epilog=EXIT_CODES)
def sample(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Folder of a run or a model, or a hub id.", show_default=False)],
    prompt: Annotated[list[str], typer.Option(help="Text to go on from; repeat it for several.", show_default=False)],
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Completions per prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Limit of a completion.", show_default="the run's, else 512")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends a completion; repeat it for several.", show_default="the run's")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template, or do not.", show_default="the run's, else not")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of a chat.", show_default="the run's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float64: of the weights.", show_default="the run's, else float32")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a completion, with the log-prob of every token.")] = False,
) -> None:
    """Print completions of a run or a model, with their log-probs."""
    with errors_in_one_sentence():
        from tacit.evaluation import front

        settings = {"max_new_tokens": max_new_tokens, "stop": stop, "chat": chat, "system": system, "dtype": dtype}
        asked = {name: value for name, value in settings.items() if value not in (None, [], ())}
        how = {"temperature": temperature, "top_p": top_p, "seed": seed, "device": device}
        for line in front.samples(source, prompt, samples, asked, as_json=as_json, **how):
            print(line)


@app.command("export", epilog=EXIT_CODES)
def export_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.", show_default="RUN/export")] = None,
    step: Annotated[int | None, typer.Option(help="A policy that the run kept on the way (keep: every).", show_default="the last or best")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The LoRA adapter alone, for peft.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="that of the run")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the output folder.")] = False,
) -> None:
    """Write the policy of a run as a folder that transformers and vLLM load, with a model card."""
    with errors_in_one_sentence():
        from tacit.export import export
        from tacit.mistakes import choice

        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(choice("--dtype", dtype, ["float32", "bfloat16", "float16"]))
        print(f"Exported: {export(run, output, step=step, adapter=adapter, dtype=dtype, force=force)}")


@app.command(epilog=EXIT_CODES)
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(STUDIES)}.", show_default=False, autocompletion=lambda: list(STUDIES))],
    preset: Annotated[str, typer.Option(help="tiny, smoke, core, full, or calibrate (on seeds that are never reported).")] = "core",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the records.", show_default="runs/study-NAME-PRESET")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Measure only this arm; repeat it for several.", show_default="all")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Measure only this seed; repeat it for several.", show_default="all")] = None,
    collect: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="Take over records measured elsewhere; repeatable.")] = None,
    processes: Annotated[int | None, typer.Option(min=0, help="0: none but this one.", show_default="one a processor")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on where the preset would take longer than it may.")] = False,
    judge_only: Annotated[bool, typer.Option("--judge-only", help="Measure nothing; judge the records that are there.")] = False,
) -> None:
    """Run a study: arms over paired seeds, honest controls, a verdict for each claim. Stopped or killed, the same command goes on."""
    with errors_in_one_sentence():
        from tacit.studies.commands import run_study
        from tacit.studies.result import lines

        folder = output or Path("runs") / f"study-{name}-{preset}"
        which: dict[str, Any] = {"arms": arm or (), "seeds": seed or (), "collect": collect or (), "processes": processes}
        reporter = make_reporter()
        try:
            found = run_study(name, preset, folder, **which, force=force, measure_missing=not judge_only, reporter=reporter)
        except KeyboardInterrupt:
            reporter.close()
            print("Stopped; what was measured is kept. The same command goes on.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            reporter.close()
        for line in lines(found):
            print(line)
        print(f"Result: {folder / 'result.json'}\nReport: {folder / 'report.html'}")


@app.command(epilog=EXIT_CODES)
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="YAML file of a run to look into; without one, the machine.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what is there: versions, devices, data sets, guards; or whether a recipe will run here, and in how much memory. 2: something is wrong."""
    with errors_in_one_sentence():
        if recipe is None:
            from tacit.doctor import findings

            for what, how in findings():
                print(f"{what + ':':<34}{how}")
            return
        from tacit.config import load

        config = load(recipe, overrides or [])
        from tacit.checkup import Checkup

        checkup = Checkup(config)
        for finding in checkup.findings():
            print(f"{finding.what + ':':<34}{'WRONG: ' if finding.wrong else ''}{finding.how}", flush=True)
        if not checkup.sound:
            raise typer.Exit(WRONG_INPUT)


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


def write_search(found: Mapping[str, Any], page: Path) -> Path:
    from tacit.report.search import write_page

    return write_page(found, page)


routing.add_to(app, errors_in_one_sentence)
retrieval.add_to(app, errors_in_one_sentence, make_reporter, write_search)
