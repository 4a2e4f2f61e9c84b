"""Recipes: YAML that remembers where every value was written, with overrides on top.

Knows nothing of what a recipe may contain: `tacit.config` holds the models and calls this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tacit.mistakes import Key, dotted, mistakes, shown

Model = TypeVar("Model", bound=BaseModel)

MOST_TOLD = 5  # mistakes told at once


class ConfigError(ValueError):
    """A mistake in a recipe: what, where, and what to write instead."""


# --- YAML: the scalars of YAML 1.2, so that 2e-4 is a number, "no" a word and 010 not eight ---

TAGS = "tag:yaml.org,2002:"
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")


class Loader(yaml.SafeLoader):
    """Takes for numbers and truths what YAML 1.2 does."""


class Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or `Loader` would not read back as text."""


Loader.yaml_implicit_resolvers = {}  # its own, not those of YAML 1.1
Loader.add_implicit_resolver(TAGS + "null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver(TAGS + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver(TAGS + "int", re.compile(r"[-+]?(0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789"))
Loader.add_implicit_resolver(TAGS + "merge", re.compile(r"<<$"), ["<"])
for _class in (Loader, Dumper):
    _class.add_implicit_resolver(TAGS + "float", FLOAT, list("-+.0123456789"))


def _text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Text with a rare line break in double quotes, where it is escaped: elsewhere PyYAML would turn it into a space."""
    return dumper.represent_scalar(TAGS + "str", text, style='"' if set(text) & set("\x85\u2028\u2029") else None)


Dumper.add_representer(str, _text)


# --- reading ---


@dataclass
class Recipe:
    """What was read: plain `data`, and for every key in it the place to name in an error."""

    path: Path
    data: dict[str, Any]
    places: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where `key`, or else the nearest section around it, was written."""
        return next((self.places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.places), str(self.path))

    def override(self, text: str) -> None:
        """Applies `key.sub=value`, value being YAML; list items go by number. Raises ConfigError naming the override."""
        place = f"override '{text}'"
        name, equals, value = text.partition("=")
        *sections, last = name.strip().split(".")
        if not equals or not all((*sections, last)):
            raise ConfigError(f"{place}: write key=value, for example algorithm.clip_low=0.1")
        key: Key = ()
        into: Any = self.data
        for part in sections:
            key = (*key, self._index(into, part, key, place))
            if isinstance(into, dict) and into.get(part) is None:
                into[part] = {}
                self.places[key] = place
            into = into[key[-1]]
        key = (*key, self._index(into, last, key, place))
        self.places = {k: v for k, v in self.places.items() if k[: len(key)] != key} | {key: place}
        into[key[-1]] = _parse(value, place, key, self.places)

    def validate(self, model: type[Model]) -> Model:
        """The model that the data describe, types taken strictly. Raises ConfigError, one line a mistake."""
        try:
            return model.model_validate_json(json.dumps(self.data, default=str), strict=True)
        except ValidationError as error:
            lines = [f"{self.place(key)}: {sentence}" for key, sentence in mistakes(error, model, self.data)]
        more = [f"... and {len(lines) - MOST_TOLD} more mistakes"] if len(lines) > MOST_TOLD else []
        raise ConfigError("\n".join(lines[:MOST_TOLD] + more))

    def _index(self, into: Any, part: str, key: Key, place: str) -> str | int:
        """`part` as a key of the mapping, or as an index of the list, that stands at `key`."""
        if isinstance(into, dict):
            return part
        if not isinstance(into, list):
            raise ConfigError(f"{place}: {dotted(key)!r} is {shown(into)}, which has no keys inside")
        if not part.isdigit() or int(part) >= len(into):
            raise ConfigError(f"{place}: {dotted(key)!r} is a list of {len(into)}, write a number from 0 to {len(into) - 1} instead of {part!r}")
        return int(part)


def read(path: str | Path) -> Recipe:
    """The recipe in a file. Raises ConfigError when it is missing, empty, not YAML, or not a mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise ConfigError(f"{path}: there is no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read ({error.strerror})") from None
    places: dict[Key, str] = {}
    data = _parse(text, str(path), (), places, lines=True)
    if data is None:
        raise ConfigError(f"{path}: this recipe is empty; start it with kind, task, model and output")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is made of 'key: value' lines, this is {shown(data)}")
    return Recipe(path, data, places)


def _parse(text: str, place: str, key: Key, places: dict[Key, str], *, lines: bool = False) -> Any:
    """YAML text as plain data; `places` learns the place, with its line if asked, of everything below `key`."""

    def at(mark: yaml.Mark) -> str:
        return f"{place}:{mark.line + 1}" if lines else place

    try:
        loader = Loader(text)
        node = loader.get_single_node()
        return None if node is None else _plain(loader, node, key, places, at)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{at(mark) if mark else place}: this is not valid YAML: {_yaml_problem(error, text)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: this is not valid YAML: {' '.join(str(error).split())}") from None


def _yaml_problem(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = " ".join(" ".join(part for part in (error.context, error.problem) if part).split())
    mark = error.problem_mark
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return "a tab stands where only spaces may; indent with spaces"
    if "mapping values are not allowed" in problem:
        return "a second ': ' on one line, or a line indented too far; put text that contains ': ' in quotes"
    return problem


def _plain(
    loader: Loader, node: yaml.Node, key: Key, places: dict[Key, str], at: Callable[[yaml.Mark], str], above: tuple[yaml.Node, ...] = ()
) -> Any:
    if node in above:
        raise ConfigError(f"{at(node.start_mark)}: {dotted(key)!r} contains itself through an alias")
    above += (node,)
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_object(node)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            places[(*key, i)] = at(item.start_mark)
        return [_plain(loader, item, (*key, i), places, at, above) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    seen: dict[str, yaml.Mark] = {}
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise ConfigError(f"{at(name.start_mark)}: a key must be a plain name")
        if name.value in seen:
            first = seen[name.value].line + 1
            raise ConfigError(f"{at(name.start_mark)}: {dotted((*key, name.value))!r} is given twice, first on line {first}; keep one")
        seen[name.value] = name.start_mark
    loader.flatten_mapping(node)  # puts what `<<: *alias` merges in front, so that later keys win
    data = {}
    for name, value in node.value:
        places[(*key, name.value)] = at(name.start_mark)
        data[name.value] = _plain(loader, value, (*key, name.value), places, at, above)
    return data


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) and inner else {f"{prefix}{name}": inner}
    return found
