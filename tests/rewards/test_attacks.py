"""Programs that attack: each is prevented, or all programs are refused; it is recorded as what it was, in time, and the run goes on.

Every attack meets all guards at once, and then each line of defence alone: namespaces without system call filter and Landlock, and these two
without namespaces, as on a machine that allows no more. The latter runs with the caller's user, since an interpreter in a closed home directory could
not be read by another one; as `unsafe`, since that much is not enough for root. No test skips.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tacit.core.rollouts import Prompt
from tacit.rewards.base import Score
from tacit.rewards.programs import ProgramTests
from tacit.rewards.sandbox import Limits, Sandbox, active_guards, guards, missing

NAMESPACES = ("user namespace", "network namespace", "IPC namespace", "UTS namespace", "file system of its own", "PID namespace")
LINES = {
    "all guards": ((), "required"),
    "namespaces alone": (("Landlock", "seccomp"), "required"),
    "Landlock and seccomp alone": ((*NAMESPACES, "unprivileged user"), "unsafe"),
}
LIMITS = Limits(deadline=2.0)


class Line:
    """A line of defence, under attack."""

    def __init__(self, name: str, sandbox: Sandbox):
        self.name, self.sandbox = name, sandbox

    def attack(self, program: str, test: str = "assert attack() == 'prevented'") -> dict:
        """What the sandbox says of the attack; then a good program must still pass."""
        began = time.monotonic()
        answer = self.sandbox.submit(program, [test]).result()
        assert time.monotonic() - began < LIMITS.deadline + 2
        assert not answer.failure, answer
        good = self.sandbox.submit("def f(x):\n    return x + 1", ["assert f(1) == 2"]).result()
        assert good.value == {"verdicts": [""], "ending": "", "output": ""}, good
        return answer.value


@pytest.fixture(scope="module", params=LINES)
def line(request):
    without, mode = LINES[request.param]
    if mode == "required" and missing(guards(without)):
        with pytest.raises(ValueError, match="model-written programs cannot be isolated on this machine"):
            Sandbox(mode=mode, without=without)
        yield Everything()
    else:
        line = Line(request.param, Sandbox(LIMITS, workers=1, mode=mode, without=without))
        yield line
        line.sandbox.close()


class Everything:
    """Where nothing is run, every attack is prevented."""

    def attack(self, program: str, test: str = "") -> None:
        return None


def prevented(found: dict | None) -> bool:
    return found is None or (found["verdicts"] == [""] and not found["ending"])


def test_infinite_loop(line):
    found = line.attack("def attack():\n    while True: pass")
    assert found is None or (found["verdicts"], found["ending"]) == ([], "timed out after 2 s")


def test_infinite_loop_that_ignores_signals_before_any_test(line):
    found = line.attack(
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass"
    )
    assert found is None or found["ending"] == "timed out after 2 s"


def test_fork_bomb(line):
    """Bounded here, lest it hurt where it works."""
    program = """
import os, time
def attack():
    forked = 0
    for _ in range(60):
        try:
            if not os.fork():
                time.sleep(60)
                os._exit(0)
            forked += 1
        except OSError:
            break
    return forked
"""
    as_root = isinstance(line, Line) and line.name == "Landlock and seccomp alone" and os.geteuid() == 0  # unsafe: root's processes are not counted
    assert prevented(line.attack(program, f"assert attack() < {61 if as_root else 10}"))


def test_nothing_is_left_running(line):
    program = """
import os, time
def attack():
    for _ in range(3):
        try:
            if not os.fork():
                try: os.setsid()
                except OSError: pass
                if not os.fork():
                    time.sleep(60)
                time.sleep(60)
        except OSError:
            pass
    return 'prevented'
"""
    assert prevented(line.attack(program))
    if isinstance(line, Line):
        deadline = time.monotonic() + 5  # what was killed takes a moment to leave on a busy machine
        while len(alike(line.sandbox.pool.pids()[0])) > 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(alike(line.sandbox.pool.pids()[0])) <= 2  # the sandbox, and the first process of its PID namespace


SLEEPER = "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0)\nif not os.fork(): time.sleep(60)\ntime.sleep(60)"


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("end", ["closed", "killed with its parent"])
def test_nothing_outlives_the_sandbox(line, end):
    without, mode = LINES[line]
    mode = "unsafe" if missing(guards(without)) else mode
    code = (
        "import os, sys, time\nfrom tacit.rewards.sandbox import *\n"
        f"sandbox = Sandbox(workers=1, mode={mode!r}, without={without!r})\nsandbox.submit('', ['pass']).result()\n"
        f"sandbox.submit({SLEEPER!r}, ['pass'])\nprint(*sandbox.pool.pids(), flush=True)\nsys.stdin.read()\n"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env={**os.environ, "PYTHONPATH": path}, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        running = alike(pid)
        assert len(running) >= 3
        parent.stdin.close() if end == "closed" else parent.kill()
        parent.wait(timeout=10)
        end_of_patience = time.monotonic() + 2
        while any(readable(path) for path in running) and time.monotonic() < end_of_patience:
            time.sleep(0.02)
        assert not [path for path in running if readable(path)]


def alike(pid: int) -> list[Path]:
    """Processes with the command line of this one, which names its sandbox: those that it has forked."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path) == command]


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_ten_gigabytes_of_memory(line):
    program = "def attack():\n    try:\n        bytearray(10 * 2**30)\n    except MemoryError:\n        return 'prevented'"
    assert prevented(line.attack(program))
    found = line.attack("def attack():\n    return [0] * (10 * 2**30 // 8)")
    assert found is None or found["verdicts"] == ["raised MemoryError"]


