"""kill -9 and Ctrl-C while `tacit search` writes and while an encoder is trained: nothing is broken, and what goes on ends with the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tacit.cli import app
from tacit.retrieval.commands import answered
from tacit.retrieval.search import Searcher
from tacit.retrieval.training import last_checkpoint

# Commands one after another, each forked from a process that has imported everything and computed nothing, so that it starts at once. A function
# that is a mark tells when it is called: a signal that follows it lands while that is under way.
SERVER = """
import functools, importlib, json, os, signal, sys
import torch
torch.set_num_threads(1)
import tacit.report, tacit.retrieval.index, tacit.retrieval.job
from tacit.cli import app

def mark(place, told):
    module, _, path = place.partition(":")
    *classes, name = path.split(".")
    owner = functools.reduce(getattr, classes, importlib.import_module(module))
    plain = getattr(owner, name)
    def call(*args, **kwargs):
        os.write(told, f"{place}\\n".encode())
        return plain(*args, **kwargs)
    setattr(owner, name, call)

for line in sys.stdin:
    words, marks, folder, terminal = json.loads(line)
    child = os.fork()
    if child == 0:
        told, file = os.dup(1), os.open(terminal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests were started with Ctrl-C ignored
        for place in marks:
            mark(place, told)
        try:
            app(words)
        except SystemExit as end:
            sys.stdout.flush()
            os.write(told, b"done\\n")
            os._exit(end.code or 0)
    print(child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
ADD, ENCODE = "tacit.retrieval.index:add", "tacit.retrieval.index:encode"
PUBLISH, SWEEP = "tacit.retrieval.store:Store.publish", "tacit.retrieval.store:Store._sweep"
PREPARE, STEP = "tacit.retrieval.job:prepare", "tacit.retrieval.losses:FacetLoss.forward"
SAVE, HALF_SAVED, SAVED = (
    f"transformers.trainer:{name}" for name in ("Trainer._save_checkpoint", "Trainer._save_optimizer_and_scheduler", "rotate_checkpoints")
)
DONE = "done"  # all but the end of the process, which takes its time
INTERRUPTED = 130


class Signal(NamedTuple):
    """What is sent, how many seconds after which call of a mark."""

    mark: str
    call: int = 1
    after: float = 0.0
    number: int = signal.SIGKILL


class Commands:
    """`said`: what the last command wrote on its terminal. `calls`: after how many seconds each mark was called, and it was done."""

    def __init__(self, terminal: Path):
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.terminal, self.said = terminal, ""
        self.calls: dict[str, list[float]] = {}

    def run(self, *words: str, marks: Sequence[str] = (), signals: Sequence[Signal] = ()) -> int:
        """Runs `tacit WORDS`. The exit code, -9 of one that was killed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        places = list(dict.fromkeys([*marks, *(s.mark for s in signals)]))
        self.calls = {mark: [] for mark in (*places, DONE)}
        print(json.dumps([words, places, os.getcwd(), str(self.terminal)]), file=self.process.stdin, flush=True)
        child, began = int(self.process.stdout.readline()), time.perf_counter()
        while not (line := self.process.stdout.readline().strip()).startswith("ended"):
            self.calls[line].append(time.perf_counter() - began)
            for found in [s for s in signals if (s.mark, s.call) == (line, len(self.calls[line]))]:
                time.sleep(found.after)
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.kill(child, found.number)
        self.said = self.terminal.read_text()
        return int(line.split()[1])


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("terminal") / "said")
    yield commands
    assert commands.process.stdin is not None
    commands.process.stdin.close()
    commands.process.wait()


@pytest.fixture(autouse=True)
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    """Two folders of papers of eight subjects with words of their own, labelled sentences, and a recipe for a base that knows nothing yet."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    subjects = [["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3)) for _ in range(12)] for _ in range(8)]
    starts = {"background": "Little is known about the", "method": "We propose to use", "result": "Experiments show that the"}

    def sentences(n: int) -> list[str]:
        return [f"{start} {' '.join(rng.sample(subjects[n % 8], 5))}." for start in starts.values()]

    for folder, numbers in (("papers", range(60)), ("more", range(40, 100))):  # some are changed, some are new
        Path(folder).mkdir()
        for n in numbers:
            Path(f"{folder}/{n}.md").write_text(f"# On {' '.join(rng.sample(subjects[n % 8], 3))}\n\n{' '.join(sentences(n))}\n")
    Path("roles.jsonl").write_text("\n".join(json.dumps({"sentences": sentences(n), "labels": list(starts)}) for n in range(12)))
    Path("r.yaml").write_text(
        f"kind: retrieval\ncorpus: [papers]\nroles: [roles.jsonl]\nbase: {{path: {bert.parent / 'base'}}}\nmodel: {{length: 64, pooled: mean}}\n"
        "learning_rate: 3e-3\nhead_learning_rate: 1e-2\nsteps: 24\nbatch_size: 8\ncheckpoint: {every: 4}\nevaluation: {documents: 12}\noutput: run\n"
    )


