from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import resource
import signal
import socket
import sys
import threading
import time

import pytest

from tacit.rewards.box import guards as kernel
from tacit.rewards.box import seccomp
from tacit.rewards.box.checker import run_tests
from tacit.rewards.box.peer import Handle, Peer, ProgramEnded, ProgramError, as_error, overwrite
from tacit.rewards.box.zygote import limits, status, watch
from tacit.rewards.channel import receive, send
from tacit.rewards.sandbox import NEEDED, Limits, Sandbox, active_guards, guards, missing

ADD = "def add(a, b):\n    return a + b"

# --- which guards there are, and when programs are refused ---


def test_guards_are_tried_out_and_listed():
    rows = active_guards()
    names = [name for name, _, _ in rows]
    assert {"network namespace", "PID namespace", "Landlock", "seccomp", "resource limits"} <= set(names) and names[-1] == "programs are isolated"
    assert all(active == (detail == "") for _, active, detail in rows)
    assert rows[-1][1] == (not missing(guards()))


def test_a_guard_left_out_is_said_to_be():
    assert guards(("seccomp",))["seccomp"] == "left out on request"


@pytest.mark.parametrize("what", NEEDED)
def test_without_any_guard_for_something_programs_are_refused_unless_unsafe(what):
    report = dict.fromkeys((name for any_of in NEEDED.values() for name in any_of), "")
    assert missing(report) == []
    assert what in missing(report | dict.fromkeys(NEEDED[what], "not here"))
    for guard in NEEDED[what]:  # any single one will do
        assert what not in missing(report | dict.fromkeys(set(NEEDED[what]) - {guard}, "not here"))
    if "interpreter" in NEEDED[what]:
        return  # not a guard that could be left out
    with pytest.raises(ValueError, match="model-written programs cannot be isolated on this machine, where nothing guards") as told:
        Sandbox(without=NEEDED[what])
    assert "sandbox: unsafe" in str(told.value)
    sandbox = Sandbox(without=NEEDED[what], mode="unsafe", workers=1)
    assert sandbox.submit(ADD, ["assert add(1, 2) == 3"]).result().value["verdicts"] == [""]
    sandbox.close()


def test_mode_is_one_of_two():
    with pytest.raises(ValueError, match="sandbox is 'off': write 'required', or 'unsafe'"):
        Sandbox(mode="off")  # pyright: ignore[reportArgumentType]


def test_an_enclosure_that_dies_is_replaced_and_its_program_reported():
    sandbox = Sandbox(Limits(deadline=20), workers=1, mode="unsafe")
    assert sandbox.submit(ADD, ["assert add(1, 2) == 3"]).result().value["verdicts"] == [""]
    waiting = sandbox.submit("import time\ntime.sleep(60)", ["pass"])
    time.sleep(0.2)
    os.killpg(sandbox.pool.pids()[0], signal.SIGKILL)
    assert waiting.result(timeout=5).failure == "the worker died (signal 9)"
    assert sandbox.submit(ADD, ["assert add(1, 2) == 3"]).result().value["verdicts"] == [""]
    assert sandbox.pool.stats.started == 2
    sandbox.close()


def test_limits_are_the_programs():
    limits = dataclasses.replace(Limits(), memory_mb=100, output_bytes=1000, deadline=1.0)
    sandbox = Sandbox(limits, workers=1, mode="unsafe")
    found = [
        sandbox.submit("x = bytearray(90 * 2**20)", ["assert True"]),
        sandbox.submit("print('y' * 2000)\ndef f(): pass", ["import time\nf()\ntime.sleep(0.5)"]),
        sandbox.submit("def f(): pass", ["pass", "import time\ntime.sleep(9)", "pass"]),
    ]
    memory, output, slow = (future.result().value for future in found)
    assert memory["verdicts"] == ["raised MemoryError"]
    assert output["ending"] == "printed more than 1000 bytes" and output["output"].startswith("yyyy")
    assert (slow["verdicts"], slow["ending"]) == ([""], "timed out after 1 s")
    sandbox.close()


# --- the filter of system calls, interpreted ---


def verdict(code, number: int, arguments=(0, 0), architecture: int = 0xC000003E) -> int:
    """What the kernel would make of a call: the classic BPF machine, as far as the filter uses it."""
    data = {seccomp.NUMBER: number, seccomp.ARCHITECTURE: architecture, seccomp.ARGUMENT_0: arguments[0], seccomp.ARGUMENT_1: arguments[1]}
    value, place = 0, 0
    while True:
        operation, yes, no, operand = code[place]
        place += 1
        if operation == seccomp.RETURN:
            return operand
        if operation == seccomp.LOAD:
            value = data[operand]
        else:
            holds = {seccomp.EQUAL: value == operand, seccomp.ANY_BIT: bool(value & operand), seccomp.AT_LEAST: value >= operand}[operation]
            place += yes if holds else no


