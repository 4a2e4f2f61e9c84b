"""What pydantic found wrong with a recipe, told in one sentence each: which field, what it must be, what it is, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Key = tuple[str | int, ...]  # the way to a value: ("algorithm", "kl", "form"), ("components", 0, "name")

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of 'key: value' lines",
    "model": "a section of 'key: value' lines",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def mistakes(error: ValidationError, model: type[BaseModel], data: Any) -> Iterator[tuple[Key, str]]:
    """(key, sentence) for each mistake that pydantic found in `data`, unknown keys first: a misspelt key explains a missing one."""
    found = [(_key(details["loc"], details["type"], data), details) for details in error.errors()]
    found.sort(key=lambda item: item[1]["type"] != "extra_forbidden")
    keys = [key for key, _ in found]
    for n, (key, details) in enumerate(found):
        if any(len(other) > len(key) > 0 and other[: len(key)] == key for other in keys):
            continue  # the branch of a union that the deeper mistake shows was not meant
        if key in keys[:n]:
            continue
        yield key, _sentence(key, details, model)


def _key(location: Key, kind: str, data: Any) -> Key:
    """Pydantic's location without the names it gives to the branches of a union."""
    key: Key = ()
    for n, part in enumerate(location):
        if _inside(data, part):
            data = data[part]
        elif kind != "missing" or n < len(location) - 1:
            continue
        key += (part,)
    return key


def _inside(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _sentence(key: Key, details: Any, model: type[BaseModel]) -> str:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    name = repr(dotted(key))
    if kind == "extra_forbidden":
        return unknown(key, model)
    if kind == "missing":
        if isinstance(key[-1], int):
            wanted = len(get_args(section(model, key[:-2]).model_fields[str(key[-2])].annotation))
            return f"{dotted(key[:-1])!r} must have {wanted} values, not {len(given)}"
        meaning = section(model, key[:-1]).model_fields[key[-1]].description
        return f"{name} is missing" + (f": {meaning}" if meaning else "")
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return choice(name, given, re.findall(r"'([^']*)'", context["expected"]))
    if kind in BOUNDS:
        bound, words = BOUNDS[kind]
        return f"{name} must be {words} {context[bound]:g}, not {shown(given)}"
    if kind == "too_long":
        return f"{name} must have {context['max_length']} values, not {context['actual_length']}"
    expected = EXPECTED.get(kind.split("_")[0])
    if expected is None:
        return f"{name}: {details['msg']}"
    if given is None:
        return f"{name} is empty; it must be {expected}"
    hint = "; put it in quotes" if expected == "text" and not isinstance(given, list | dict) else ""
    return f"{name} must be {expected}, not {shown(given)}{hint}"


def unknown(key: Key, model: type[BaseModel]) -> str:
    """What to say of a key that does not exist: the nearest name here, the same name elsewhere, or all that there is."""
    name, here = str(key[-1]), section(model, key[:-1])
    everywhere = list(field_names(model))
    if "." in name and name in everywhere:
        return f"unknown key {name!r}; write it in nested sections, {name.replace('.', ': ')}"
    if near := get_close_matches(name, here.model_fields, n=1):
        return f"unknown key {dotted(key)!r}; did you mean {dotted((*key[:-1], near[0]))!r}?"
    if elsewhere := [name] if name in everywhere else [known for known in everywhere if known.split(".")[-1] == name]:
        return f"unknown key {dotted(key)!r}; did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"unknown key {dotted(key)!r}; the keys here are {', '.join(here.model_fields)}"


def choice(name: str, given: Any, allowed: list[str]) -> str:
    """`given` is not one of the `allowed` values of the field `name`."""
    near = get_close_matches(str(given), allowed, n=1)
    options = " or ".join(filter(None, [", ".join(allowed[:-1]), allowed[-1]]))
    return f"{name} must be {options}, not {shown(given)}" + (f"; did you mean {near[0]!r}?" if near else "")


def section(model: type[BaseModel], key: Key) -> type[BaseModel]:
    """The model of the section at `key`."""
    for part in key:
        if isinstance(part, str):
            model = next(iter(_models(model.model_fields[part].annotation)))
    return model


def field_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field below `model`, dotted; items of lists have no name of their own."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if get_origin(info.annotation) is not list:
            for inner in _models(info.annotation):
                yield from field_names(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel  # a command that reads no recipe starts without it

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def dotted(key: Key) -> str:
    return ".".join(map(str, key))


def shown(value: Any) -> str:
    """A value as an error names it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a section"
        case list():
            return "a list"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
        case _:
            return str(value)


def reason(error: Exception) -> str:
    """The first line of what another library says went wrong, or the kind of its error where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
