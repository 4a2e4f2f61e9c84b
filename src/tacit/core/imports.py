"""Loads the user's own parts: `my_file.py:name` or `package.module:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def is_own_part(spec: str) -> bool:
    """Whether a name in a recipe points at the user's own code."""
    return ":" in spec


def load_object(spec: str, kind: str) -> Any:
    """The object that `spec` names; `kind` says in errors what it was meant to be. Raises ValueError in one sentence."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ValueError(f"{kind} {spec!r}: write file.py:name or package.module:name")
    module = _load_file(Path(place), spec, kind) if place.endswith(".py") else _load_module(place, spec, kind)
    if not hasattr(module, name):
        near = get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{kind} {spec!r}: {place} defines no {name!r}{hint}")
    return getattr(module, name)


def _load_file(path: Path, spec: str, kind: str) -> Any:
    if not path.is_file():
        raise ValueError(f"{kind} {spec!r}: there is no file {path} (looked in {Path.cwd()})")
    module_name = f"tacit_user_{path.stem}_{zlib.crc32(bytes(path.resolve())):08x}"  # the same in every process, so that objects can be exchanged
    if module_name in sys.modules:
        return sys.modules[module_name]
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"{kind} {spec!r}: {path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str, spec: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"{kind} {spec!r}: module {name} could not be imported: {type(error).__name__}: {error}") from error
