"""The child's side of rewards/workers.py: a fresh interpreter that answers calls until its parent is gone. Imports no torch.

What goes down is pickled: the parent is trusted. What comes back is JSON: an answer is data, and reading it runs nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from tacit.core.imports import load_object
from tacit.rewards.channel import receive, send

PR_SET_PDEATHSIG = 1


def main(fd: int, parent: int) -> None:
    die_with(parent)
    serve(socket.socket(fileno=fd))


def serve(channel: socket.socket) -> None:
    """Loads the function that the first message names, says so with an empty one or says why not, and then answers calls."""
    try:
        spec, memory_mb = pickle.loads(receive(channel))
        limit_memory(memory_mb)
        function = find(spec)
        send(channel, b"")
        while True:
            send(channel, answer(function, receive(channel)))
    except EOFError:
        return
    except ValueError as error:
        send(channel, str(error).encode("utf-8", "replace"))


def find(spec: str) -> Callable[..., Any]:
    """The function itself, where the name now holds what `isolated` made of it."""
    function = load_object(spec, "function")
    return getattr(function, "__wrapped__", function)


def answer(function: Callable[..., Any], message: bytes) -> bytes:
    """JSON {"value": …} or {"failure": …}; numbers of any library become plain ones."""
    try:
        args, kwargs = pickle.loads(message)
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        return json.dumps({"value": value}, default=plain).encode()
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything; it is reported as raised
        return json.dumps({"failure": f"{type(error).__name__}: {error}".removesuffix(": ")[:2000]}).encode()


async def _awaited(value: Any) -> Any:
    return await value


def plain(value: Any) -> float:
    """A number of numpy, torch, decimal, … Raises TypeError for what is none."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"a worker's answer must be a number, a text, None, or lists and dicts of them, not a {type(value).__name__}")
    return float(value)


def limit_memory(megabytes: int | None) -> None:
    """Of data, not of address space: libraries reserve far more of that than they use."""
    if megabytes is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20, megabytes * 2**20))


def die_with(parent: int) -> None:
    """Has the kernel kill this process with the thread that started it, whatever ends that; elsewhere an idle worker sees the end of file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
