"""What the benchmarks share: the same small model for both libraries, TRL's trainer as it is set up best for a CPU, and the place of the run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from tacit.config import TinyConfig
from tacit.core.policy import Policy
from tacit.core.tiny import char_tokenizer, tiny_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore")


def place() -> dict[str, Any]:
    """Versions and machine, for the record."""
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "accelerate", "numpy")}
    return {"versions": {"python": platform.python_version(), **versions}, "machine": _machine()}


def _machine() -> dict[str, Any]:
    found = {"cores": os.cpu_count(), "kernels": torch.backends.cpu.get_cpu_capability()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in info.read_text().splitlines() if ":" in line)
        flags = {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"} & set(lines.get("flags", "").split())
        found |= {"cpu": lines.get("model name", platform.processor()), "flags": sorted(flags)}
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_json_on_stdout() -> Iterator[dict[str, Any]]:
    """Fill the dict that is yielded: it is printed at the end. What libraries print meanwhile goes to stderr."""
    result: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        start = time.perf_counter()
        yield result
        result |= {"seconds": round(time.perf_counter() - start, 1), **place()}
    print(json.dumps(result, indent=1))


@contextlib.contextmanager
def saved_model(config: TinyConfig, alphabet: str, seed: int, change: Callable[[PreTrainedModel], None] | None = None) -> Iterator[Path]:
    """A folder with a freshly initialised model, `change` applied, and its tokenizer, from which both sides load."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = char_tokenizer(alphabet)
        model = tiny_model(config, tokenizer, seed=seed)
        if change is not None:
            change(model)
        Policy(model, tokenizer).save(folder)
        yield Path(folder)


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def load_tacit(folder: Path, *, bf16: bool = False) -> Policy:
    return Policy(load(folder), AutoTokenizer.from_pretrained(folder), bf16=bf16)


def trl_trainer(folder: Path, output: Path, prompts: list[str], reward: Any, settings: dict[str, Any], **arguments: Any) -> GRPOTrainer:
    """TRL's trainer on the CPU, tuned: no gradient checkpointing (its default), nothing logged or saved on the way, fp32 unless told."""
    quiet = {"report_to": "none", "logging_steps": 10**6, "save_strategy": "no", "disable_tqdm": True, "dataloader_num_workers": 0}
    tuned = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "shuffle_dataset": False, "dataloader_pin_memory": False}
    return GRPOTrainer(
        model=load(folder),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(output), **(quiet | tuned | settings)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **arguments,
    )
