"""What a shell offers on TAB beyond commands and options: keys of a recipe and the values they may have. Loads no torch, so that TAB is quick."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """`mod` -> model.path=, model.dtype=, ...; `model.dtype=` -> model.dtype=float32, ...; of the kind that the recipe names, if it can be read."""
    from tacit.config import JOBS

    given = context.params.get("recipe")
    models = [JOBS[kind]] if (kind := kind_of(given)) in JOBS else list(JOBS.values())
    known = dict(field for model in models for field in fields(model))
    key, equals, _ = incomplete.partition("=")
    offered = [f"{key}={value}" for value in known.get(key, ())] if equals else [f"{name}=" for name in known]
    return [word for word in offered if word.startswith(incomplete)]


def kind_of(recipe: Any) -> str:
    """The kind in a file, read without YAML: what is being typed may not be a recipe yet."""
    path = Path(str(recipe))
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"^kind:[ ]*(\w+)", text, re.MULTILINE)
    return found[1] if found else ""


def fields(model: type[BaseModel]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(dotted key, the values it may have where they are few) of every field that is no section."""
    from tacit.mistakes import field_names, section

    names = list(field_names(model))
    for name in names:
        if not any(other.startswith(f"{name}.") for other in names):
            *above, last = name.split(".")
            yield name, tuple(choices(section(model, tuple(above)).model_fields[last].annotation))


def choices(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
