"""How a worker of `vs_trl.py` talks: a JSON line in, a JSON line out. What libraries print goes to stderr."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


class Line:
    """The coordinator's end is stdin and what stdout was; from now on stdout is stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def hear(self) -> dict[str, Any] | None:
        """The next command; None when there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def tell(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._out, flush=True)


def arguments() -> argparse.Namespace:
    """Case, precision, threads of this process and the folder that both sides share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--job", choices=["make", "race", "prove"], default="race")
    return parser.parse_args()


def resident(which: str) -> float:
    """MB of this process: VmRSS now, VmHWM at its most."""
    return int(re.findall(rf"{which}:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def place() -> dict[str, Any]:
    """Versions and machine, for the record."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "accelerate", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    lines = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    flags = {"avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"} & set(lines.get("flags", "").split())
    machine = {
        "cpu": lines.get("model name", ""),
        "cores": os.cpu_count(),
        "flags": sorted(flags),
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }
    return {"versions": versions, "machine": machine}
