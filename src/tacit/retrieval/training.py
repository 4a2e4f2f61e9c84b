"""Training a UniFAR-style encoder from prepared rows, by the trainer of sentence-transformers: batches, learning rates, checkpoints, the best one.

Departures from the trainer's own ways: all rows of a run stand in one epoch, in an order drawn from the seed, so that a resumed run goes on with the
row after the last, whatever the library does with generators of later epochs; and no model card is written, which would look things up on the hub.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from tacit.core.progress import Reporter, SilentReporter
from tacit.core.runtime import seed_everything
from tacit.mistakes import reason
from tacit.retrieval import facets as f
from tacit.retrieval.benchmarks import Benchmark
from tacit.retrieval.dev import DevEvaluator
from tacit.retrieval.encoder import means_a_folder
from tacit.retrieval.losses import ROLES, FacetLoss, LossOptions, columns_of
from tacit.retrieval.modules import build, pooling_of
from tacit.retrieval.quiet import quiet

HEAD = r"^model\.1\."  # what FacetPooling's weights are called in the loss
STATE = "trainer_state.json"  # the last file of a checkpoint that is written
CENTRED = 256  # labelled texts that anchors start from

Row = Mapping[str, Any]
Log = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is trained on: rows with the columns of `losses` and their label, the base (folder or hub id) with the weights of its words (V,) where
    they are weighted, and held-out sets."""

    rows: Sequence[Row]
    base: str | Path
    weights: Tensor | None = None
    dev: Sequence[Benchmark] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """How. `model`: arguments of `modules.build`. `every`: steps between checkpoints, 0: none; with `best`, each is evaluated on the held-out sets,
    and the best one is what training ends with. `centroids`: anchors start at the labelled sentences of their facets."""

    model: Mapping[str, Any] = field(default_factory=dict)
    loss: LossOptions = field(default_factory=LossOptions)
    batch_size: int = 32
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    every: int = 0
    keep: int = 2
    best: bool = True
    centroids: bool = True
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"


def fit(
    prepared: Prepared, options: Options, *, steps: int, seed: int = 0, folder: str | Path | None = None, reporter: Reporter | None = None
) -> SentenceTransformer:
    """The trained model. Checkpoints go to `folder`, without one to a temporary one.

    Equal arguments give equal bits on a CPU with one thread.
    """
    model = start(prepared, options, seed)
    with tempfile.TemporaryDirectory() as place:
        train(model, prepared, options, steps=steps, seed=seed, folder=Path(folder or place), reporter=reporter)
    return model


def start(prepared: Prepared, options: Options, seed: int) -> SentenceTransformer:
    """The model before training. Raises ValueError where no encoder can be loaded from the base."""
    seed_everything(seed)
    try:
        with quiet():
            model = build(prepared.base, weights=prepared.weights, device=options.device, **options.model)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        told = "there is no such folder" if means_a_folder(str(prepared.base)) and not Path(prepared.base).exists() else reason(error)
        raise ValueError(f"no encoder could be built on {str(prepared.base)!r}: {told}") from None
    if options.centroids and options.loss.roles and (found := centroids(model, prepared.rows)) is not None:
        pooling_of(model).start(centroids=found)
    return model.eval()


def train(
    model: SentenceTransformer,
    prepared: Prepared,
    options: Options,
    *,
    steps: int,
    seed: int,
    folder: Path,
    reporter: Reporter | None = None,
    log: Log | None = None,
    stop: threading.Event | None = None,
    resume: Path | None = None,
) -> int:
    """Trains in place, from the checkpoint `resume` if there is one, and returns the step that the model is of: the best, or the last.

    `log` takes the metrics of a step. `stop` ends training after the step under way, with a checkpoint.
    Raises ValueError when the loss is not a number.
    """
    best = bool(options.every and options.best and prepared.dev)
    watcher = Watcher(reporter or SilentReporter(), log, stop)
    with quiet():
        trainer = Plain(
            model=model,
            args=arguments(options, steps, seed, folder, best),
            train_dataset=dataset(prepared.rows, options, steps, seed),
            loss=FacetLoss(model, options.loss),
            evaluator=DevEvaluator(prepared.dev) if best else None,
            callbacks=[watcher],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    model.eval()
    stopped = trainer.state.global_step < steps
    return trainer.state.global_step if stopped or not best else int(trainer.state.best_global_step or steps)


def arguments(options: Options, steps: int, seed: int, folder: Path, best: bool) -> SentenceTransformerTrainingArguments:
    found = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        batch_sampler=in_order,
        learning_rate=options.learning_rate,
        learning_rate_mapping={HEAD: options.head_learning_rate or options.learning_rate},
        warmup_steps=round(options.warmup * steps),
        lr_scheduler_type="linear",
        max_grad_norm=options.max_grad_norm,
        weight_decay=0.0,
        seed=seed,
        save_strategy="steps" if options.every else "no",
        save_steps=options.every or steps,
        save_total_limit=max(options.keep, 2) if best else options.keep,  # with 1 the library removes the newest in the end
        eval_strategy="steps" if best else "no",
        eval_steps=options.every or steps,
        load_best_model_at_end=best,
        metric_for_best_model="map" if best else None,
        greater_is_better=True if best else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=options.device == "cpu",
        bf16=options.precision == "bf16",
    )
    if found.n_gpu > 1:
        found._n_gpu = 1  # one device: the negatives of a batch must meet
    return found


