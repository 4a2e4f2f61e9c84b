"""Writes the tables of configuration.md from the fields of `tacit.config`. Run by `make docs`; a test compares.

What stands outside the two markers is written by hand and stays.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tacit.config import RetrievalConfig, RLConfig, RunConfig, SFTConfig, WMSSConfig

PAGE = Path(__file__).parent / "configuration.md"
START, END = "<!-- the tables below are written by `make docs` -->", "<!-- end of the tables -->"
SIGNS = {"≥": "ge", ">": "gt", "≤": "le", "<": "lt"}
AS = {"optimiser": "`kind: rl`", "checkpoint": "every run", "runtime": "every run"}  # sections that were told before, and where
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def page() -> str:
    """configuration.md as it should be. Raises ValueError when a marker is missing."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{PAGE} lacks the line {START!r} or {END!r}")
    return before + START + "\n\n" + "\n".join(tables()) + "\n" + END + after


def tables() -> Iterator[str]:
    common = {"kind", *RunConfig.model_fields}
    for title, model, skip, told in [
        ("Every run of a language model", RunConfig, set(), set()),
        ("`kind: rl`", RLConfig, common, set()),
        ("`kind: sft`", SFTConfig, common, {"optimiser"}),
        ("`kind: wmss`, beside those of `kind: sft`", WMSSConfig, common | set(SFTConfig.model_fields), set()),
        ("`kind: retrieval`", RetrievalConfig, {"kind"}, {"checkpoint", "runtime"}),
    ]:
        yield from heading(f"## {title}", model)
        yield from table(model, "", skip, told)


def table(model: type[BaseModel], prefix: str = "", skip: Set[str] = frozenset(), told: Set[str] = frozenset()) -> Iterator[str]:
    """One table for the plain fields of a model, then one for each section below it; sections `told` before show their defaults only."""
    fields = {name: info for name, info in model.model_fields.items() if name not in skip}
    plain = {name: info for name, info in fields.items() if inner(info) is None or name in told}
    if plain:
        yield from ("| key | value | default | meaning |", "|---|---|---|---|")
        for name, info in plain.items():
            meaning = info.description or (f"as `{name}` of {AS[name]}" if name in told else "")
            yield f"| `{prefix}{name}` | {value(info)} | {default(info)} | {meaning} |"
        yield ""
    for name, info in fields.items():
        if name not in plain and (below := inner(info)):
            items = "N." if get_origin(info.annotation) is list else ""
            yield from heading(f"### `{prefix}{name}`", below, off=info.default is None)
            yield from table(below, f"{prefix}{name}.{items}")


def inner(info: FieldInfo) -> type[BaseModel] | None:
    """The model of a section, or of the items of a list of sections."""
    for part in [info.annotation, *get_args(info.annotation)]:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def value(info: FieldInfo) -> str:
    if inner(info):
        return "section"
    return ", ".join([kind(info.annotation), *bounds(info)])


def kind(annotation: Any) -> str:
    """A type in the words of the error messages."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else kind(part) for part in parts)
    if origin is list:
        return f"list of {kind(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)} numbers"
    return "section" if origin is dict else NAMES[annotation]


def bounds(info: FieldInfo) -> Iterator[str]:
    for sign, name in SIGNS.items():
        yield from (f"{sign} {getattr(limit, name)}" for limit in info.metadata if hasattr(limit, name))


def default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    found = info.get_default(call_default_factory=True)
    if isinstance(found, BaseModel):
        changed = ", ".join(f"{k}: {json.dumps(v)}" for k, v in found.model_dump(exclude_defaults=True).items())
        return f"`{{{changed}}}`"
    return f"`{json.dumps(found)}`"


def heading(title: str, model: type[BaseModel], off: bool = False) -> Iterator[str]:
    said = [model.__doc__.splitlines()[0]] if model.__doc__ else []
    text = " ".join(said + ["None unless given."] * off)
    yield from (title, "", text, "") if text else (title, "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
