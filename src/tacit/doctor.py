"""What is there on this machine: versions, devices, data sets, and what guards programs written by models."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from tacit import __version__
from tacit.core.environment import processor
from tacit.generation.decoders import usable_threads
from tacit.generation.native_library import Unavailable, cache_folder, find_compiler, library
from tacit.rewards.sandbox import active_guards
from tacit.tasks.data import data_root

PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "plotly", "openai", "math-verify")
SETS = ("gsm8k", "math500", "svamp", "aqua", "mbpp", "humaneval", "ifeval", "hh_harmless", "behavior_choices")  # what the built-in tasks read


def findings() -> Iterator[tuple[str, str]]:
    """(what, how it is) line by line; nothing is an error here."""
    yield "tacit", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "packages", ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    yield "processor", f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{device.name}, {device.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        yield "mps", "available"
    if not torch.cuda.device_count() and not torch.backends.mps.is_available():
        yield "accelerator", "none: everything runs on the CPU"
    yield "native decoder", native_decoder()
    root = data_root()
    yield "data", f"{root.resolve()}" + ("" if root.is_dir() else ", which is not there") + " (TACIT_DATA changes it)"
    there = [name for name in SETS if (root / name).is_dir()]
    yield "data sets", ", ".join(there) or "none"
    if missing := [name for name in SETS if name not in there]:
        yield "not there", ", ".join(missing)
    for guard, active, detail in active_guards():
        yield f"sandbox, {guard}", f"{'active' if active else 'NOT active'}" + (f": {detail}" if detail else "")


def native_decoder() -> str:
    """Compiled here if it was not before."""
    try:
        library()
    except Unavailable as error:
        return f"NOT available: {error}"
    return f"compiled by {find_compiler()}, kept in {cache_folder()}, {usable_threads()} threads"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