@pytest.mark.parametrize(("machine", "architecture", "column"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)])
def test_the_filter_refuses_what_it_says(machine, architecture, column):
    code = seccomp.program(machine)
    assert len(code) < 4096 and all(0 <= yes < 256 and 0 <= no < 256 for _, yes, no, _ in code)  # the kernel's limits

    def of(number, *arguments):
        return verdict(code, number, (*arguments, 0, 0)[:2], architecture)

    assert all(of(numbers[column]) == seccomp.EPERM for numbers in seccomp.REFUSED.values())
    special = {numbers[column] for numbers in (seccomp.CLONE, seccomp.CLONE3, seccomp.PRLIMIT, seccomp.FCNTL, seccomp.PRCTL)}
    refused = {numbers[column] for numbers in seccomp.REFUSED.values()}
    assert all(of(number) == seccomp.ALLOW for number in range(500) if number not in refused | special)
    assert of(seccomp.CLONE3[column]) == seccomp.ENOSYS
    assert of(seccomp.CLONE[column], 17) == seccomp.ALLOW and of(seccomp.CLONE[column], 17 | kernel.NEW_USER) == seccomp.EPERM
    assert of(seccomp.PRLIMIT[column], 0) == seccomp.ALLOW and of(seccomp.PRLIMIT[column], 1) == seccomp.EPERM
    assert of(seccomp.FCNTL[column], 3, 1) == seccomp.ALLOW and of(seccomp.FCNTL[column], 3, 8) == seccomp.EPERM
    assert of(seccomp.PRCTL[column], 15) == seccomp.ALLOW and of(seccomp.PRCTL[column], 1) == seccomp.EPERM
    assert verdict(code, 0, architecture=0x40000003) == seccomp.KILL
    assert machine != "x86_64" or of(0x40000000 + 41) == seccomp.EPERM


def test_a_machine_without_a_table_has_no_filter():
    with pytest.raises(OSError, match="no table of system calls for sparc"):
        seccomp.program("sparc")


def test_what_may_be_read_holds_the_standard_library_and_nothing_twice():
    paths = kernel.readable()
    assert any(os.__file__.startswith(path + "/") for path in paths)
    assert not any(a != b and a.startswith(b + "/") for a in paths for b in paths)
    assert not any(path in ("/", "/proc", "/home", "/root", "/etc", "/tmp") for path in paths)


# --- the talk between checker and program, both sides in this process ---


@pytest.fixture
def talk():
    """(checker's side, the socket of the program's side)"""
    ours, theirs = socket.socketpair()
    yield Peer(ours, ended=lambda: "exit code 5"), theirs
    ours.close()
    theirs.close()


def serving(theirs: socket.socket) -> None:
    def serve():
        with contextlib.suppress(EOFError, OSError):
            Peer(theirs, {"__name__": "program"}).serve()

    threading.Thread(target=serve, daemon=True).start()


def test_tests_against_a_program(talk):
    checker, theirs = talk
    serving(theirs)
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4, 'no'", "add(1)", "nowhere()", "1 +", "import sys\nsys.exit(0)", "raise SystemExit"]
    verdicts = list(run_tests(checker, ADD, "import math", tests))
    assert verdicts[:2] == ["", "assertion failed: no"]
    kinds = [verdict.removeprefix("raised ").partition(":")[0] for verdict in verdicts[2:]]
    assert kinds == ["TypeError", "NameError", "SyntaxError", "SystemExit", "SystemExit"]


def test_a_program_or_a_setup_that_fails_fails_every_test(talk):
    checker, theirs = talk
    serving(theirs)
    assert list(run_tests(checker, "raise KeyError('k')", "", ["pass", "pass"])) == ["raised KeyError: \"'k'\""] * 2
    assert list(run_tests(checker, "", "nothing", ["pass"])) == ["raised NameError: name 'nothing' is not defined"]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"", "the program wrote into the channel"),
        (b"[]", "the program wrote into the channel"),
        (b"{}", "the program wrote into the channel"),
        (b"\xff\xfe", "the program wrote into the channel"),
        (b'{"error": 3}', "the program wrote into the channel"),
        (b'{"error": ["a"]}', "the program wrote into the channel"),
        (b"[" * 100_000, "the program wrote into the channel"),
        (None, r"the program ended before it answered \(exit code 5\)"),
    ],
)
def test_nonsense_from_the_program_ends_it_and_no_test_mistakes_it_for_an_error(talk, reply, told):
    checker, theirs = talk
    if reply is None:
        theirs.close()
    else:
        send(theirs, reply)
    with pytest.raises(ProgramEnded, match=told):
        checker.get("f")
    assert not issubclass(ProgramEnded, Exception)


def test_a_message_that_is_too_long_is_not_read(talk):
    checker, theirs = talk
    theirs.sendall((2**40).to_bytes(8, "big"))
    with pytest.raises(ProgramEnded, match="the program answered with more than 16777216 bytes"):
        checker.get("f")


