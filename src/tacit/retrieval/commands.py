"""`tacit search`: benchmark tables. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Find papers: by words, by any sentence-transformers model, or by both.", no_args_is_help=True)
Model = Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="A sentence-transformers model: folder or hub name; repeatable.")]


def add_to(parent: typer.Typer, guard: Callable[[], AbstractContextManager[None]]) -> None:
    """Puts `search` below `parent`; `guard` turns mistakes of the user into sentences, as everywhere on this command line."""

    def guarded(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            with guard():
                command(*args, **kwargs)

        return run

    for command in (table,):
        app.command(command.__name__)(guarded(command))
    parent.add_typer(app, name="search")


def table(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="csfcube or dorismae, read from TACIT_DATA.", show_default=False)],
    model: Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for every metric, by facet and over folds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print that JSON instead of the table.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Score published rankings, our own TF-IDF, LSA and BM25, and models, side by side, by the protocol of the benchmark."""
    from tacit.mistakes import choice
    from tacit.retrieval.benchmarks import BENCHMARKS
    from tacit.retrieval.encoder import Encoder
    from tacit.retrieval.systems import all_systems, table_lines
    from tacit.retrieval.systems import table as scored

    if benchmark not in BENCHMARKS:
        raise ValueError(choice("BENCHMARK", benchmark, list(BENCHMARKS)))
    encoders = [Encoder.load(name) for name in model or ()]
    data = BENCHMARKS[benchmark]()
    told = scored(data, all_systems(data, encoders), seed=seed)
    text = json.dumps(told, indent=1)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    print(text if as_json else "\n".join(table_lines(told)))
