"""Training an encoder as a command: what it leaves, what resumes, what a dry run does, and the sentences for what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from tacit.cli import app
from tacit.config import ConfigError, RetrievalConfig, load, load_job
from tacit.core.progress import SilentReporter
from tacit.core.runtime import Runtime
from tacit.report import verdicts, write_report
from tacit.retrieval import corpus, job, training
from tacit.retrieval.dev import Measured, known_items, measure
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.job import run
from tacit.retrieval.modules import load as load_model
from tacit.retrieval.modules import pooling_of
from tacit.retrieval.pairs import letters
from tacit.retrieval.sentences import SENTENCE_END, size
from tacit.retrieval.training import Options, Prepared, dataset, fit, last_checkpoint, renamed
from tacit.retrieval_config import FacetConfig, FacetLossConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FACETS = ("background", "method", "result")
STARTS = {"background": "little is known about the", "method": "we propose to use", "result": "experiments show that the"}
SMALL = "base: {small: {hidden: 16, vocabulary: 300, length: 64}}\nsteps: 6\nbatch_size: 8\ncheckpoint: {every: 2}\nevaluation: {documents: 8}\n"
RECIPE = f"kind: retrieval\noutput: run\ncorpus: [papers]\nroles: [roles.jsonl]\n{SMALL}"


def word(n: int) -> str:
    return "".join("bdfgklmnprst"[n // 12**k % 12] + "aeiou"[n // 5**k % 5] for k in range(3))


@pytest.fixture(autouse=True)
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 papers, each of one of eight subjects with words of its own; and 12 texts with labelled sentences. No data set is near."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TACIT_DATA", str(tmp_path / "nowhere"))
    rng = random.Random(0)
    subjects = [[word(20 * s + k) for k in range(12)] for s in range(8)]
    Path("papers").mkdir()

    def text(subject: list[str]) -> list[str]:
        return [f"{STARTS[facet].capitalize()} {' '.join(rng.sample(subject, 5))}." for facet in FACETS]

    for n in range(40):
        subject = subjects[n % 8]
        Path(f"papers/{n:02d}.md").write_text(f"# On {' '.join(rng.sample(subject, 3))}\n\n{' '.join(text(subject))}\n")
    lines = [{"sentences": text(subjects[n % 8]), "labels": list(FACETS)} for n in range(12)]
    Path("roles.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("r.yaml").write_text(RECIPE)


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    return {}


@pytest.fixture
def begun(papers: None, finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, on papers that are the same for every test."""
    if not finished:
        run(config("steps=2"))
        finished["run"] = Path(shutil.move("run", tmp_path_factory.mktemp("begun")))
    return finished["run"]


def config(*overrides: str, text: str | None = None) -> RetrievalConfig:
    if text is not None:
        Path("r.yaml").write_text(text)
    found = load_job("r.yaml", overrides)
    assert isinstance(found, RetrievalConfig)
    return found


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)

    def warning(self, text: str) -> None:
        self.told.append(f"warning: {text}")

    def step(self, index: int, metrics: Any) -> None:
        self.on_step(index, metrics)

    def on_step(self, index: int, metrics: Any) -> None: ...


