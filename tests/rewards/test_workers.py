from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from tacit.rewards.workers import Answer, WorkerPool, isolated

OWN = """
import asyncio, os, re, sys, time

def double(x):
    return 2 * x

async def later(x):
    await asyncio.sleep(0.01)
    return x

def misbehave(how):
    if how == "hang":
        while True: pass
    if how == "hang inside C":  # holds the interpreter lock: no alarm and no thread would get through
        re.match(r"(a+)+$", "a" * 40 + "b")
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), 9)
    if how == "raise":
        raise ValueError("no number")
    if how == "allocate":
        bytearray(10 * 2**30)
    if how == "shout":
        return "x" * 2**27
    if how == "object":
        return object()
    if how == "torch":
        return "torch" in sys.modules
    if how == "sleep":
        time.sleep(60)
    return how

def slow(x):
    time.sleep(0.001)
    return x

from tacit.rewards.workers import isolated

@isolated(deadline=5, workers=1)
def decorated(x, *, power=2):
    return x**power
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_answers_come_in_order_from_several_workers(own):
    with WorkerPool(f"{own}:double", workers=2) as pool:
        assert [a.value for a in pool.map([(i,) for i in range(200)])] == [2 * i for i in range(200)]
        assert (pool.stats.answered, pool.stats.failed, pool.stats.started) == (200, 0, 2)
        assert pool.stats.per_second > 100


def test_coroutines_are_awaited(own):
    with WorkerPool(f"{own}:later", workers=1) as pool:
        assert pool.map([("x",)]) == [Answer("x")]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("hang", "timed out after 0.5 s"),
        ("hang inside C", "timed out after 0.5 s"),
        ("exit", "the worker died (exit code 3)"),
        ("kill", "the worker died (signal 9)"),
        ("raise", "raised ValueError: no number"),
        ("allocate", "raised MemoryError"),
        ("shout", "answered with more than 1048576 bytes"),
        ("object", "raised TypeError: a worker's answer must be a number, a text, None, or lists and dicts of them, not a object"),
    ],
)
def test_whatever_goes_wrong_is_named_and_the_pool_goes_on(own, how, told):
    memory = 4096 if how == "allocate" else None
    with WorkerPool(f"{own}:misbehave", workers=1, deadline=0.5 if "hang" in how else 10, memory_mb=memory) as pool:
        began = time.monotonic()
        answers = pool.map([("fine",), (how,), ("fine",)])
        assert answers == [Answer("fine"), Answer(failure=told), Answer("fine")]
        if "hang" in how:
            assert time.monotonic() - began < 2.5


def test_workers_import_no_torch(own):
    with WorkerPool(f"{own}:misbehave", workers=1) as pool:
        assert pool.map([("torch",)]) == [Answer(False)]


def test_an_answer_that_trickles_in_does_not_extend_the_deadline(tmp_path):
    path = tmp_path / "drip.py"
    path.write_text(
        "import gc, socket, struct, time\ndef drip():\n"
        "    channel = next(o for o in gc.get_objects() if isinstance(o, socket.socket))\n"
        "    channel.sendall(struct.pack('!Q', 1000))\n    while True:\n        channel.sendall(b' ')\n        time.sleep(0.05)\n"
    )
    with WorkerPool(f"{path}:drip", workers=1, deadline=0.4) as pool:
        began = time.monotonic()
        assert pool.map([()]) == [Answer(failure="timed out after 0.4 s")]
        assert time.monotonic() - began < 2


def test_a_module_that_cannot_be_imported_and_arguments_that_cannot_be_sent(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nowhere_to_be_found\ndef f(): pass")
    with WorkerPool(f"{path}:f", workers=1) as pool:
        (answer,) = pool.map([()])
        assert "a worker could not start" in answer.failure and "nowhere_to_be_found" in answer.failure
        assert "cannot be sent to a worker" in pool.map([(lambda: 0,)])[0].failure


def test_only_functions_that_have_a_name_to_be_found_by():
    with pytest.raises(ValueError, match="define it with def at the top level"):
        isolated(lambda x: x)
    with pytest.raises(ValueError, match="deadline above 0"):
        WorkerPool(os.path.join, deadline=0)


def test_a_decorated_function_is_called_as_usual(own):
    from tacit.core.imports import load_object

    function = load_object(f"{own}:decorated", "function")
    assert function(3) == 9 and function(2, power=3) == 8
    assert function.submit(2).result() == Answer(4)
    with pytest.raises(RuntimeError, match="raised TypeError"):
        function("x")
    function.pool.close()
    assert function.submit(2).result() == Answer(failure="the pool of workers was closed")


def test_from_another_thread_and_inside_asyncio(own):
    with WorkerPool(f"{own}:misbehave", workers=2, deadline=0.5) as pool:
        found = []
        thread = threading.Thread(target=lambda: found.extend(pool.map([("a",), ("hang",)])))
        thread.start()
        thread.join()

        async def inside():
            return await asyncio.gather(*(asyncio.wrap_future(pool.submit(x)) for x in ("a", "hang")))

        expected = [Answer("a"), Answer(failure="timed out after 0.5 s")]
        assert found == expected and asyncio.run(inside()) == expected


def survive(path, scorings: int, kills: int) -> None:
    """Random workers are killed while calls run: every call is answered once, with its own value or with a reason."""
    random.seed(0)
    with WorkerPool(f"{path}:slow", workers=2, deadline=20) as pool:
        counted = [0] * scorings
        futures = [pool.submit(i) for i in range(scorings)]
        for i, future in enumerate(futures):
            future.add_done_callback(lambda _, i=i: counted.__setitem__(i, counted[i] + 1))
        done = 0
        for kill in range(kills):
            while sum(counted) < scorings * kill // (kills + 1) or not pool.pids():
                time.sleep(0.0005)
            try:
                os.kill(random.choice(pool.pids()), signal.SIGKILL)
                done += 1
            except (ProcessLookupError, IndexError):
                pass
        answers = [future.result(timeout=60) for future in futures]
        assert counted == [1] * scorings
        assert all(a == Answer(i) or a.failure == "the worker died (signal 9)" for i, a in enumerate(answers))
        lost = sum(bool(a.failure) for a in answers)
        assert 0 < lost <= done and lost == pool.stats.failed and pool.stats.started > 2


def test_random_kills(own):
    survive(own, 400, 20)


@pytest.mark.slow
def test_a_thousand_random_kills_during_ten_thousand_scorings(own):
    survive(own, 10_000, 1_000)


@pytest.mark.parametrize("end", ["return", "interrupt", "kill"])
def test_no_worker_outlives_its_parent(own, end):
    """Whether the parent ends, is interrupted or is killed, while a worker hangs."""
    code = (
        "import sys, time\nfrom tacit.rewards.workers import WorkerPool\n"
        f"pool = WorkerPool({f'{own}:misbehave'!r}, workers=1)\npool.submit('x').result()\nprint(*pool.pids(), flush=True)\n"
        f"waiting = pool.submit('sleep')\nif {end!r} != 'return': waiting.result()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.1)
    if end != "return":
        parent.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
    parent.wait(timeout=20)
    for _ in range(200):
        if not alive(worker):
            return
        time.sleep(0.01)
    pytest.fail("the worker is still there")


def alive(pid: int) -> bool:
    """Running, and not a zombie that nobody has reaped yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_math_verify_from_another_thread_inside_asyncio_and_past_its_deadline():
    """Its own timeouts are signals, which would raise off the main thread; the pool needs none."""
    with WorkerPool("tacit.rewards.math:score", workers=1, deadline=30) as pool:
        calls = [("", "so \\boxed{\\frac{2}{4}}", "\\frac12"), ("", "so \\boxed{0.4}", "\\frac12")]
        found = []
        thread = threading.Thread(target=lambda: found.extend(pool.map(calls)))
        thread.start()
        thread.join()

        async def inside():
            return await asyncio.gather(*(asyncio.wrap_future(pool.submit(*call)) for call in calls))

        assert found == asyncio.run(inside()) == [Answer(1.0), Answer(0.0)]
