"""The command line, with runners that are stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import tacit.cli
from tacit.config import RLConfig, SFTConfig
from tacit.core.progress import PlainReporter, Reporter, SilentReporter

SOURCE = str(Path(tacit.cli.__file__).parents[1])
RL = "kind: rl\noutput: out\ntask: {name: sorting}\nmodel: {tiny: {}}\n"
SFT = RL.replace("rl", "sft", 1)


class Runs:
    """Stands in for tacit.job, keeps what it was called with, and does what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, bool, bool, Reporter]] = []
        self.act: Callable[[Reporter], None] = lambda reporter: None

    def run(self, config: Any, *, resume: bool, dry_run: bool, reporter: Reporter) -> None:
        self.calls.append((config, resume, dry_run, reporter))
        self.act(reporter)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    Path("rl.yaml").write_text(RL)
    Path("sft.yaml").write_text(SFT)
    stand_in, job = Runs(), ModuleType("tacit.job")
    job.run = stand_in.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tacit.job", job)
    return stand_in


def write_run(folder: str) -> None:
    Path(folder).mkdir()
    Path(folder, "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')


def tacit_(*arguments: str) -> Any:
    return CliRunner().invoke(tacit.cli.app, list(arguments))


def raised_by_tacit(error: Exception) -> Callable[[Reporter], None]:
    """An action whose error comes from code of the package, as far as its traceback tells."""
    space: dict[str, Any] = {"__name__": "tacit.somewhere", "error": error}
    exec("def act(reporter):\n    raise error", space)
    return space["act"]


def test_train_hands_over_config_and_wishes(runs: Runs) -> None:
    assert tacit_("train", "rl.yaml", "steps=5", "--dry-run", "algorithm.clip_low=0.1").output == ""
    assert tacit_("train", "sft.yaml", "--dry-run", "--resume").output == ""
    (config, resume, dry_run, reporter), (other_config, other_resume, _, _) = runs.calls
    assert isinstance(config, RLConfig)
    assert (config.steps, config.algorithm.clip_low, resume, dry_run) == (5, 0.1, False, True)
    assert isinstance(reporter, PlainReporter)
    assert isinstance(other_config, SFTConfig)
    assert other_resume


def test_train_ends_with_the_verdict_and_a_report(runs: Runs) -> None:
    pytest.importorskip("plotly")
    runs.act = lambda reporter: write_run("out")
    result = tacit_("train", "rl.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "out: No verdict yet. There is no result.json with an evaluation yet. Last reward: 0.500.",
        "Report: out/report.html",
    ]
    assert Path("out/report.html").exists()


def test_train_ends_well_without_plotly(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    runs.act = lambda reporter: write_run("out")
    result = tacit_("train", "rl.yaml")
    assert result.exit_code == 0
    assert "No report was written: a report needs plotly" in result.stdout
    assert "pip install 'tacit[report]'" in result.stdout


def test_progress_is_plain_lines_when_the_output_is_no_terminal(runs: Runs) -> None:
    def act(reporter: Reporter) -> None:
        reporter.phase("train", 1)
        reporter.step(0, {"reward/mean": 0.25})

    runs.act = act
    assert tacit_("train", "rl.yaml", "--dry-run").stdout.splitlines() == ["train: 1 steps", "train 1/1 · reward 0.250"]


def test_a_terminal_gets_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert type(tacit.cli.make_reporter()).__name__ == "LiveReporter"
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(tacit.cli.make_reporter(), PlainReporter)


def test_only_the_first_of_several_processes_speaks(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert tacit_("train", "rl.yaml").output == ""
    assert isinstance(runs.calls[0][-1], SilentReporter)


def test_a_mistake_in_the_recipe_is_one_sentence_and_exit_code_2(runs: Runs) -> None:
    result = tacit_("train", "rl.yaml", "algorithm.clip_lo=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "override 'algorithm.clip_lo=1': unknown key 'algorithm.clip_lo'; did you mean 'algorithm.clip_low'?\n"
    assert not runs.calls


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("the task has no prompts; give it some"), "the task has no prompts; give it some"),
        (FileNotFoundError(2, "No such file or directory", "data.jsonl"), "data.jsonl: no such file or directory"),
        (FileNotFoundError("there is no GSM8K here; set TACIT_DATA"), "there is no GSM8K here; set TACIT_DATA"),
        (OSError(28, "No space left on device"), "no space left on device"),
    ],
)
def test_errors_written_for_users_are_one_sentence(runs: Runs, error: Exception, sentence: str) -> None:
    runs.act = raised_by_tacit(error)
    result = tacit_("train", "rl.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", sentence + "\n")


def test_a_checkpoint_error_is_one_sentence(runs: Runs) -> None:
    checkpoint = pytest.importorskip("tacit.core.checkpoint")
    runs.act = raised_by_tacit(checkpoint.CheckpointError("no space left for the checkpoint"))
    result = tacit_("train", "rl.yaml")
    assert (result.exit_code, result.stderr) == (2, "no space left for the checkpoint\n")


@pytest.mark.parametrize("error", [ValueError("not enough values to unpack"), RuntimeError("shapes do not match")])
def test_an_unexpected_error_keeps_its_traceback_and_gives_1(runs: Runs, error: Exception) -> None:
    def elsewhere(reporter: Reporter) -> None:
        raise error

    runs.act = elsewhere
    result = tacit_("train", "rl.yaml")
    assert (result.exit_code, result.exception) == (1, error)


def test_the_traceback_of_a_sentence_can_be_asked_for(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_DEBUG", "1")
    runs.act = raised_by_tacit(error := ValueError("the task has no prompts"))
    assert tacit_("train", "rl.yaml").exception is error


def interrupt(reporter: Reporter) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_prints_how_to_go_on_and_gives_130(runs: Runs) -> None:
    def act(reporter: Reporter) -> None:
        Path("out").mkdir()
        raise KeyboardInterrupt

    runs.act = act
    result = tacit_("train", "rl.yaml", "steps=5", "sampling.stop=[a b]")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "Stopped. Continue with: tacit train rl.yaml steps=5 'sampling.stop=[a b]' --resume\n"


def test_ctrl_c_before_anything_was_written_leaves_nothing_to_resume(runs: Runs) -> None:
    runs.act = interrupt
    assert tacit_("train", "rl.yaml").stderr == "Stopped. Continue with: tacit train rl.yaml\n"


def test_a_process_that_is_not_the_first_is_stopped_silently(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    runs.act = interrupt
    result = tacit_("train", "rl.yaml")
    assert (result.exit_code, result.output) == (130, "")


def test_report_writes_a_page_prints_the_verdict_and_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(name)
    result = tacit_("report", "a")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, f"Report: {Path('a/report.html')}")
    assert result.stdout.startswith("a: No verdict yet.")
    assert Path("a/report.html").exists()
    assert tacit_("report", "a", "b").stdout.splitlines()[-1] == "Report: report.html"
    assert tacit_("report", "a", "-o", "deep/page.html").exit_code == 0
    assert Path("deep/page.html").exists()


def test_report_on_something_else_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = tacit_("report", "nowhere")
    assert (result.exit_code, result.stderr) == (2, "nowhere: there is no such folder; give the output folder of a run\n")


@pytest.mark.parametrize("arguments", [["train"], ["report"], ["trian", "x"], ["train", "rl.yaml", "--dryrun"]])
def test_wrong_usage_gives_2(arguments: list[str]) -> None:
    assert tacit_(*arguments).exit_code == 2


def test_help_lists_commands_and_exit_codes() -> None:
    text = " ".join(tacit_("--help").stdout.split())
    for words in ("train", "report", "Exit codes: 0 done", "130 stopped by Ctrl-C", "TACIT_DEBUG=1"):
        assert words in text
    assert "Exit codes" in tacit_("train", "--help").stdout


def test_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tacit, "__version__", "1.2.3")
    assert tacit_("--version").stdout == "tacit 1.2.3\n"


def process(*arguments: str, code: str | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """A fresh interpreter, and the CPU seconds it took: what a user waits for on a machine that is not busy with tests."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "tacit"]), *arguments]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"})
    after = os.times()
    return done, after.children_user + after.children_system - before.children_user - before.children_system


def test_help_and_mistakes_are_instant(tmp_path: Path) -> None:
    done, seconds = process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 1.0
    done, seconds = process("train", str(tmp_path / "missing.yaml"))
    assert (done.returncode, done.stderr) == (2, f"{tmp_path}/missing.yaml: there is no such file\n")
    assert seconds < 1.5


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys\nfrom tacit.cli import app\n"
        "try:\n    app(['--help'])\nfinally:\n    assert not {'torch', 'numpy', 'transformers', 'pydantic', 'plotly'} & set(sys.modules)"
    )
    done, _ = process(code=code)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_common_shell_gets_completion() -> None:
    for shell in ("bash", "zsh", "fish"):
        done, _ = process(
            "--show-completion", code=f"import sys\nsys.argv[0] = 'tacit'\nfrom tacit.cli import app\napp(['--show-completion', '{shell}'])"
        )
        assert done.returncode == 0, done.stderr
        assert "TACIT_COMPLETE" in done.stdout
    environment = os.environ | {"PYTHONPATH": SOURCE, "_TACIT_COMPLETE": "complete_bash", "COMP_WORDS": "tacit tr", "COMP_CWORD": "1"}
    code = "from tacit.cli import app\napp(prog_name='tacit')"
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.split() == ["train"]