def test_a_gigabyte_of_output(line):
    found = line.attack("import os\ndef attack():\n    for _ in range(1024): os.write(1, b'x' * 2**20)")
    assert found is None or (found["verdicts"] == [] and found["ending"] == "printed more than 1048576 bytes")


def test_a_gigabyte_on_disk(line):
    program = """
def attack():
    try:
        with open('big', 'wb') as file:
            for _ in range(1024):
                file.write(bytes(2**20))
    except OSError as error:
        return 'prevented'
"""
    found = line.attack(program)
    assert prevented(found) or "signal 25" in found["verdicts"][0]  # SIGXFSZ


@pytest.mark.parametrize("where", ["in a test", "at once"])
@pytest.mark.parametrize("how", ["os._exit(0)", "os.abort()", "sys.exit(0)", "os.close(3)"])
def test_leaving_early(line, how, where):
    program = f"import atexit, os, sys\natexit.register(print, 'passed')\ndef attack():\n    {how}\n    return 'survived'\n"
    found = line.attack(program + ("attack()" if where == "at once" else ""))
    if found is None:
        return
    (verdict,) = found["verdicts"]
    if "sys.exit" in how:
        assert verdict == "raised ProgramError: SystemExit: 0"
    else:
        assert verdict.startswith("the program ended before it answered") and not found["ending"]
        assert "_exit" not in how or "exit code 0" in verdict


def test_the_parents_environment(line, monkeypatch):
    monkeypatch.setenv("TACIT_TEST_SECRET", "hunter2")
    program = f"""
import os
def attack():
    seen = dict(os.environ)
    for pid in ['self', '1', {os.getpid()}, {os.getppid()}, os.getppid(), *range(os.getpid() - 20, os.getpid() + 20)]:
        for name in ('environ', 'cmdline', 'maps', 'mem', 'root/etc/passwd'):
            try:
                with open(f'/proc/{{pid}}/{{name}}', 'rb') as file:
                    seen[f'{{pid}}/{{name}}'] = file.read(100)
            except OSError:
                pass
    return sorted(set(seen) - {{'HOME', 'TMPDIR', 'LC_CTYPE'}})
"""
    assert prevented(line.attack(program, "assert attack() == []"))


