"""The native decoder's library: compiled by the system's compiler when first used, kept in a cache, and called through ctypes."""

from __future__ import annotations

import ctypes as c
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
FLAGS = "-std=c++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-strict-aliasing -shared -fPIC -pthread"
COMPILE_SECONDS = 300

Poll = c.CFUNCTYPE(c.c_int32)


class Seen(c.Structure):
    """As in drawing.h."""

    _fields_ = [("rows", c.POINTER(c.c_int64)), ("tokens", c.POINTER(c.c_int64)), ("count", c.c_int64), ("ended", c.POINTER(c.c_uint8))]


See = c.CFUNCTYPE(c.c_int32, c.POINTER(Seen))


class Shape(c.Structure):
    """As in model.h."""

    _fields_ = [
        *((name, c.c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "width", "inner", "vocabulary", "stored_bf16", "computed_bf16")),
        ("epsilon", c.c_float),
        ("scale", c.c_float),
    ]


class Draw(c.Structure):
    """As in drawing.h; addresses of arrays."""

    _fields_ = [
        ("ids", c.c_void_p),
        ("starts", c.c_void_p),
        ("prompts", c.c_int64),
        ("rows", c.c_void_p),
        ("limits", c.c_void_p),
        ("offsets", c.c_void_p),
        ("keys", c.c_void_p),
        ("count", c.c_int64),
        ("temperature", c.c_double),
        ("top_p", c.c_double),
        ("stop_ids", c.c_void_p),
        ("stop_count", c.c_int64),
        ("tokens", c.c_void_p),
        ("logp", c.c_void_p),
        ("entropy", c.c_void_p),
        ("lengths", c.c_void_p),
        ("finished", c.c_void_p),
        ("at_once", c.c_int64),
        ("threads", c.c_int32),
        ("steps", c.c_int32),
        ("poll", Poll),
        ("seen", See),
        ("drawn", c.c_void_p),
    ]


class Unavailable(Exception):
    """The library cannot be had here; the message says why."""


@cache
def library() -> c.CDLL:
    """The library, compiled if it is not in the cache. Raises Unavailable."""
    compiler = find_compiler()
    flags = [*shlex.split(FLAGS), native_flag(), *shlex.split(os.environ.get("TACIT_NATIVE_FLAGS", ""))]
    place = cache_folder() / f"decoder-{key(compiler, flags)}.so"
    if not place.exists():
        build(compiler, flags, place)
    try:
        return declared(c.CDLL(str(place)))
    except OSError as error:
        raise Unavailable(f"{place} cannot be loaded ({error}); remove it to have it compiled again") from None


def find_compiler() -> str:
    """The path of the C++ compiler: $CXX, else the first of c++, g++ and clang++."""
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    raise Unavailable("there is no C++ compiler ($CXX, c++, g++ or clang++)")


def native_flag() -> str:
    return "-mcpu=native" if platform.machine() == "arm64" else "-march=native"


def cache_folder() -> Path:
    """$TACIT_CACHE, else tacit/ in the user's cache."""
    chosen = os.environ.get("TACIT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tacit"


def key(compiler: str, flags: list[str]) -> str:
    """Changes with the sources, the compiler, the flags and the processor."""
    try:
        known = subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler {compiler} does not run ({error})") from None
    parts = [known, " ".join(flags).encode(), _processor().encode(), *(path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.is_file())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> str:
    """The processor and what it can do: a home directory may be shared by unlike machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), platform.processor(), *sorted({line for line in lines if line.startswith(wanted)})])


def build(compiler: str, flags: list[str], place: Path) -> None:
    """Compiles to `place`: one process at a time, the others wait and find it there. Raises Unavailable."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if place.exists():
                return
            print(f"tacit: compiling the native decoder with {Path(compiler).name}, once, about 10 seconds", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                made = Path(folder) / place.name
                command = [compiler, *flags, str(SOURCES / "decoder.cpp"), "-o", str(made)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
                if done.returncode != 0:
                    complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
                    raise Unavailable(f"{compiler} failed: {complaint}")
                os.replace(made, place)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{compiler} took more than {COMPILE_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"nothing can be written to {place.parent} ({error.strerror}); set TACIT_CACHE to a folder of yours") from None


def declared(lib: c.CDLL) -> c.CDLL:
    """With the types of its functions."""
    pointer, whole = c.c_void_p, c.c_int32
    for name, result, arguments in [
        ("tacit_model", pointer, [c.POINTER(Shape)]),
        ("tacit_forget", None, [pointer]),
        ("tacit_pack", whole, [pointer, c.POINTER(pointer)]),
        ("tacit_rotary", None, [pointer, pointer, pointer, whole]),
        ("tacit_prefill", whole, [pointer, pointer, pointer, whole, pointer, whole, Poll, c.POINTER(pointer)]),
        ("tacit_fork", pointer, [pointer, pointer, c.c_int64]),
        ("tacit_release", None, [pointer]),
        ("tacit_step", whole, [pointer, pointer, pointer, pointer, pointer, whole, Poll]),
        ("tacit_draw", whole, [pointer, c.POINTER(Draw)]),
    ]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