def metrics(folder: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_model(f"{folder}/model", "cpu").state_dict()


def same(first: str, second: str) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what a run leaves ---


def test_a_run_leaves_a_model_that_searches_its_numbers_and_a_report() -> None:
    outcome = run(config("steps=40", "checkpoint.every=10"))
    result = outcome.result
    assert outcome.folder == Path("run") and json.loads(Path("run/result.json").read_text())["steps"] == 40
    assert result["papers"] == 32 and result["held_out_papers"] == 8 and result["labelled_texts"] == 12
    assert result["queries"] == 16 and set(result["baselines"]) == {"TF-IDF", "BM25"}
    assert result["step"] in (0, 10, 20, 30, 40)
    assert load_job("run/config.yaml").model_dump() == config("steps=40", "checkpoint.every=10").model_dump()

    lines = metrics("run")
    steps = [line["step"] for line in lines]
    assert steps[0] == 0 and [s for s, line in zip(steps, lines) if "loss/train" in line] == list(range(1, 41))
    held = {line["step"]: line["eval/map"] for line in lines if "eval/map" in line}
    assert set(held) == {0, 10, 20, 30, 40}
    assert result["measured"]["map"] == pytest.approx(max(held.values())) == pytest.approx(held[result["step"]])
    assert result["before"]["mean"] == pytest.approx(held[0])
    terms = ("pairs", "question", "intent", "roles", "orthogonality")
    assert lines[1]["loss/train"] == pytest.approx(sum(lines[1][f"loss/{term}"] for term in terms), abs=3e-4)
    roles = [line["loss/roles"] for line in lines if "loss/roles" in line]
    assert np.mean(roles[-10:]) < np.mean(roles[:10])

    again = SentenceTransformer("run/model", trust_remote_code=True, device="cpu")
    ours = load_model("run/model", "cpu")
    assert np.array_equal(again.encode_document(["On a. We propose b."]), ours.encode_document(["On a. We propose b."]))
    assert Encoder.load("run").facets == FACETS

    assert write_report([Path("run")], Path("page.html")).stat().st_size > 0
    (sentence,) = verdicts([Path("run")])
    assert "Held-out MAP" in sentence and "TF-IDF" in sentence


def test_where_training_makes_it_worse_the_run_ends_with_the_model_before_it() -> None:
    reporter = Recorder()
    wild = config("learning_rate=0.5", "head_learning_rate=0.5", "max_grad_norm=1e6", "steps=10", "checkpoint.every=5")
    outcome = run(wild, reporter=reporter)
    assert outcome.result["step"] == 0 and outcome.result["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert any("the run ends with the model before training" in told for told in reporter.told)
    material = job.prepare(wild, Path("scratch"), SilentReporter())
    before = training.start(material.prepared, job.options_of(wild, material, Runtime(device="cpu")), wild.seed).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights("run").items())


def test_the_command_trains_and_what_it_made_finds_a_paper() -> None:
    done = CliRunner().invoke(app, ["train", "r.yaml", "checkpoint.every=6"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "Held-out MAP" in done.output and "Report: run/report.html" in done.output
    done = CliRunner().invoke(app, ["search", "index", "papers", "--model", "run"])
    assert done.exit_code == 0, done.output
    title = Path("papers/03.md").read_text().splitlines()[0].removeprefix("# On ")
    done = CliRunner().invoke(app, ["search", "query", f"which work uses {title}", "--facet", "method", "-k", "5"])
    assert done.exit_code == 0 and "(03.md)" in done.output, done.output


def test_the_last_model_is_kept_where_that_is_asked_for_and_nothing_is_measured_on_the_way() -> None:
    result = run(config("keep=last")).result
    assert result["step"] == 6
    assert [line["step"] for line in metrics("run") if "eval/map" in line] == [0]


def test_questions_of_ones_own_are_learnt_from_or_held_out_with_their_papers() -> None:
    asked = [{"question": f"what of {n}", "id": f"{n:02d}.md"} for n in range(40)] + [{"question": "and what else", "answer": "Nothing. It is all."}]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    found = job.prepare(config("questions=[asked.jsonl]"), Path("scratch"), SilentReporter())
    questions = next(one for one in found.prepared.dev if one.name == "questions")
    held = {q.text for q in questions.queries if q.text.startswith("what of") or q.text == "and what else"}
    learnt = {row["question"] for row in found.prepared.rows}
    assert held and not held & learnt
    assert found.told["questions"] == 41 - len(held) and found.told["papers"] + found.told["held_out_papers"] == 41


def test_a_long_paper_is_several_documents() -> None:
    Path("papers/long.txt").write_text(" ".join(f"Sentence number {n} speaks of {word(n)} at some length." for n in range(400)))
    found = job.prepare(config(), Path("scratch"), SilentReporter())
    texts = {row[side] for row in found.prepared.rows for side in ("anchor", "positive")}
    assert max(len(text.split()) for text in texts) <= 40


@pytest.mark.parametrize(("base", "longest"), [("bert", 38), ("nowhere", 307)])
def test_passages_are_as_long_as_a_pretrained_base_reads(base: str, longest: int, bert: Path) -> None:
    """0.6 words a token: of a base that reads 64, and of one that cannot be read yet, which counts as one of 512."""
    Path("papers/long.txt").write_text(" ".join(f"Sentence number {n} speaks of {word(n)} at some length." for n in range(400)))
    found = config(f"base={{path: {bert.parent / 'base' if base == 'bert' else base}}}")
    sizes = [size(document.text) for document in corpus.own(found, SilentReporter())["long.txt"]]
    assert longest - 9 < max(sizes) <= longest


def test_what_is_held_out_is_not_learnt_from_in_another_paper_or_a_labelled_text() -> None:
    for path in sorted(Path("papers").iterdir()):
        Path(f"papers/twin of {path.name}").write_text(path.read_text().replace("# On", "# About").replace(". ", "  .. "))
    lines = Path("roles.jsonl").read_text().splitlines()
    texts = [path.read_text().splitlines()[-1] for path in sorted(Path("papers").glob("[0-9]*"))]
    lines += [json.dumps({"sentences": text.rstrip(".").split(". "), "labels": list(FACETS)}) for text in texts]
    Path("roles.jsonl").write_text("\n".join(lines))
    reporter = Recorder()
    found = job.prepare(config(), Path("scratch"), reporter)
    names = corpus.held_out(list(corpus.read(config(), SilentReporter()).papers), config())
    held = {letters(Path("papers", name).read_text().splitlines()[-1]) for name in names}
    learnt = {letters(row[column]) for row in found.prepared.rows for column in ("anchor", "positive", "negative", "answer", "labelled")}
    assert len(names) == 8 and not [one for one in learnt for text in held if text in one]
    assert found.told == {"papers": 80 - 2 * len(held), "held_out_papers": 8, "questions": 0, "labelled_texts": 52 - len(held)}
    assert f"left out, as their texts are held out: {2 * len(held) - 8} papers and {len(held)} labelled texts" in reporter.told


def test_papers_of_public_sets_that_are_held_out_are_not_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [path.read_text() for path in sorted(Path("papers").iterdir())]
    shown = [(text.splitlines()[0].removeprefix("# "), text.splitlines()[-1]) for text in texts]
    candidates = [{"corpus_id": n, "title": title, "abstract": abstract, "score": n % 2} for n, (title, abstract) in enumerate(shown[:4])]
    (tmp_path / "data/scirepeval_sample").mkdir(parents=True)
    with gzip.open(tmp_path / "data/scirepeval_sample/search.jsonl.gz", "wt") as file:
        file.write(json.dumps({"query": "what", "candidates": candidates}))
    monkeypatch.setenv("TACIT_DATA", str(tmp_path / "data"))
    labelled = {"sentences": shown[0][1].rstrip(".").split(". "), "labels": list(FACETS)}
    Path("roles.jsonl").write_text(Path("roles.jsonl").read_text() + "\n" + json.dumps(labelled))
    found = job.prepare(config("evaluation.sets=[search]"), Path("scratch"), SilentReporter())
    learnt = {letters(row[column]) for row in found.prepared.rows for column in ("anchor", "positive", "negative", "answer", "labelled")}
    assert not [one for one in learnt for _, abstract in shown[:4] if letters(abstract) in one]
    assert found.told["papers"] + found.told["held_out_papers"] in range(36, 41) and found.told["labelled_texts"] == 12


def test_without_labelled_sentences_it_trains_and_says_what_is_missing() -> None:
    reporter = Recorder()
    run(config(text=RECIPE.replace("roles: [roles.jsonl]\n", "")), reporter=reporter)
    assert any("there are no labelled sentences" in told for told in reporter.told)
    assert "loss/roles" not in metrics("run")[1] and "loss/question" in metrics("run")[1]


# --- stopping and going on ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_what_is_resumed_is_bit_for_bit_the_run_that_was_not_stopped(number: int) -> None:
    run(config("output=whole"))
    reporter = Recorder()
    reporter.on_step = lambda index, metrics: os.kill(os.getpid(), number) if index == 2 and "loss/train" in metrics else None
    with pytest.raises(KeyboardInterrupt):
        run(config(), reporter=reporter)
    stopped = max(line["step"] for line in metrics("run"))
    assert stopped in (3, 4) and not Path("run/model").exists()

    reporter = Recorder()
    result = run(config(), resume=True, reporter=reporter).result
    assert f"resumed after step {stopped} of 6" in reporter.told
    whole = json.loads(Path("whole/result.json").read_text())
    assert all(result[key] == whole[key] for key in ("before", "after", "gain", "step", "measured"))
    timeless = [[{k: v for k, v in line.items() if k != "time/step"} for line in metrics(name)] for name in ("run", "whole")]
    assert timeless[0] == timeless[1]
    assert same("run", "whole")


def test_a_run_that_died_goes_on_from_its_last_whole_checkpoint() -> None:
    run(config("keep=last", "output=whole"))

    def die(index: int, metrics: Any) -> None:
        if index == 4 and "loss/train" in metrics:
            raise RuntimeError("killed")

    reporter = Recorder()
    reporter.on_step = die
    with pytest.raises(RuntimeError, match="killed"):
        run(config("keep=last"), reporter=reporter)
    torn = Path("run/trainer/checkpoint-5")
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": ')
    found = last_checkpoint(Path("run/trainer"))
    assert found is not None and found.name == "checkpoint-4"
    run(config("keep=last"), resume=True)
    assert same("run", "whole")


def test_a_corpus_that_changed_is_not_gone_on_with() -> None:
    run(config("steps=2"))
    Path("papers/00.md").write_text("# Another\n\nWe propose another one. Experiments show that it is. Little is known.")
    with pytest.raises(ValueError, match="run was begun on another corpus, other steps or options of pairs"):
        run(config("steps=2"), resume=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("base.small.hidden=32", "base.small.hidden 16 and not 32"),
        ("base={path: x}", "base.path None and not 'x'"),
        ("model.gates=constant", "model.gates 'adaptive' and not 'constant'"),
        ("model.whole=0.9", "model.whole 0.6 and not 0.9"),
        ("loss.temperature=0.5", "loss.temperature 0.03 and not 0.5"),
        ("learning_rate=1e-6", "learning_rate 0.0003 and not 1e-06"),
        ("batch_size=4", "batch_size 8 and not 4"),
        ("mixture.title=0", "mixture.title 0.15 and not 0.0"),
        ("steps=3", "steps 2 and not 3"),
        ("seed=1", "seed 0 and not 1"),
        ("keep=last", "keep 'best' and not 'last'"),
    ],
)
def test_a_recipe_that_changed_is_not_gone_on_with(change: str, told: str, begun: Path) -> None:
    shutil.copytree(begun, "run")
    before = Path("run/config.yaml").read_text()
    with pytest.raises(ValueError, match=f"^run was begun with {told}; put that back, or choose another output$"):
        run(config("steps=2", change), resume=True)
    assert Path("run/config.yaml").read_text() == before


def test_a_run_that_moved_and_knows_a_key_less_is_gone_on_with_under_other_checkpoints(begun: Path) -> None:
    shutil.copytree(begun, "moved")
    there = yaml.safe_load(Path("moved/config.yaml").read_text())
    del there["model"]["evidence"]
    Path("moved/config.yaml").write_text(yaml.safe_dump(there))
    outcome = run(config("steps=2", "output=moved", "checkpoint.every=1"), resume=True)
    assert outcome.folder == Path("moved") and load_job("moved/config.yaml").checkpoint.every == 1


def test_before_its_first_checkpoint_a_run_begins_with_whatever_recipe(begun: Path) -> None:
    shutil.copytree(begun, "run")
    shutil.rmtree("run/trainer")
    assert run(config("steps=2", "learning_rate=1e-4"), resume=True).result["steps"] == 2
    assert metrics("run")[0]["step"] == 0


def test_a_model_takes_the_place_of_another_that_is_whole_until_then(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SentenceTransformer(str(bert), device="cpu")
    job.save(model, Path("model"))
    files = sorted(path.name for path in Path("model").iterdir())
    rename, seen = Path.rename, []

    def look() -> None:
        seen.append(any(path.is_dir() and sorted(file.name for file in path.iterdir()) == files for path in (Path("model"), Path(".model.old"))))

    def renamed(path: Path, to: Path) -> Path:
        look()
        done = rename(path, to)
        look()
        return done

    def removed(path: Path, ignore_errors: bool = False, tree: Any = shutil.rmtree) -> None:
        look()
        tree(path, ignore_errors=ignore_errors)
        look()

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    job.save(model, Path("model"))
    assert len(seen) > 4 and all(seen) and not Path(".model.old").exists() and not Path(".model.tmp").exists()


def test_a_dry_run_keeps_all_labelled_texts_whatever_their_order() -> None:
    lines = [{"sentences": [f"{STARTS[facet]} {word(n)}"], "labels": [facet]} for facet in FACETS for n in range(job.SMALL_CORPUS)]
    Path("roles.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert np.isfinite(run(config(), dry_run=True).result["metrics"]["loss/train"])


def test_a_dry_run_takes_one_step_and_writes_nothing() -> None:
    before = sorted(Path().rglob("*"))
    reporter = Recorder()
    outcome = run(config(), dry_run=True, reporter=reporter)
    assert outcome.folder is None and np.isfinite(outcome.result["metrics"]["loss/train"])
    assert "one small step took" in reporter.told[-1] and sorted(Path().rglob("*")) == before


# --- recipes ---


@pytest.mark.parametrize("name", ["scibert", "specter2"])
def test_recipes_of_the_lineage_take_a_step_with_a_tiny_bert(name: str, bert: Path) -> None:
    here = [
        f"base.path={bert.parent / 'base'}",
        "corpus=[papers]",
        "roles=[roles.jsonl]",
        "evaluation.sets=[]",
        "runtime.device=cpu",
        "model.length=64",
    ]
    found = load_job(RECIPES / f"unifar_{name}.yaml", here)
    assert isinstance(found, RetrievalConfig)
    outcome = run(found, dry_run=True)
    assert np.isfinite(outcome.result["metrics"]["loss/train"]) and not Path("runs").exists()


@pytest.mark.parametrize("name", ["scibert", "specter2"])
def test_their_settings_are_those_of_the_specification(name: str) -> None:
    found = load_job(RECIPES / f"unifar_{name}.yaml")
    assert isinstance(found, RetrievalConfig) and found.base.path
    assert (found.learning_rate, found.head_learning_rate, found.warmup, found.batch_size, found.max_grad_norm) == (2e-5, 1e-4, 0.05, 32, 1.0)
    assert (found.model.whole, found.model.intent_temperature, found.model.length) == (0.5, 0.5, 512)
    assert (found.loss.temperature, found.loss.question, found.loss.roles, found.loss.orthogonality) == (0.05, 1.0, 0.2, 0.01)


# --- mistakes ---


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["corpus=[nowhere]"], "corpus: there is no file or folder nowhere, neither in"),
        (["roles=[nowhere.jsonl]"], "roles: there is no file or folder nowhere.jsonl"),
        (
            ["corpus=[papers/01.md, papers/02.md]"],
            "training needs 10 papers at least, and learns little from less than some hundreds; the corpus has 2",
        ),
        (["roles=[odd.jsonl]"], "odd.jsonl, line 1: 2 sentences have 1 labels; give each one"),
        (["roles=[asked.jsonl]"], "asked.jsonl, line 1: 'sentences' must be a list of texts"),
        (["questions=[asked.jsonl]"], "asked.jsonl, line 1: there is no paper 'elsewhere' in the corpus"),
        (["questions=[bare.jsonl]"], "bare.jsonl, line 1: a question needs the 'id' of the paper that answers it, or the 'answer'"),
        (["base={path: nowhere}"], "no encoder could be built on 'nowhere'"),
        (["learning_rate=1e30", "head_learning_rate=1e30"], "no number to go on from; lower learning_rate"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_and_leaves_nothing(overrides: list[str], sentence: str) -> None:
    Path("odd.jsonl").write_text('{"sentences": ["a", "b"], "labels": ["method"]}')
    Path("asked.jsonl").write_text('{"question": "what?", "id": "elsewhere"}')
    Path("bare.jsonl").write_text('{"question": "what?"}')
    done = CliRunner().invoke(app, ["train", "r.yaml", *overrides])
    assert done.exit_code == 2 and sentence in done.output, done.output + repr(done.exception)
    assert Path("run").exists() == ("1e30" in overrides[0]), "what was begun is kept"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("small: {", "path: x, small: {"), "name the encoder: either base.path or base.small"),
        (("steps: 6", "loss: {pairs: 0, question: 0}"), "there is nothing to learn from: loss.pairs and loss.question are both 0"),
        (("steps: 6", "mixture: {halves: 0, title: 0, neighbours: 0, facets: 0}"), "mixture leaves no kind of pair"),
        (("steps: 6", "runtime: {processes: 2}"), "kind: retrieval trains in one process"),
        (("steps: 6", "model: {granularities: [word]}"), "'model.granularities.0' must be token, sentence or global, not 'word'"),
        (("steps: 6", "task: {name: sorting}"), "unknown key 'task'"),
        (("steps: 6", "loss: {temprature: 1}"), "unknown key 'loss.temprature'; did you mean 'loss.temperature'?"),
    ],
)
def test_a_wrong_recipe_gets_its_sentence(change: tuple[str, str], sentence: str) -> None:
    assert change[0] in RECIPE
    with pytest.raises(ConfigError) as caught:
        config(text=RECIPE.replace(*change, 1))
    assert sentence in str(caught.value)


def test_small_bases_have_defaults_of_their_own_and_what_is_given_stays() -> None:
    small, full = config("loss.roles=0.3"), RetrievalConfig(output="o", base={"path": "x"})  # type: ignore[arg-type]
    assert (small.loss.temperature, small.loss.roles, small.model.pooled, small.learning_rate) == (0.03, 0.3, "mean", 3e-4)
    assert config().loss.roles == 1.0
    made = RetrievalConfig(output="o", loss=FacetLossConfig(roles=0.3), model=FacetConfig(whole=0.7))
    assert (made.loss.temperature, made.loss.roles, made.model.whole, made.model.pooled) == (0.03, 0.3, 0.7, "mean")
    assert (full.loss.temperature, full.loss.roles, full.model.pooled, full.learning_rate) == (0.05, 0.2, "first", 2e-5)


def test_commands_for_language_models_refuse_it_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match="kind: retrieval trains an encoder, not a language model"):
        load("r.yaml")


