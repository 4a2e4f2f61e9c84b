"""Sandbox: where programs that a model wrote may run.

A program gets processes of its own, forked from an interpreter that has shut itself in: namespaces for mounts, processes, network, IPC and host name
(and for users, where an ordinary user needs that to make the others), a root that holds nothing but the standard library, Landlock, a seccomp filter,
a user without rights when started by root, no capabilities, limits on time, memory, processes, files and output, an empty environment, and a folder
that goes with it. Which of these a machine allows is tried out, not assumed. For files, network and other processes at least one guard
must hold, root's rights must be given up, and the limits must hold; otherwise programs are refused, unless the user has said `unsafe`.

What it does not stop: a bug in the kernel, which programs still talk to; side channels (timing, caches, Rowhammer); burning the processor and the
memory that the limits grant, which are limits per process; reading the standard library, the kernel's version and the clock. Without a PID
namespace, the ids of other processes can be guessed, and a program may outlive a sandbox that something else kills with SIGKILL; without a file
system of its own, temporary files are bounded in size but not in number. It is a fence around what a language model writes while it is being
trained, not a place for an adversary's programs: those belong in a virtual machine.

How verdicts are kept honest is told in box/zygote.py and box/peer.py.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tacit.rewards.pool import Answer, Pool, Worker

START_DEADLINE = 30.0
GRACE = 1.5  # seconds past a program's deadline after which the sandbox itself is killed
NEEDED = {  # any one of these guards will do
    "files": ("file system of its own", "Landlock"),
    "network": ("network namespace", "seccomp"),
    "other processes": ("PID namespace", "seccomp"),
    "the rights of root": ("unprivileged user",),
    "time and memory": ("resource limits",),
    "the standard library": ("interpreter",),
}
_numbers = itertools.count(os.getpid())


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program: s in all; MB of memory of each of its `processes`; MB that it may write; bytes that it may print."""

    deadline: float = 5.0
    memory_mb: int = 512
    processes: int = 8
    disk_mb: int = 16
    output_bytes: int = 2**20


class Sandbox:
    """Runs programs and tests of them in `workers` enclosures. `without` names guards to leave out, as if the kernel had none.

    Raises ValueError where programs cannot be isolated from this machine, unless `mode` is "unsafe".
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        workers: int | None = None,
        mode: Literal["required", "unsafe"] = "required",
        without: Sequence[str] = (),
    ):
        if mode not in ("required", "unsafe"):
            raise ValueError(f"sandbox is {mode!r}: write 'required', or 'unsafe' to run programs where they cannot be isolated")
        if mode == "required" and (lacking := missing(guards(tuple(without)))):
            raise ValueError(
                f"model-written programs cannot be isolated on this machine, where nothing guards {lacking[0]}; "
                "run where the kernel allows it (see `tacit doctor`), or write `sandbox: unsafe` if they may do whatever you may do"
            )
        self.limits = limits or Limits()
        self.pool = Pool(lambda slot: Enclosure(tuple(without)), deadline=self.limits.deadline + GRACE, workers=workers)

    def submit(self, program: str, tests: Sequence[str], *, setup: str = "", entry_point: str | None = None) -> Future[Answer]:
        """Runs `tests` against `program`. The value of the answer is {"verdicts": [text for each test that was run, "" where it passed],
        "ending": why no more were, or "", "output": what was printed, its beginning}.
        """
        work = {"program": program, "setup": setup, "tests": list(tests), "entry_point": entry_point}
        return self.pool.put(json.dumps(asdict(self.limits)).encode(), json.dumps(work).encode())

    def close(self) -> None:
        self.pool.close()


class Enclosure(Worker):
    """A process that has shut itself in and forks programs; box/zygote.py is its side. `report` says of each guard why it is not active, or ""."""

    def __init__(self, without: tuple[str, ...]):
        source = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.append({source!r}); from tacit.rewards.box.zygote import main; sys.path.pop(); "
        code += f"main(int(sys.argv[1]), {next(_numbers)}, {list(without)!r})"
        self.report: dict[str, str] = {}
        super().__init__([sys.executable, "-I", "-S", "-u", "-c", code], cwd="/", env={})

    def start(self) -> None:
        try:
            self.report = json.loads(self.ask([], START_DEADLINE))["value"]
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"the sandbox could not start: {error or self.end()}") from error

    def kill(self) -> None:
        """Has it end what it runs, and itself; kills it if it does not."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            super().kill()


@functools.cache
def guards(without: tuple[str, ...] = ()) -> dict[str, str]:
    """Each guard, and why it is not active here, "" where it is. Found out by trying, once."""
    if sys.platform != "linux":
        return {"Linux": f"{sys.platform} has none of the guards"}
    enclosure = Enclosure(without)
    try:
        enclosure.start()
    finally:
        enclosure.remove()
    return enclosure.report


def missing(report: dict[str, str]) -> list[str]:
    """What no active guard stands for."""
    return [what for what, any_of in NEEDED.items() if not any(report.get(guard, "unknown") == "" for guard in any_of)]


def active_guards() -> list[tuple[str, bool, str]]:
    """(guard, active here, why not): what `tacit doctor` lists. The last one sums up whether programs would be run."""
    report = guards()
    rows = [(name, not why, why) for name, why in report.items()]
    lacking = missing(report)
    return [*rows, ("programs are isolated", not lacking, f"nothing guards {', '.join(lacking)}" if lacking else "")]
