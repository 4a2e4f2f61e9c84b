"""Guards that the kernel offers a process to shut itself in, one function each. All raise OSError where the kernel does not allow it.

Called through ctypes, since Python 3.11 has none of them. Namespaces and the root of the file system are set up once, for the process that forks
programs; what `confine` does, each program and each checker does to itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Callable, Mapping

from tacit.rewards.box import seccomp

NEW_USER, NEW_PID, NEW_NET, NEW_MOUNT, NEW_IPC, NEW_UTS = 0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000, 0x04000000
RDONLY, NOSUID, NODEV, BIND, RECURSIVE, PRIVATE, REMOUNT = 0x1, 0x2, 0x4, 0x1000, 0x4000, 0x40000, 0x20
DETACH, AT_RECURSIVE, AT_FDCWD = 2, 0x8000, -100
PIVOT_ROOT, MOUNT_SETATTR = {"x86_64": 155, "aarch64": 41}, 442
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 1, 24, 38, 4

DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom"]
libc = ctypes.CDLL(None, use_errno=True)


def attempt(report: dict[str, str], skip: frozenset[str], guard: str, action: Callable[[], None]) -> bool:
    """Tries a guard and writes down why it is not there; "" where it is."""
    try:
        if guard in skip:
            raise OSError("left out on request")
        action()
        report[guard] = ""
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a C library without the call
        report[guard] = str(error) or type(error).__name__
    return not report[guard]


def readable() -> list[str]:
    """What a program may read: the standard library and what the interpreter loads; a path below another one is left out."""
    stdlib = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")]
    system = [*stdlib, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", *DEVICES]
    found = sorted({path for path in system if path and os.path.exists(path)})
    return [p for p in found if not any(p != q and p.startswith(q + "/") for q in found)]


# --- once: namespaces and a root of its own ---


def unshare(flags: int) -> None:
    _check(libc.unshare(flags), "unshare")


def own_user() -> None:
    """A user namespace in which this user is itself; in it, an ordinary user may make the others."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEW_USER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def own_root(base: str) -> None:
    """A mount namespace whose root holds what is `readable`, read-only, and an empty /tmp: no /proc, no /home, no /etc. `base` is an empty folder."""
    unshare(NEW_MOUNT)
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", base, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for path in readable():
        target = base + path
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT, 0o644))
        _mount(path, target, None, BIND | RECURSIVE)
        _set_attributes(target, RDONLY | NOSUID if path in DEVICES else RDONLY | NOSUID | NODEV)
    os.mkdir(base + "/tmp")
    _mount(None, base, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir(base)
    _check(libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", DETACH), "umount")
    os.chdir("/")


def own_folder(path: str, megabytes: int, uid: int) -> None:
    """A mount namespace of its own, with an empty file system of bounded size at `path`, where only `uid` may write."""
    unshare(NEW_MOUNT)
    _mount("tmpfs", path, "tmpfs", NOSUID | NODEV, f"size={megabytes}m,nr_inodes=4096,mode=700,uid={uid}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def _set_attributes(path: str, flags: int) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", flags, 0, 0, 0), 32)
    _check(libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(32)), f"mount_setattr {path}")


# --- for each process: everything it gives up ---


def confine(folder: str, uid: int, limits: Mapping[int, int], skip: frozenset[str]) -> dict[str, str]:
    """Shuts this process in, for good: limits, user, capabilities, privileges, files, its end, system calls. Says which of these did not work."""
    report: dict[str, str] = {}
    attempt(report, skip, "resource limits", lambda: _limit(limits))
    attempt(report, skip, "unprivileged user", lambda: _become(uid))
    attempt(report, skip, "no capabilities", _drop_capabilities)
    attempt(report, skip, "no new privileges", lambda: _prctl(PR_SET_NO_NEW_PRIVS, 1))
    attempt(report, skip, "Landlock", lambda: landlock(readable(), folder))
    attempt(report, skip, "end with the parent", end_with_parent)
    attempt(report, skip, "seccomp", seccomp.install)
    return report


def _limit(limits: Mapping[int, int]) -> None:
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))


def _become(uid: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _prctl(PR_SET_DUMPABLE, 0)


def _drop_capabilities() -> None:
    """None are left, in no set; root under a plain user id has lost its own already, one in a user namespace has not."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    _check(libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def landlock(paths: list[str], folder: str) -> None:
    """Files: read below `paths`, read and write below `folder`, nothing else. No TCP and no signals out, where the kernel knows these."""
    version = _check(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "Landlock")
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    read, on_a_file = 0b1101, files & 0b1100_0000_0000_0111 & ~1
    handled = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    handled = handled[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _check(libc.syscall(LANDLOCK_CREATE, ctypes.create_string_buffer(handled, len(handled)), ctypes.c_size_t(len(handled)), 0), "Landlock")
    for path, allowed in [*((p, read if os.path.isdir(p) else on_a_file if p in DEVICES else 0b100) for p in paths), (folder, files)]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place), 12)
        _check(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"Landlock rule for {path}")
        os.close(place)
    _check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Has the kernel send this process a signal when the thread that started it ends; undone by a change of user, so call it after that."""
    _prctl(PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    _check(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), f"prctl {option}")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