def test_files_outside_its_folder(line, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    os.chmod(tmp_path, 0o777)
    program = f"""
import os
def attack():
    done = []
    for path in [{str(tmp_path / "written.txt")!r}, '/written.txt', '/usr/lib/written.txt', '/proc/self/comm', os.path.expanduser('~/../x'),
                 os.__file__, {str(Path(__file__).with_suffix(".new"))!r}, '../written.txt', '/dev/shm/written', '/var/tmp/written']:
        try:
            with open(path, 'w') as file:
                file.write('x')
            done.append('wrote ' + path)
        except OSError:
            pass
    for path in [{str(secret)!r}, '/etc/passwd', '/etc/shadow', {__file__!r}]:
        try:
            done.append('read ' + open(path).read(1) + path)
        except OSError:
            pass
    for action in [lambda: os.remove({str(secret)!r}), lambda: os.listdir({str(tmp_path)!r}), lambda: os.symlink('/', {str(tmp_path / "link")!r})]:
        try:
            action()
            done.append('changed')
        except OSError:
            pass
    with open('mine.txt', 'w') as file:  # this is allowed
        file.write('x')
    return done
"""
    assert prevented(line.attack(program, "assert attack() == []"))
    assert sorted(os.listdir(tmp_path)) == ["secret.txt"]


def test_what_a_program_wrote_is_gone_for_the_next(line):
    program = "import os\ndef attack():\n    left = os.listdir()\n    open('left.txt', 'w').close()\n    return left"
    for _ in range(2):
        assert prevented(line.attack(program, "assert attack() == []"))


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX"])
def test_a_socket_to_a_listener(line, family, tmp_path):
    with socket.socket(getattr(socket, family)) as listener:
        listener.bind({"AF_INET": ("127.0.0.1", 0), "AF_INET6": ("::1", 0), "AF_UNIX": str(tmp_path / "s")}[family])
        listener.listen()
        listener.settimeout(0.05)
        program = f"""
import socket
def attack():
    try:
        with socket.socket(socket.{family}) as s:
            s.settimeout(1)
            s.connect({listener.getsockname()!r})
            s.send(b'hello')
        return 'connected'
    except OSError:
        return 'prevented'
"""
        assert prevented(line.attack(program))
        with pytest.raises(TimeoutError):
            listener.accept()


def test_other_processes(line):
    """Signal 0 asks whether a signal would be let through."""
    program = f"""
import ctypes, os, resource
def attack():
    done = []
    for pid in {{{os.getpid()}, {os.getppid()}, os.getppid(), -1}} - {{0}}:
        for action in [lambda: os.kill(pid, 0), lambda: resource.prlimit(max(pid, 2), resource.RLIMIT_CPU)]:
            try:
                action()
                done.append(pid)
            except OSError:
                pass
        if pid > 0 and ctypes.CDLL(None).ptrace(16, pid, 0, 0) == 0:
            done.append('traced')
    return done
"""
    assert prevented(line.attack(program, "assert attack() == []"))


def test_a_new_user_namespace_with_its_capabilities(line):
    """Namespaces would be a way to capabilities and to the kernel code behind them; the filter closes it, the namespaces alone do not."""
    program = "import ctypes\ndef attack():\n    return ctypes.CDLL(None).unshare(0x10000000)"
    expected = "in (0, -1)" if isinstance(line, Line) and line.name == "namespaces alone" else "== -1"
    assert prevented(line.attack(program, f"assert attack() {expected}"))


LIAR = """
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __len__(self): return 2
    def __hash__(self): return hash((1, 2))
    def __iter__(self): return iter([Liar(), Liar()])
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __getattr__(self, name): return self
    __class__ = tuple
class LyingTuple(tuple, Liar):
    __eq__, __hash__ = Liar.__eq__, Liar.__hash__
class LyingInt(int):
    __eq__, __hash__ = Liar.__eq__, int.__hash__
"""


@pytest.mark.parametrize("lie", ["Liar()", "LyingTuple()", "[Liar(), Liar()]", "(LyingInt(7), LyingInt(7))", "{Liar(): 1}"])
def test_an_object_with_a_lying_eq(line, lie):
    for test in ("assert attack() == (1, 2)", "assert not attack() != (1, 2)", "assert attack() in [(1, 2)]", "assert tuple(attack()) == (1, 2)"):
        found = line.attack(f"{LIAR}\ndef attack(): return {lie}", test)
        assert found is None or found["verdicts"][0] != "", test


PATCHER = """
import builtins, gc, os, sys, types
for pipe in range(256):  # a success token on whatever is open
    try: os.write(pipe, b'""\\n"passed"\\n')
    except OSError: pass
builtins.AssertionError = type('AssertionError', (), {})
for name, module in list(sys.modules.items()):
    for key, value in list(vars(module).items()):
        if isinstance(value, (types.FunctionType, type)) and ('tacit' in name or 'unittest' in name):
            try: setattr(module, key, lambda *a, **k: '')
            except (AttributeError, TypeError): pass
for thing in gc.get_objects():
    if isinstance(thing, dict) and 'verdicts' in thing:
        thing['verdicts'] = ['']
frame = sys._getframe()
while frame:
    for value in frame.f_locals.values():
        if type(value).__name__ == 'Peer':
            try: value.encode = lambda v: True
            except Exception: pass
    frame = frame.f_back
def attack(): return 0
"""


def test_a_program_that_patches_the_checker(line):
    found = line.attack(PATCHER, "assert attack() == 1")
    assert found is None or found["ending"] or all(found["verdicts"])


def test_a_test_file_that_patches_the_checker_harms_no_verdict_but_its_own(line):
    test = "import sys\nsys.modules['tacit.rewards.box.checker'].run_tests = lambda *a: ['', '']\n" + PATCHER + "\nassert False"
    line.attack("def f(): pass", test)  # a good program passes after it, as `attack` asserts
    found = line.attack("def attack(): return 0", "assert attack() == 1")
    assert found is None or found["verdicts"] == ["assertion failed"]


def test_the_tests_are_not_in_the_programs_memory(line):
    program = """
import gc, sys
def attack(known):
    def holds(needle):
        texts = {x for owner in gc.get_objects() for x in gc.get_referents(owner) if isinstance(x, (str, bytes))}
        return sum(needle in (x if isinstance(x, str) else x.decode(errors='replace')) for x in texts if x is not needle)
    return holds(''.join(['open', 'sesame'])), holds(''.join(['well', 'known'])) > 0
"""
    assert prevented(line.attack(program, "expected = 'opensesame'\nassert attack(['wellknown']) == (0, True)"))


def test_here_every_attack_was_really_met_or_refused():
    """Not a way to skip: what the guards allow decides which, and it is printed by `tacit doctor`."""
    report = guards()
    assert active_guards()[-1][1] == (not missing(report))
    if missing(report):
        with pytest.raises(ValueError, match="cannot be isolated on this machine"):
            ProgramTests()
    else:
        reward = ProgramTests(limits=LIMITS, workers=1)
        prompt = Prompt("p", "", None, {"tests": ["assert attack() == 1"]})
        assert reward([prompt], ["def attack(): return 1"]) == [Score(1.0, {"passed": 1.0, "timed_out": 0.0, "crashed": 0.0, "refused": 0.0})]
        reward.close()
