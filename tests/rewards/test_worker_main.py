"""The child's side of a worker, in this process."""

from __future__ import annotations

import json
import pickle
import socket
import threading
from decimal import Decimal

import numpy as np
import pytest

from tacit.rewards.channel import receive, send
from tacit.rewards.worker_main import answer, find, plain, serve


def call(*args, **kwargs) -> bytes:
    return pickle.dumps((args, kwargs))


def test_numbers_of_any_library_become_plain_ones():
    assert [plain(x) for x in (np.float32(0.5), np.array(2), Decimal("0.25"))] == [0.5, 2.0, 0.25]
    assert json.loads(answer(lambda x: {"reward": np.float64(x)}, call(1.5))) == {"value": {"reward": 1.5}}
    with pytest.raises(TypeError, match="must be a number, a text, None"):
        plain(object())


def test_coroutines_and_exceptions():
    async def later(x, *, y):
        return x + y

    def wrong():
        raise KeyError("gone")

    assert json.loads(answer(later, call(1, y=2))) == {"value": 3}
    assert json.loads(answer(wrong, call())) == {"failure": "KeyError: 'gone'"}
    assert json.loads(answer(later, b"no pickle"))["failure"].startswith("UnpicklingError")


def test_it_serves_until_the_parent_is_gone(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("from tacit.rewards.workers import isolated\n@isolated\ndef double(x): return 2 * x\n")
    assert find(f"{path}:double")(2) == 4  # the function below the decorator, or the worker would ask a worker
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    send(ours, pickle.dumps((f"{path}:double", None)))
    assert receive(ours) == b""
    for x in (1, 2):
        send(ours, call(x))
        assert json.loads(receive(ours)) == {"value": 2 * x}
    ours.close()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_what_cannot_be_loaded_is_said():
    ours, theirs = socket.socketpair()
    send(ours, pickle.dumps(("nowhere.to.be:found", None)))
    serve(theirs)
    assert b"nowhere.to.be could not be imported" in receive(ours)