def in_order(data: Dataset, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
    return DefaultBatchSampler(SequentialSampler(data), batch_size, drop_last)  # pyright: ignore[reportArgumentType]


def dataset(rows: Sequence[Row], options: Options, steps: int, seed: int) -> Dataset:
    """The rows of all steps, one after the other: over and over, each time in a new order. Raises ValueError where there is none."""
    if not rows:
        raise ValueError("there is nothing to train on: no pair could be made of the corpus; give it more papers, with more than a title")
    rng, passes = np.random.default_rng(seed), math.ceil(steps * options.batch_size / len(rows))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(passes)])[: steps * options.batch_size]
    return Dataset.from_list(columns_of(options.loss, [dict(row) for row in rows])).select(order, keep_in_memory=True)


@torch.no_grad()
def centroids(model: SentenceTransformer, rows: Sequence[Row]) -> Tensor | None:
    """The mean vector (K, d) of the labelled sentences of each facet, less what they share: the mean of all, and its direction. None where a facet
    has no labelled sentence.

    Plain means, as the specification has them, are nearly one: every sentence would seem to be of the same facet.
    """
    pooling, chosen = pooling_of(model), [row for row in rows if row["labelled"]][:CENTRED]
    sums, counts = torch.zeros(len(pooling.facets), pooling.dim), torch.zeros(len(pooling.facets))
    for begin in range(0, len(chosen), 32):
        part = chosen[begin : begin + 32]
        features = model.preprocess([row["labelled"] for row in part])
        features = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in features.items()}
        read = model[0](features)
        states = read["token_embeddings"]
        weights = torch.ones_like(states[..., 0]) if pooling.word_logs is None else pooling.word_logs[read["input_ids"]].exp()
        shares, there = f.sentence_shares(read["sentence_ids"], weights)
        sentences = shares @ states
        roles = torch.tensor([row["label"][ROLES:] for row in part])[:, : sentences.shape[1]]
        labelled = there.cpu()[:, : roles.shape[1]] & (roles >= 0)
        found = f.unit(sentences).cpu()[:, : roles.shape[1]][labelled]
        sums.index_add_(0, roles[labelled], found)
        counts += torch.bincount(roles[labelled], minlength=len(counts))
    if not counts.all():
        return None
    mean = sums.sum(0) / counts.sum()
    apart, shared = sums / counts[:, None] - mean, f.unit(mean)
    return apart - (apart @ shared)[:, None] * shared


class Plain(SentenceTransformerTrainer):
    """Without model cards, for which the library asks the hub and counts tokens of the data."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None: ...

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir or str(self.args.output_dir), create_model_card=False)


class Watcher(TrainerCallback):
    """Tells what the trainer does in our words, and hears when to stop."""

    def __init__(self, reporter: Reporter, log: Log | None, stop: threading.Event | None):
        self.reporter, self.log, self.stop, self.began = reporter, log, stop, time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.best_global_step:  # of a run that goes on, whose folder may have been moved
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")
        self.reporter.phase("training", state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stop is not None and self.stop.is_set():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Of a step, or of an evaluation after it."""
        metrics = renamed(logs or {})
        if not metrics:
            return
        if not math.isfinite(loss := metrics.get("loss/train", 0.0)):
            raise ValueError(f"step {state.global_step}: the loss is {loss}, no number to go on from; lower learning_rate")
        if "loss/train" in metrics:
            metrics["time/step"] = time.perf_counter() - self.began
        if self.log is not None:
            self.log(state.global_step, metrics)
        self.reporter.step(state.global_step - 1, metrics)


NAMES = {"loss": "loss/train", "grad_norm": "optimiser/grad_norm", "learning_rate": "optimiser/lr"}
TERMS = ("pairs", "question", "intent", "roles", "orthogonality")


def renamed(logs: Mapping[str, float]) -> dict[str, float]:
    """The trainer's names as ours; the learning rate is that of the base. What we do not know is left out."""
    names = NAMES | {term: f"loss/{term}" for term in TERMS}
    found = {names[name]: value for name, value in logs.items() if name in names}
    return found | {f"eval/{name.removeprefix('eval_')}": value for name, value in logs.items() if name.startswith("eval_") and name.endswith("map")}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole one: a process that died while it wrote leaves one without its last file."""
    numbered = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in numbered if _is_whole(path / STATE)), None)


def _is_whole(file: Path) -> bool:
    try:
        return "global_step" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
