"""The process inside the sandbox that forks, for each job, a checker and a program.

    sandbox.py ── zygote ─┬─ checker   has the tests; calls the program and compares what comes back; its word is the verdict
       (parent)           └─ program   untrusted: namespaces, a folder and a user of its own, and one socket, to the checker

The program is forked before the tests arrive, and they reach the checker without passing through the zygote, so they were never in memory that the
program could read. It has no descriptor but that socket and a pipe for its output. The zygote ends a job: when the checker has spoken, when time is
up, or when too much is printed. Then it kills everything that is left.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from typing import Any, NoReturn

from tacit.rewards.box import guards
from tacit.rewards.box.checker import run_tests
from tacit.rewards.box.peer import Peer
from tacit.rewards.channel import receive, send

FIRST_USER, USERS = 60_000, 5_000  # where root gives each sandbox two user ids of its own: the kernel counts processes by user
NAMESPACES = {"network namespace": guards.NEW_NET, "IPC namespace": guards.NEW_IPC, "UTS namespace": guards.NEW_UTS}
OWN_ROOT, OWN_PIDS = "file system of its own", "PID namespace"
KEPT = 4000  # characters of output that are handed back
COMMON = "bisect collections copy datetime decimal fractions functools heapq itertools json math operator random re statistics string typing"


def main(fd: int, number: int, skip: list[str]) -> None:
    """`number` tells the sandboxes of one machine apart; `skip` names guards to do without."""
    channel = socket.socket(fileno=fd)
    for name in COMMON.split():
        importlib.import_module(name)
    report = enclose(frozenset(skip))
    with contextlib.suppress(OSError, AttributeError):
        guards.end_with_parent()
    if not report[OWN_PIDS] and (inside := os.fork()):  # the first process of the new namespace: when it dies, so do all others
        channel.close()
        os.waitpid(inside, 0)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `job`, which kills what it has started
    with contextlib.suppress(OSError, AttributeError):
        guards.end_with_parent(signal.SIGTERM)
    zygote = Zygote(channel, FIRST_USER + 2 * number % USERS, frozenset(skip), report)
    send(channel, json.dumps({"value": report | zygote.trial()}).encode())
    with contextlib.suppress(EOFError):
        while True:
            send(channel, json.dumps({"value": zygote.job(json.loads(receive(channel)))}).encode())


def enclose(skip: frozenset[str]) -> dict[str, str]:
    """The guards that are set up once. Who may not make namespaces gets the right to from a user namespace, where that is allowed."""
    report: dict[str, str] = {}
    if os.geteuid() != 0:
        guards.attempt(report, skip, "user namespace", guards.own_user)
    for name, flag in NAMESPACES.items():
        guards.attempt(report, skip, name, lambda flag=flag: guards.unshare(flag))
    guards.attempt(report, skip, OWN_ROOT, lambda: guards.own_root("/proc"))
    guards.attempt(report, skip, OWN_PIDS, lambda: guards.unshare(guards.NEW_PID))
    return report


class Zygote:
    """Forks for one job after the other. `report` says of each guard set up so far why it is not active, "" where it is."""

    def __init__(self, channel: socket.socket, user: int, skip: frozenset[str], report: dict[str, str]):
        self.channel, self.skip = channel, skip
        change = os.geteuid() == 0 and "unprivileged user" not in skip
        self.user, self.checker_user = (user, user + 1) if change else (os.getuid(), os.getuid())
        self.own_root, self.own_pids = not report[OWN_ROOT], not report[OWN_PIDS]

    def trial(self) -> dict[str, str]:
        """What `confine` achieves here, and whether a program could still read the standard library."""
        read, write = os.pipe()
        with self.folder() as folder:
            if not (child := os.fork()):
                report = guards.confine(folder, self.user, limits({}), self.skip)
                guards.attempt(report, frozenset(), "interpreter", lambda: os.close(os.open(os.__file__, os.O_RDONLY)))
                os.write(write, json.dumps(report).encode())
                os._exit(0)
            os.close(write)
            with open(read, "rb") as file:
                report = json.loads(file.read() or "{}")
            os.waitpid(child, 0)
        return report

    def job(self, options: dict[str, Any]) -> dict[str, Any]:
        """{"verdicts": one text per test that was run, "ending": why no more were, or "", "output": its beginning}."""
        verdicts, verdict_end = os.pipe()
        output, output_end = os.pipe()
        with self.folder() as folder:
            if not (checker := os.fork()):
                self.check(options, folder, verdict_end, output_end)
            try:
                os.close(verdict_end)
                os.close(output_end)
                ending, lines, printed = watch(verdicts, output, options["deadline"], options["output_bytes"])
            finally:
                self.kill(checker)
                os.close(verdicts)
                os.close(output)
        if not lines:  # the tests may still be in the socket, where the next job would take them for its own
            sys.exit("the checker did not start")
        return {"verdicts": lines[1:], "ending": ending, "output": printed[:KEPT].decode(errors="replace")}

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Where a program may write: on a file system of its own that goes with it, or else in a temporary folder."""
        if self.own_root:
            yield "/tmp"
            return
        path = tempfile.mkdtemp(prefix="tacit-program-")
        os.chown(path, self.user, -1)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def kill(self, checker: int) -> None:
        """Kills whatever the job has left, and waits until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(checker, signal.SIGKILL)
            if self.own_pids and os.getpid() == 1:
                os.kill(-1, signal.SIGKILL)  # everything in the namespace of which this is the first process
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    # --- in the children ---

    def check(self, options: dict[str, Any], folder: str, verdicts: int, output: int) -> NoReturn:
        """The checker: forks the program, then receives the tests, then shuts itself in as well."""
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setpgid(0, 0)
            if self.own_root:
                guards.own_folder(folder, options["disk_mb"], self.user)
            if self.own_pids:
                guards.unshare(guards.NEW_PID)
            ours, theirs = socket.socketpair()
            if not (program := os.fork()):
                self.program(options, folder, theirs.detach(), output)
            theirs.close()
            work = json.loads(receive(self.channel))
            os.write(verdicts, b'"tests received"\n')
            self.channel.close()
            redirect(output)
            guards.confine(folder, self.checker_user, limits(options), self.skip)
            peer = Peer(ours, ended=lambda: status(program))
            for verdict in run_tests(peer, work["program"], work["setup"], work["tests"], work["entry_point"]):
                os.write(verdicts, json.dumps(verdict).encode() + b"\n")
        finally:
            os._exit(0)

    def program(self, options: dict[str, Any], folder: str, channel: int, output: int) -> NoReturn:
        """The untrusted one: nothing is left to it but its folder, the socket to the checker (3) and its output (1, 2)."""
        try:
            if self.own_pids:
                os.setpgid(0, 0)  # away from the checker's, which it could send a signal to; its namespace will end it
            redirect(output)
            os.dup2(channel, 3)
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            os.chdir(folder)
            os.environ["HOME"] = os.environ["TMPDIR"] = folder
            guards.confine(folder, self.user, limits(options), self.skip)
            module = sys.modules["program"] = types.ModuleType("program")
            Peer(socket.socket(fileno=3), vars(module)).serve()
        finally:
            os._exit(0)


def limits(options: dict[str, Any]) -> dict[int, int]:
    """Of one process: s of computing, bytes of memory and of a file, open files; and the processes of the sandbox's user."""
    return {
        resource.RLIMIT_CPU: int(options.get("deadline", 1)) + 2,
        resource.RLIMIT_AS: options.get("memory_mb", 512) * 2**20,
        resource.RLIMIT_FSIZE: options.get("disk_mb", 16) * 2**20,
        resource.RLIMIT_NPROC: options.get("processes", 8),
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }


