"""What a number depends on beside the recipe: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tacit import __version__
from tacit.core.runtime import Runtime


def environment(runtime: Runtime) -> dict[str, Any]:
    """That of a run: the machine, and how the run uses it."""
    device = {"device": torch.cuda.get_device_name(runtime.device)} if runtime.device.type == "cuda" else {}
    return machine() | device | {"processes": runtime.world_size, "precision": runtime.precision}


def machine() -> dict[str, Any]:
    return {
        "tacit": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "numpy")},
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of the checkout this package runs from, "+" behind it when files differ; None for an installed package."""
    here = Path(__file__).parent
    try:
        told = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() if tracked.returncode == 0 else None


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