@pytest.mark.parametrize(
    "value", [b'{"value": {"range": [1, 2, 0]}}', b'{"value": {"list": 1, "set": 2}}', b'{"value": {"nothing": 1}}', b'{"value": {"int": "z"}}']
)
def test_data_that_the_other_side_would_never_write_is_an_ordinary_error(talk, value):
    checker, theirs = talk
    send(theirs, value)
    with pytest.raises((TypeError, ValueError, KeyError)):
        checker.get("f")


def test_the_program_may_call_what_it_was_given_and_nothing_else(talk):
    checker, theirs = talk
    given = checker.encode(lambda x: x + 1)["mine"]
    messages = [
        {"call": {"yours": given}, "args": [1], "kwargs": {}},
        {"call": "eval", "args": ["1"], "kwargs": {}},
        {"call": "getattr", "args": [{"yours": given}, "__globals__"], "kwargs": {}},
        {"call": {"yours": 1}, "args": [], "kwargs": {}},
        {"value": None},
    ]
    for message in messages:
        send(theirs, json.dumps(message).encode())
    assert checker.get("f") is None
    receive(theirs)
    replies = [json.loads(receive(theirs)) for _ in messages[:-1]]
    assert replies[0]["value"] == 2 and all(reply["error"][0] in ("TypeError", "KeyError") for reply in replies[1:])


def test_any_plain_value_survives_the_journey():
    random.seed(0)
    ours, theirs = socket.socketpair()
    peer = Peer(ours)

    def value(depth: int):
        kinds = [lambda: random.randint(-(2**80), 2**80), random.random, lambda: None, lambda: "é\ud800"[: random.randint(0, 2)], lambda: b"\0x"]
        if depth:
            kinds += [lambda: [value(depth - 1) for _ in range(3)], lambda: tuple(value(depth - 1) for _ in range(2)), lambda: {3, "a", (1, 2)}]
            kinds += [lambda: {"k": value(depth - 1), (1,): value(depth - 1)}, lambda: frozenset({random.random()}), lambda: random.random() < 0.5]
        return random.choice(kinds)()

    for _ in range(300):
        before = value(3)
        after = peer.decode(json.loads(json.dumps(peer.encode(before))))
        assert after == before and type(after) is type(before)
    ours.close()
    theirs.close()


def test_a_handle_equals_nothing_but_itself(talk):
    handle = Handle(talk[0], 1)
    assert handle != 1 and handle == handle and handle != Handle(talk[0], 1) and bool(handle)


def test_errors_keep_their_built_in_class():
    assert type(as_error("ValueError", "x")) is ValueError and str(as_error("ValueError", "x")) == "x"
    for name in ("SystemExit", "UnicodeDecodeError", "Own", "print", "ExceptionGroup"):
        assert type(as_error(name, "x")) is ProgramError


def test_overwriting_changes_only_what_can_be_changed_in_place():
    cases = [([1], [2]), ({"a": 1}, {}), ({1}, {2}), (bytearray(b"a"), bytearray(b"b"))]
    for mine, theirs in cases:
        overwrite(mine, theirs)
        assert mine == theirs
    kept = [1]
    overwrite(kept, (2,))
    assert kept == [1]


# --- what ends a job ---


def watched(printed: bytes, verdicts: bytes, *, closed: bool = True, deadline: float = 5.0, most: int = 1000):
    """`watch` on two pipes with this in them, the one for verdicts closed by the checker or not."""
    (verdict, verdict_end), (output, output_end) = os.pipe(), os.pipe()
    os.write(output_end, printed)
    os.write(verdict_end, verdicts)
    if closed:
        os.close(verdict_end)
    found = watch(verdict, output, deadline, most)
    for pipe in (verdict, output, output_end, *([] if closed else [verdict_end])):
        os.close(pipe)
    return found


def test_a_job_ends_with_the_checker_in_time_or_with_too_much_output():
    assert watched(b"hello", b'"tests received"\n""\n"no"\n') == ("", ["tests received", "", "no"], b"hello")
    assert watched(b"", b'""\n"cut sho') == ("", [""], b"")  # a line that is not whole is no verdict
    assert watched(b"", b'""\n', closed=False, deadline=0.05) == ("timed out after 0.05 s", [""], b"")
    ending, verdicts, _ = watched(b"x" * 1001, b"", closed=False)
    assert (ending, verdicts) == ("printed more than 1000 bytes", [])


@pytest.mark.parametrize(("code", "told"), [("import os; os._exit(3)", "exit code 3"), ("import os; os.kill(os.getpid(), 9)", "signal 9")])
def test_how_a_process_ended(code, told):
    assert status(os.posix_spawn(sys.executable, [sys.executable, "-c", code], {})) == told


def test_limits_of_a_program_are_those_asked_for():
    found = limits({"deadline": 2.5, "memory_mb": 100, "disk_mb": 3, "processes": 4})
    assert found[resource.RLIMIT_CPU] == 4 and found[resource.RLIMIT_AS] == 100 * 2**20 and found[resource.RLIMIT_FSIZE] == 3 * 2**20
    assert found[resource.RLIMIT_NPROC] == 4 and found[resource.RLIMIT_CORE] == 0
