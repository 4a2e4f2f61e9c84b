"""Seccomp: system calls that a short program has no use for are refused with EPERM. Works without any privilege.

Refused are: sockets; other programs; signals to, and a look or a write into, other processes; new sessions and process groups (what is killed as a
group stays one); namespaces and mounts; System V memory; and the calls whose implementation has most often been a way out of a sandbox.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

TABLE = """
socket 41 198 | execve 59 221 | execveat 322 281 | kill 62 129 | tkill 200 130 | tgkill 234 131 | rt_sigqueueinfo 129 138
rt_tgsigqueueinfo 297 240 | pidfd_send_signal 424 424 | pidfd_open 434 434 | pidfd_getfd 438 438 | ptrace 101 117 | kcmp 312 272
process_vm_readv 310 270 | process_vm_writev 311 271 | process_madvise 440 440 | setsid 112 157 | setpgid 109 154 | unshare 272 97
setns 308 268 | chroot 161 51 | pivot_root 155 41 | mount 165 40 | umount2 166 39 | open_tree 428 428 | move_mount 429 429
fsopen 430 430 | fsconfig 431 431 | fsmount 432 432 | fspick 433 433 | mount_setattr 442 442 | open_by_handle_at 304 265 | shmget 29 194
msgget 68 186 | semget 64 190 | setpriority 141 140 | ioprio_set 251 30 | sched_setparam 142 118 | sched_setscheduler 144 119
sched_setaffinity 203 122 | sched_setattr 314 274 | migrate_pages 256 238 | move_pages 279 239 | bpf 321 280 | perf_event_open 298 241
userfaultfd 323 282 | io_uring_setup 425 425 | io_uring_enter 426 426 | io_uring_register 427 427 | keyctl 250 219 | add_key 248 217
request_key 249 218 | personality 135 92 | syslog 103 116 | acct 163 89 | quotactl 179 60
"""  # name, number on x86_64, number on aarch64
REFUSED = {name: (int(x86), int(arm)) for name, x86, arm in (row.split() for row in TABLE.replace("\n", "|").split("|") if row)}
CLONE, CLONE3, PRLIMIT, FCNTL, PRCTL = (56, 220), (435, 435), (302, 261), (72, 25), (157, 167)
PR_SET_PDEATHSIG = 1  # to take it back would be to outlive the sandbox
NAMESPACES = 0x7E020080  # CLONE_NEW… flags
OWNER_AND_SIGNAL = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: they have the kernel send a signal to any process of the same user

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH_…
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENT_0, ARGUMENT_1 = 0, 4, 16, 24  # offsets in struct seccomp_data
PR_SET_SECCOMP, MODE_FILTER = 22, 2


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter as instructions (code, jump if true, jump if false, operand). Raises OSError for a machine whose numbers are not known."""
    if machine not in MACHINES:
        raise OSError(f"no table of system calls for {machine}")
    column, architecture = MACHINES[machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        code += _unless(AT_LEAST, 0x40000000, [(RETURN, 0, 0, EPERM)])  # the x32 calls: the same ones under other numbers
    for numbers in REFUSED.values():
        code += _unless(EQUAL, numbers[column], [(RETURN, 0, 0, EPERM)])
    code += _unless(EQUAL, CLONE3[column], [(RETURN, 0, 0, ENOSYS)])  # its flags are out of sight; the C library then takes clone
    code += _unless(EQUAL, CLONE[column], [(LOAD, 0, 0, ARGUMENT_0), (ANY_BIT, 0, 1, NAMESPACES), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)])
    code += _unless(EQUAL, PRLIMIT[column], [(LOAD, 0, 0, ARGUMENT_0), (EQUAL, 1, 0, 0), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)])
    code += _unless(
        EQUAL, PRCTL[column], [(LOAD, 0, 0, ARGUMENT_0), *_unless(EQUAL, PR_SET_PDEATHSIG, [(RETURN, 0, 0, EPERM)]), (RETURN, 0, 0, ALLOW)]
    )
    owners = [step for value in OWNER_AND_SIGNAL for step in _unless(EQUAL, value, [(RETURN, 0, 0, EPERM)])]
    code += _unless(EQUAL, FCNTL[column], [(LOAD, 0, 0, ARGUMENT_1), *owners, (RETURN, 0, 0, ALLOW)])
    return [*code, (RETURN, 0, 0, ALLOW)]


def _unless(test: int, operand: int, body: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """`body`, passed over where the test fails."""
    return [(test, 0, len(body), operand), *body]


def install() -> None:
    """Puts this process, and whatever it forks, under the filter for good; no_new_privs must be set. Raises OSError where the kernel refuses."""
    code = program(platform.machine() if sys.platform == "linux" else sys.platform)
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(header), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
