"""A training of an encoder from recipe to result: read the corpus, make pairs, measure, train with checkpoints, measure again, write it down.

A resumed run reads its corpus again and goes on with the trainer's last whole checkpoint: weights, optimiser, schedule, generators, and the row that
comes next. On a CPU with one thread the losses and the model are those of a run that was never stopped, bit for bit; elsewhere as far as the kernels
of the device repeat themselves.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from sentence_transformers import SentenceTransformer

from tacit.config import RetrievalConfig
from tacit.core.environment import environment
from tacit.core.progress import Reporter, SilentReporter
from tacit.core.rundir import CONFIG, RunDirectory
from tacit.core.runtime import Runtime
from tacit.core.stopping import stop_after_step
from tacit.recipe import flat
from tacit.retrieval.corpus import Material, prepare
from tacit.retrieval.dev import baselines, measure
from tacit.retrieval.losses import LossOptions
from tacit.retrieval.quiet import quiet
from tacit.retrieval.training import Options, last_checkpoint, start, train

MODEL, CHECKPOINTS, MATERIAL, RESULT = "model", "trainer", "material.json", "result.json"
SMALL_STEP, SMALL_CORPUS = 2, 60  # rows and papers of a dry run
MAY_CHANGE = ("output", "corpus", "roles", "questions", "evaluation", "checkpoint", "runtime")  # in a resumed run; what is read is compared by itself


@dataclass
class Outcome:
    """How a run ended: the content of result.json, and where it lies. A dry run has no folder."""

    result: dict[str, Any]
    folder: Path | None


def run(config: RetrievalConfig, *, resume: bool = False, dry_run: bool = False, reporter: Reporter | None = None) -> Outcome:
    """Trains what the recipe says. Ctrl-C finishes the step, writes a checkpoint, and raises KeyboardInterrupt; `resume` goes on from the last one.

    `dry_run` builds everything, takes one small step and writes nothing. Mistakes in the recipe or its data raise ValueError in one sentence.
    """
    reporter = reporter or SilentReporter()
    started = time.monotonic()
    runtime = Runtime(**config.runtime.model_dump(exclude={"processes"}), seed=config.seed, folder=config.output)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if dry_run:
                return _dry_run(config, runtime, Path(scratch), reporter)
            with RunDirectory(config.output, resume=resume, keep=config.checkpoint.keep) as folder:
                if resume:
                    _refuse_another(folder.path, config)
                material = prepare(config, Path(scratch), reporter)
                return _run(config, material, folder, runtime, reporter, started)
    finally:
        runtime.close()


def _run(config: RetrievalConfig, material: Material, folder: RunDirectory, runtime: Runtime, reporter: Reporter, started: float) -> Outcome:
    prepared, options = material.prepared, options_of(config, material, runtime)
    model = start(prepared, options, config.seed)
    place = folder.path / CHECKPOINTS
    last = last_checkpoint(place) if folder.resume else None
    about = material.told | {"fingerprint": material.fingerprint}
    if last is not None:
        _check_same(folder.path / MATERIAL, about)
    folder.metrics.cut(int(last.name.rpartition("-")[2]) if last else -1)
    folder.write_config(config.model_dump(mode="json"))
    folder.write_json(MATERIAL, about)
    runtime.log_config(config.model_dump(mode="json"))
    earlier = sum(record.get("time/step") or 0.0 for record in folder.metrics.records())

    def log(step: int, metrics: Mapping[str, float]) -> None:
        runtime.log(dict(metrics), step)
        folder.metrics.append(step, metrics)

    reporter.message(sentence(model, material, runtime))
    before = measure(model, prepared.dev)
    if last is None:
        log(0, before.means())
    else:
        reporter.message(f"resumed after step {last.name.rpartition('-')[2]} of {config.steps}")
    with stop_after_step(reporter) as stop:
        how: dict[str, Any] = {"steps": config.steps, "seed": config.seed, "folder": place, "reporter": reporter, "log": log}
        step = train(model, prepared, options, **how, stop=stop, resume=last)
        if stop.is_set():
            raise KeyboardInterrupt
    after = measure(model, prepared.dev)
    if config.keep == "best" and (found := after.means()["eval/map"]) < (began := before.means()["eval/map"]):
        worse = f"training has made it worse on held-out papers, {began:.1%} became {found:.1%} at best"
        reporter.warning(f"{worse}, so the run ends with the model before training; more papers may help")
        model, after, step = start(prepared, options, config.seed), before, 0
    elif step < config.steps:
        reporter.message(f"the model of step {step} is the best; it is what the run ends with, after {config.steps} steps")
    save(model, folder.path / MODEL)
    result = {
        "kind": config.kind,
        "metric": "MAP",
        "before": before.interval()._asdict(),
        "after": after.interval()._asdict(),
        "gain": after.gain(before)._asdict(),
        "baselines": baselines(prepared.dev),
        "queries": sum(len(one.queries) for one in prepared.dev),
        "measured": {name.removeprefix("eval/"): value for name, value in after.means().items()},
        "steps": config.steps,
        "step": step,
        **material.told,
        "seconds": earlier + time.monotonic() - started,
        "environment": environment(runtime) | {"sentence-transformers": version("sentence-transformers")},
    }
    folder.write_json(RESULT, result)
    return Outcome(result, folder.path)


def _dry_run(config: RetrievalConfig, runtime: Runtime, scratch: Path, reporter: Reporter) -> Outcome:
    """One step of the smallest size, on the first papers of the corpus: everything is built and run once, nothing is written."""
    material = prepare(config, scratch, reporter, most=SMALL_CORPUS)
    options = replace(options_of(config, material, runtime), batch_size=SMALL_STEP, every=0)
    model = start(material.prepared, options, config.seed)
    reporter.message(sentence(model, material, runtime))
    found: dict[str, float] = {}
    train(model, material.prepared, options, steps=1, seed=config.seed, folder=scratch / CHECKPOINTS, log=lambda _, metrics: found.update(metrics))
    held = measure(model, material.prepared.dev).means()
    reporter.message(f"one small step took {found['time/step']:.2f} s; nothing was written")
    return Outcome({"parameters": parameters(model), "metrics": found | held}, None)


def options_of(config: RetrievalConfig, material: Material, runtime: Runtime) -> Options:
    """Without labelled sentences nothing is learnt of roles."""
    loss = LossOptions(**config.loss.model_dump())
    return Options(
        model=config.model.model_dump(exclude={"anchors"}),
        loss=loss if material.told["labelled_texts"] else replace(loss, roles=0.0),
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        warmup=config.warmup,
        max_grad_norm=config.max_grad_norm,
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        best=config.keep == "best",
        centroids=config.model.anchors == "centroids",
        device=runtime.device.type,
        precision=config.runtime.precision,
    )


def sentence(model: SentenceTransformer, material: Material, runtime: Runtime) -> str:
    """What is trained on what."""
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in material.told.items())
    return f"encoder of {parameters(model):,} parameters on {runtime.device}; {told}"


def parameters(model: SentenceTransformer) -> int:
    return sum(p.numel() for p in model.parameters())


def save(model: SentenceTransformer, to: Path) -> None:
    """Writes the model whole. What is there steps aside for it and is removed last: whenever the process dies, one of them is whole."""
    making, aside = to.with_name(f".{to.name}.tmp"), to.with_name(f".{to.name}.old")
    shutil.rmtree(making, ignore_errors=True)
    with quiet():
        model.save_pretrained(str(making), create_model_card=False)
    if to.exists():
        shutil.rmtree(aside, ignore_errors=True)
        to.rename(aside)
    making.rename(to)
    shutil.rmtree(aside, ignore_errors=True)


def _refuse_another(folder: Path, config: RetrievalConfig) -> None:
    """Raises ValueError when a step of the run was saved that another recipe took. A key that the run does not know, being older, counts as equal."""
    if last_checkpoint(folder / CHECKPOINTS) is None:
        return
    began = flat(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    for key, value in flat(config.model_dump(mode="json", exclude=set(MAY_CHANGE))).items():
        if began.get(key, value) != value:
            raise ValueError(f"{folder} was begun with {key} {began[key]!r} and not {value!r}; put that back, or choose another output")


def _check_same(file: Path, about: Mapping[str, Any]) -> None:
    """Raises ValueError when the run began on other papers, pairs or held-out sets than are there now."""
    began = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if began.get("fingerprint") != about["fingerprint"]:
        raise ValueError(
            f"{file.parent} was begun on another corpus, other steps or options of pairs, and cannot go on with these: put back what was there, "
            "or choose another output"
        )