# --- an index ---

ASKED = (("experiments show that it helps",), (None, "50.md"))
BY_FACET = (("we propose to use a network", None, "method"), (None, "50.md", "result"))


def answers(folder: str) -> list[Any]:
    """Everything that `tacit search query` tells of the papers that it finds."""
    searcher = Searcher.open(folder)
    faceted = searcher.contents.dense is not None
    return [answered(searcher, searcher.query(*asked), 10, None, by_meaning=faceted) for asked in (*ASKED, *(BY_FACET if faceted else ()))]


@pytest.mark.parametrize(
    ("model", "ann", "kills"),
    [
        pytest.param(False, "flat", 3, id="words"),
        pytest.param(True, "flat", 3, id="faceted"),
        pytest.param(False, "flat", 20, id="words-20", marks=pytest.mark.slow),
        pytest.param(True, "flat", 20, id="faceted-20", marks=pytest.mark.slow),
        pytest.param(True, "hnsw", 20, id="faceted-hnsw-20", marks=pytest.mark.slow),
    ],
)
def test_a_killed_add_leaves_the_old_or_the_new_index(commands: Commands, faceted: Path, model: bool, ann: str, kills: int) -> None:
    """A third of the kills are drawn over the whole time that an add takes, a third over its end, in which it writes, a third over the end of that,
    in which it removes the old index. One counts that came after the add had begun and before it was done, as marks tell.
    Of many, some must leave the old and some the new."""
    assert commands.run("search", "index", "papers", "-i", "old", *(["--model", str(faceted), "--ann", ann] if model else [])) == 0
    shutil.copytree("old", "new")
    assert commands.run("search", "add", "more", "-i", "new", marks=(ADD, PUBLISH, SWEEP)) == 0
    lasts = {(mark, call): commands.calls[DONE][0] - commands.calls[mark][call - 1] for mark, call in ((ADD, 1), (PUBLISH, 1), (SWEEP, 2))}
    old, new = answers("old"), answers("new")
    assert all(before != after for before, after in zip(old, new, strict=True))

    rng, seen, tries = random.Random(kills), Counter[str](), 0
    shutil.copytree("old", "i")
    while seen.total() < kills or (kills == 20 and len(seen) < 2):
        tries += 1
        assert tries < 20 * kills, f"{seen.total()} adds were killed, and all left the same: {seen}"
        moment = rng.choice(list(lasts))
        code = commands.run("search", "add", "more", "-i", "i", signals=[Signal(*moment, after=rng.uniform(0, lasts[moment]))])
        found = answers("i")
        assert found in (old, new)
        if not commands.calls[DONE]:
            assert code == -signal.SIGKILL
            seen["new" if found == new else "old"] += 1
            shutil.copytree("i", "after")
            assert commands.run("search", "add", "more", "-i", "after") == 0 and answers("after") == new
            shutil.rmtree("after")
        if found == new:
            shutil.rmtree("i")
            shutil.copytree("old", "i")
    print(f"{seen.total()} adds were killed of {tries}: {dict(seen)}")


def test_ctrl_c_while_an_index_is_made_or_grows_leaves_what_was_there(commands: Commands, faceted: Path) -> None:
    stop, made = [Signal(ENCODE, number=signal.SIGINT)], ("search", "index", "papers", "-i", "i", "--model", str(faceted))
    sentence = "Stopped; i is as it was, or complete if it was just being written. The same command begins anew."
    assert commands.run(*made, signals=stop) == INTERRUPTED and commands.said.splitlines()[-1] == sentence
    assert "there is no index in i" in CliRunner().invoke(app, ["search", "query", "a", "-i", "i"]).output
    assert commands.run(*made) == 0
    for words in (("search", "add", "more", "-i", "i"), (*made, "--force")):
        before = answers("i")
        assert commands.run(*words, signals=stop) == INTERRUPTED and commands.said.splitlines()[-1] == sentence
        assert answers("i") == before
        assert commands.run(*words) == 0 and answers("i") != before


# --- a training ---


def files(run: str) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in Path(run, "model").rglob("*") if path.is_file()}


