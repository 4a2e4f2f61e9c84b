"""How the checker calls the program: two processes, and between them nothing but data.

What crosses is numbers, texts and containers of them, rebuilt on arrival as plain built-in objects. So `==` in a test is Python's own on data,
whatever class the program's object had. Any other object stays where it is and crosses as a handle: the checker may call it and ask for its
attributes, and a handle equals nothing but itself. The program, in turn, may call the functions that a test gave it, and do nothing else.
"""

from __future__ import annotations

import builtins
import json
import operator
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from tacit.rewards.channel import receive, send

LARGEST = 2**24  # bytes of one message
CHANGEABLE = (list, dict, set, bytearray)
TEXTUAL = {"fraction": Fraction, "decimal": Decimal}
LISTED: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "bytes": bytes,
    "bytearray": bytearray,
    "dict": dict,
    "range": lambda ends: range(*ends),
    "complex": lambda parts: complex(*parts),
}


class ProgramEnded(BaseException):
    """The other process is gone, or talks nonsense. No `except Exception` of a test may take this for the error that it expected."""


class ProgramError(Exception):
    """An exception of the program's own class, or one that is not an error at all, such as SystemExit."""


class Handle:
    """An object of the other process."""

    def __init__(self, peer: Peer, number: int):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.call("getattr", (self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.call("setattr", (self, name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._peer.call("getitem", (self, key))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.call("setitem", (self, key, value))

    def __contains__(self, value: Any) -> bool:
        return bool(self._peer.call("contains", (self, value)))

    def __len__(self) -> int:
        return self._peer.call("len", (self,))

    def __iter__(self) -> Any:
        return iter(self._peer.call("list", (self,)))

    def __next__(self) -> Any:
        return self._peer.call("next", (self,))

    def __repr__(self) -> str:
        return self._peer.call("repr", (self,))

    def __str__(self) -> str:
        return self._peer.call("str", (self,))

    def __bool__(self) -> bool:
        return True


class Peer:
    """One side of the talk. `namespace` is the program's, None on the checker's side, which serves only functions that it gave away, and which has a
    function that says how the program `ended`.
    """

    def __init__(self, channel: socket.socket, namespace: dict[str, Any] | None = None, ended: Callable[[], str] = lambda: "no reason known"):
        self.channel, self.namespace, self.ended = channel, namespace, ended
        self.given: dict[int, Any] = {}  # objects the other side has a handle of

    def call(self, function: Handle | str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
        """Calls over there, and meanwhile answers calls from there. Arguments that were changed in place are changed here as well."""
        target = function if isinstance(function, str) else self.encode(function)
        reply = self._ask({"call": target, "args": [self.encode(a) for a in args], "kwargs": {k: self.encode(v) for k, v in (kwargs or {}).items()}})
        for mine, theirs in zip(args, reply["args"], strict=False):
            overwrite(mine, self.decode(theirs))
        return self.decode(reply["value"])

    def run(self, source: str) -> None:
        """Runs the program over there."""
        self._ask({"run": source})

    def get(self, name: str) -> Any:
        """What the program calls `name`. Raises NameError."""
        return self.decode(self._ask({"get": name})["value"])

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        reply = self._exchange(message)
        if "error" in reply:
            raise as_error(*reply["error"])
        return reply

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self._send(message)
            while "call" in (reply := self._receive()):
                self._serve(reply)
            if "error" in reply:
                name, text = reply["error"]
                return {"error": (str(name), str(text))}
            return {"value": reply["value"], "args": list(reply.get("args", []))}
        except (OSError, EOFError) as error:
            raise ProgramEnded(f"the program ended before it answered ({self.ended()})") from error
        except OverflowError as error:
            raise ProgramEnded(f"the program {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ProgramEnded("the program wrote into the channel to the checker") from error

    def serve(self) -> None:
        """Answers calls until the other side is gone."""
        while True:
            self._serve(self._receive())

    def _serve(self, message: dict[str, Any]) -> None:
        try:
            reply = self._perform(message)
        except ProgramEnded:
            raise
        except BaseException as error:  # noqa: BLE001 - the program may raise anything; it is the checker's to judge
            reply = {"error": [type(error).__name__, str(error)[:500]]}
        self._send(reply)

    def _perform(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.namespace is not None and "run" in message:
            exec(compile(message["run"], "<program>", "exec"), self.namespace)
            return {"value": None}
        if self.namespace is not None and "get" in message:
            if message["get"] not in self.namespace:
                raise NameError(f"name {message['get']!r} is not defined")
            return {"value": self.encode(self.namespace[message["get"]])}
        args = [self.decode(a) for a in message["args"]]
        value = self._callable(message["call"])(*args, **{k: self.decode(v) for k, v in message["kwargs"].items()})
        return {"value": self.encode(value), "args": [self.encode(a) if isinstance(a, CHANGEABLE) else None for a in args]}

    def _callable(self, target: Any) -> Callable[..., Any]:
        if self.namespace is None:
            return self.given[target["yours"]]
        return getattr(operator, target, None) or getattr(builtins, target) if isinstance(target, str) else self.decode(target)

    def _send(self, message: dict[str, Any]) -> None:
        send(self.channel, json.dumps(message).encode())

    def _receive(self) -> dict[str, Any]:
        message = json.loads(receive(self.channel, LARGEST))
        if not isinstance(message, dict):
            raise TypeError("a message is an object")
        return message

    # --- data ---

    def encode(self, value: Any) -> Any:
        """JSON: what JSON has no word for is an object with one key, the name of its type."""
        if value is None or isinstance(value, bool | float | str):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < 2**63 else {"int": hex(value)}
        if isinstance(value, list):
            return [self.encode(v) for v in value]
        if isinstance(value, dict):
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop, value.step]}
        if isinstance(value, Handle):
            return {"yours": value._number}
        for name, kind in TEXTUAL.items():
            if isinstance(value, kind):
                return {name: str(value)}
        for name in ("tuple", "set", "frozenset", "deque", "bytes", "bytearray"):
            if isinstance(value, LISTED[name]):  # pyright: ignore[reportArgumentType]
                return {name: [self.encode(v) for v in value]}
        if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
            return {"type": value.__name__}
        self.given[id(value)] = value
        return {"mine": id(value)}

    def decode(self, value: Any) -> Any:
        """The inverse. Raises TypeError or ValueError for what `encode` never writes."""
        if isinstance(value, list):
            return [self.decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        ((name, content),) = value.items()
        if name == "int":
            return int(content, 16)
        if name == "mine":
            return Handle(self, int(content))
        if name == "yours":
            return self.given[content]
        if name == "type" and isinstance(found := getattr(builtins, content), type):
            return found
        if name in TEXTUAL:
            return TEXTUAL[name](str(content))
        return LISTED[name](self.decode(content))


def overwrite(mine: Any, theirs: Any) -> None:
    """Gives a list, dict, set or bytearray of the test the contents that it has in the program."""
    if type(mine) is not type(theirs) or mine == theirs:
        return
    if isinstance(mine, list | bytearray):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def as_error(name: str, text: str) -> Exception:
    """The program's exception: of the built-in class of that name, so that a test can expect it, or else a ProgramError."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError | BaseExceptionGroup):
        return kind(text)
    return ProgramError(f"{name}: {text}")
