"""A benchmark as an evaluator of sentence-transformers: handed to its trainer, or called with a model."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from sentence_transformers.base.evaluation import BaseEvaluator

from tacit.retrieval.benchmarks import Benchmark, evaluate
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.systems import Dense, rankings


class PoolEvaluator(BaseEvaluator):
    """Re-ranks the pools of a benchmark by a model: the mean of every metric over the queries that count, as fractions. The primary one is MAP.
    A model with facets is asked under that of each query.

    With `output_path`, a line is added to `pool_NAME.csv` there.
    """

    def __init__(self, benchmark: Benchmark, name: str = ""):
        super().__init__()
        self.benchmark, self.name, self.primary_metric = benchmark, name or benchmark.name.lower(), "map"

    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        scores = evaluate(self.benchmark, rankings(Dense(self.benchmark, Encoder(model)).scores()))
        means = {metric: sum(values.values()) / len(values) for metric, values in scores.values.items()}
        if output_path is not None:
            self._write(Path(output_path) / f"pool_{self.name}.csv", {"epoch": epoch, "steps": steps, **means})
        told = self.prefix_name_to_metrics(means, self.name)
        self.store_metrics_in_model_card_data(model, told, epoch, steps)
        return told

    @staticmethod
    def _write(path: Path, row: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
