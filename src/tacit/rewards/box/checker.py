"""Runs tests against a program that is out of reach: every name that a test does not define itself stands for the program's."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tacit.rewards.box.peer import Peer, ProgramEnded


def run_tests(peer: Peer, program: str, setup: str, tests: Sequence[str], entry_point: str | None = None) -> Iterator[str]:
    """Per test "" where it passed, or why not. Built-in functions and modules are the checker's own, except for the function under test."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    broken = _attempt(lambda: peer.run(program)) or _attempt(lambda: _run(peer, setup, namespace, entry_point))
    for test in tests:
        yield broken or _attempt(lambda test=test: _run(peer, test, namespace, entry_point))


def _run(peer: Peer, source: str, namespace: dict[str, Any], entry_point: str | None) -> None:
    tree = ast.parse(source)
    modules = used_as_modules(tree) - {entry_point}
    for name in sorted(unknown_names(tree) - set(namespace)):
        if name in modules:
            namespace[name] = importlib.import_module(name)
        elif name == entry_point or not hasattr(builtins, name):
            _fetch(peer, name, namespace)
    exec(compile(tree, "<test>", "exec"), namespace)


def _fetch(peer: Peer, name: str, namespace: dict[str, Any]) -> None:
    try:
        namespace[name] = peer.get(name)
    except NameError:
        return  # the test raises it where it uses the name, if it does


def _attempt(action: Any) -> str:
    try:
        action()
    except AssertionError as error:
        return f"assertion failed: {error}".removesuffix(": ")[:300]
    except ProgramEnded as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - a test may raise anything, SystemExit included, and has then not passed
        return f"raised {type(error).__name__}: {error}".removesuffix(": ")[:300]
    return ""


def unknown_names(tree: ast.AST) -> set[str]:
    """Names that are read; some of them the source may define itself, which then overrides."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def used_as_modules(tree: ast.AST) -> set[str]:
    """Modules of the standard library whose attributes are used, imported or not: they are never the program's."""
    owners = {node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return owners & sys.stdlib_module_names