def redirect(output: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(null)


def watch(verdicts: int, output: int, deadline: float, most: int) -> tuple[str, list[str], bytes]:
    """Reads both pipes until the checker has ended, time is up or there is too much output: (why it was cut short or "", verdicts, output)."""
    end, open_pipes, printed = time.monotonic() + deadline, [verdicts, output], 0
    read = {verdicts: bytearray(), output: bytearray()}
    ending = ""
    while verdicts in open_pipes and not ending:
        ready = select.select(open_pipes, [], [], max(0.0, end - time.monotonic()))[0]
        for pipe in ready:
            if not (data := os.read(pipe, 2**16)):
                open_pipes.remove(pipe)
            if pipe == verdicts or len(read[pipe]) < 4 * KEPT:
                read[pipe] += data
            printed += len(data) if pipe == output else 0
        if printed > most:
            ending = f"printed more than {most} bytes"
        elif verdicts in open_pipes and time.monotonic() >= end:
            ending = f"timed out after {deadline:g} s"
    complete = read[verdicts].rpartition(b"\n")[0]
    return ending, [json.loads(line) for line in complete.splitlines()], bytes(read[output])


def status(pid: int) -> str:
    """How a child ended: "exit code 0", "signal 9". It is ending already, or has cut the connection by itself."""
    for _ in range(100):
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(code)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        time.sleep(0.002)
    return "it still runs"
