"""Systems side by side on a benchmark: means, intervals, differences; as plain data and as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tacit.core.statistics import paired_bootstrap
from tacit.retrieval.benchmarks import Benchmark, Scores
from tacit.retrieval.systems import REFERENCE, WRONG


def table(benchmark: Benchmark, systems: Mapping[str, Scores], *, samples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Every metric of every system as plain data: mean, 95 % interval, number of queries, by group where there are groups; with folds, the
    mean over fold tests; the difference to our TF-IDF, and of a model with facets that to itself under the wrong facets, paired by query. Best MAP
    first."""
    groups = [None, *dict.fromkeys(q.group for q in benchmark.queries if q.group)]
    has_folds, reference = any(q.folds for q in benchmark.queries), systems[REFERENCE]
    rows = []
    for system, scores in systems.items():
        row: dict[str, Any] = {"system": system, "published": system in benchmark.published, "metrics": {}}
        for group in groups:
            for metric in scores.values:
                values, topics = scores.column(metric, group)
                told: dict[str, Any] = {"mean": scores.interval(metric, group, samples=samples, seed=seed), "queries": len(values)}
                if group is None:
                    base = reference.column(metric)[0]
                    told["over_tfidf"] = paired_bootstrap(values, base, clusters=topics, samples=samples, seed=seed)
                if wrong := systems.get(system + WRONG):
                    base = wrong.column(metric, group)[0]
                    told["over_wrong_facet"] = paired_bootstrap(values, base, clusters=topics, samples=samples, seed=seed)
                if has_folds:
                    told["over_folds"] = scores.over_folds(metric, group)
                row["metrics"][f"{metric} {group}" if group else metric] = told
        rows.append(row)
    rows.sort(key=lambda row: -row["metrics"]["map"]["mean"].mean)
    topics = len({q.topic for q in benchmark.queries})
    return {"benchmark": benchmark.name, "queries": len(benchmark.queries), "topics": topics, "headline": benchmark.headline, "systems": rows}


def table_lines(told: Mapping[str, Any]) -> list[str]:
    """The headline metrics of a table for people, in percent."""
    heads = "".join(f"{name:>22}" for name in told["headline"])
    width = max(len(row["system"]) for row in told["systems"]) + 3
    lines = [
        f"{told['benchmark']}: {told['queries']} queries on {told['topics']} topics; percent, 95 % intervals over topics; * published ranking",
        f"{'':<{width}}{heads}{'MAP - our TF-IDF':>22}",
    ]
    for row in told["systems"]:
        cells = "".join(f"{span(row['metrics'][name]['mean']):>22}" for name in told["headline"])
        difference = "–" if row["system"] == REFERENCE else span(row["metrics"]["map"]["over_tfidf"], "+.1f")
        lines.append(f"{row['system'] + ('*' if row['published'] else ''):<{width}}{cells}{difference:>22}")
    for row in told["systems"]:
        if "over_wrong_facet" in row["metrics"]["map"]:
            gains = ", ".join(f"{name} {span(row['metrics'][name]['over_wrong_facet'], '+.1f')}" for name in told["headline"])
            lines.append(f"{row['system']}, right - wrong facet: {gains}")
    return lines


def span(interval: tuple[float, float, float], form: str = ".1f") -> str:
    """'38.1 [29.0, 47.3]', in percent."""
    mean, low, high = (format(100 * x, form) for x in interval)
    return f"{mean} [{low}, {high}]"