# --- parts ---


def prepared(rows: int = 24) -> tuple[Prepared, Options]:
    found = config("steps=3", f"batch_size={rows // 3}")
    material = job.prepare(found, Path("scratch"), SilentReporter())
    return material.prepared, Options(model={"pooled": "mean"}, batch_size=8)


def test_fit_gives_equal_bits_for_equal_arguments_and_others_for_another_seed() -> None:
    ready, options = prepared()
    states = [fit(ready, options, steps=3, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_rows_come_once_each_before_any_comes_again_in_an_order_drawn_from_the_seed() -> None:
    ready, options = prepared()
    names = [f"{n}" for n in range(len(ready.rows))]
    rows = [{**row, "anchor": name} for row, name in zip(ready.rows, names, strict=True)]
    drawn = dataset(rows, options, 6, 0)["anchor"][:]
    assert sorted(drawn[:24]) == sorted(drawn[24:48]) == sorted(names)
    assert drawn[:24] != drawn[24:48] and drawn == dataset(rows, options, 6, 0)["anchor"][:]
    with pytest.raises(ValueError, match="there is nothing to train on"):
        dataset([], options, 6, 0)


def test_anchors_start_where_the_labelled_sentences_of_their_facets_are() -> None:
    ready, options = prepared()
    model = training.start(ready, options, 0)
    lines = [json.loads(line) for line in Path("roles.jsonl").read_text().splitlines()]
    read = model.encode([SENTENCE_END.join(line["sentences"]) for line in lines], output_value=None)
    told = [FACETS[k] for one in read for k in one["sentence_roles"][one["sentence_mask"]].argmax(-1)]
    assert np.mean([a == b for a, b in zip(told, [label for line in lines for label in line["labels"]], strict=True)]) > 0.4
    bare = training.start(ready, replace(options, centroids=False), 0)
    assert not torch.equal(pooling_of(bare).anchors, pooling_of(model).anchors)


def test_the_mean_weighs_both_directions_alike_however_many_ask() -> None:
    papers = known_items("documents", [("a", "a1", "a2"), ("b", "b1", "b2")], papers=True)
    asked = known_items("questions", [("a", "qa", "a2"), ("b", "qb", "b2"), ("c", "qc", "c2"), ("c", "", "c2")], papers=False)
    assert len(asked.queries) == 3 and papers.queries[0].like and not asked.queries[0].like
    found = Measured([papers, asked], {"documents": [1.0, 0.5], "questions": [0.5, 0.5, 0.2]})
    assert found.means() == pytest.approx({"eval/map": (0.75 + 0.4) / 2, "eval/documents_map": 0.75, "eval/questions_map": 0.4})
    assert found.interval().mean == pytest.approx(found.means()["eval/map"])
    assert found.gain(found) == (0.0, 0.0, 0.0)


def test_equal_documents_are_one_item_and_a_paper_does_not_find_itself(bert: Path) -> None:
    one = known_items("d", [("a", "same", "other"), ("b", "other", "same")], papers=True)
    assert [dict(q.grades) for q in one.queries] == [{"d00000": 1.0}, {"d00001": 1.0}]
    assert measure(SentenceTransformer(str(bert), device="cpu"), [one]).values == {"d": [1.0, 1.0]}


def test_only_what_the_trainer_measures_is_told_under_our_names() -> None:
    logs = {"loss": 1.0, "pairs": 0.5, "learning_rate": 1e-3, "grad_norm": 2.0, "epoch": 0.1, "eval_map": 0.3, "eval_runtime": 4.0}
    assert renamed(logs) == {"loss/train": 1.0, "loss/pairs": 0.5, "optimiser/lr": 1e-3, "optimiser/grad_norm": 2.0, "eval/map": 0.3}