def timeless(run: str) -> list[dict[str, float]]:
    return [{k: v for k, v in json.loads(line).items() if k != "time/step"} for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def torn(run: str) -> bool:
    """Whether the newest checkpoint is not whole."""
    numbers = [int(path.name.rpartition("-")[2]) for path in Path(run, "trainer").glob("checkpoint-*")]
    whole = last_checkpoint(Path(run, "trainer"))
    return bool(numbers) and (whole is None or whole.name != f"checkpoint-{max(numbers)}")


@pytest.fixture
def whole(commands: Commands, request: pytest.FixtureRequest) -> list[str]:
    """The command whose run in the folder `whole` was left alone."""
    words = ["train", "r.yaml", *getattr(request, "param", ())]
    assert commands.run(*words, "output=whole", marks=(PREPARE, SAVE, SAVED)) == 0, commands.said
    assert json.loads(Path("whole/result.json").read_text())["step"] > 0, "the model is that before training, so equal bits say nothing"
    return words


@pytest.mark.parametrize(
    ("whole", "kills"),
    [
        pytest.param((), 1, id="best"),
        pytest.param((), 12, id="best-12", marks=pytest.mark.slow),
        pytest.param(("checkpoint.keep=1",), 12, id="best-of-one-12", marks=pytest.mark.slow),
        pytest.param(("keep=last", "base={small: {hidden: 16, vocabulary: 300}}"), 12, id="last-of-small-12", marks=pytest.mark.slow),
    ],
    indirect=["whole"],
)
def test_a_killed_training_ends_with_the_bits_of_one_that_was_left_alone(commands: Commands, whole: list[str], kills: int) -> None:
    """The first kill comes while a checkpoint is written; then half are drawn over the life of a run, half over the writing of its checkpoints."""
    rng, killed, tears, runs = random.Random(kills), 0, 0, 0
    lasts = commands.calls[DONE][0] - commands.calls[PREPARE][0]
    writes = max(end - begin for begin, end in zip(commands.calls[SAVE], commands.calls[SAVED], strict=True))

    def moment() -> Signal:
        if killed == 0:
            return Signal(HALF_SAVED, call=2)
        if rng.random() < 0.5:
            return Signal(PREPARE, after=rng.uniform(0, lasts))
        return Signal(SAVE, call=rng.randint(1, 2), after=rng.uniform(0, writes))

    while killed < kills:
        run = f"run{(runs := runs + 1)}"
        while True:  # until this run lives to its end
            again = ["--resume"] if Path(run).exists() else []
            code = commands.run(*whole, f"output={run}", *again, signals=[moment()] if killed < kills else [])
            if code == 0:
                break
            assert code == -signal.SIGKILL, commands.said
            killed, tears = killed + 1, tears + torn(run)
        assert files(run) == files("whole") and timeless(run) == timeless("whole")
    assert tears
    print(f"{killed} kills in {runs} runs; {tears} left a torn checkpoint")


def test_a_training_that_died_and_was_moved_ends_with_its_best_model(commands: Commands) -> None:
    """It dies after its last checkpoint, so that nothing is learnt any more, and the best one, here of step 20, is looked for where it now is."""
    assert commands.run("train", "r.yaml", "checkpoint.keep=9", signals=[Signal(SAVED, call=6)]) == -signal.SIGKILL
    state = Path("run/trainer/checkpoint-24/trainer_state.json")
    best = {"best_global_step": 20, "best_metric": 1.0, "best_model_checkpoint": "run/trainer/checkpoint-20"}
    state.write_text(json.dumps(json.loads(state.read_text()) | best))
    Path("run").rename("moved")
    assert commands.run("train", "r.yaml", "output=moved", "--resume") == 0 and "resumed after step 24 of 24" in commands.said
    assert json.loads(Path("moved/result.json").read_text())["step"] == 20
    kept = {step: Path(f"moved/trainer/checkpoint-{step}/model.safetensors").read_bytes() for step in (20, 24)}
    assert Path("moved/model/model.safetensors").read_bytes() == kept[20] != kept[24]


@pytest.mark.parametrize("whole", [("checkpoint.keep=1",)], indirect=True)
def test_ctrl_c_ends_the_step_and_a_second_one_stops_at_once(commands: Commands, whole: list[str]) -> None:
    """Once in step 6, which is saved; then in step 10, and again while that is saved: what is torn is not gone on from."""

    def last() -> str:
        lines = commands.said.splitlines()
        assert "stopping after this step, which will be saved; Ctrl-C again stops at once" in lines
        assert lines[-1] == "Stopped. Continue with: tacit train r.yaml checkpoint.keep=1 --resume"
        return (last_checkpoint(Path("run/trainer")) or Path()).name

    once, again, twice = (Signal(mark, call, number=signal.SIGINT) for mark, call in ((STEP, 6), (STEP, 4), (HALF_SAVED, 2)))
    assert commands.run(*whole, signals=[once]) == INTERRUPTED
    assert last() == "checkpoint-6" and not torn("run")
    assert commands.run(*whole, "--resume", signals=[again, twice]) == INTERRUPTED and "resumed after step 6 of 24" in commands.said
    assert last() == "checkpoint-8" and torn("run")
    assert commands.run(*whole, "--resume") == 0 and "resumed after step 8 of 24" in commands.said
    assert files("run") == files("whole") and timeless("run") == timeless("whole")
