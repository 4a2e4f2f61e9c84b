"""Whether a recipe will run here: its parts are looked at one by one, the memory and disk it will take are forecast, and one small step is tried.

What is wrong does not end the checkup: all of it is told at once. The model is built without weights, so that one that does not fit here can be
judged too; its weights are loaded for the small step alone.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tacit import job
from tacit.config import ModelConfig, RLConfig, RunConfig, SFTConfig, WMSSConfig
from tacit.core import tiny
from tacit.core.policy import DTYPES, Policy, add_lora, load_tokenizer
from tacit.core.progress import SilentReporter
from tacit.core.rollouts import Prompt
from tacit.core.rundir import CONFIG, finished_policy
from tacit.core.runtime import Runtime
from tacit.forecast import MIB, Forecast, Sizes, Texts, disk, forecast, saved_bytes
from tacit.generation.native_decoder import unsuitable
from tacit.generation.native_library import Unavailable, library
from tacit.lengths import check_room, first_prompts
from tacit.rewards.base import load_reward
from tacit.tasks.base import Task, resolve_task

TIGHT = 0.8  # share of the memory from which on a forecast, right to a quarter, is told as tight
SHOWN = 60  # characters of an example


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a checkup; `wrong` where the recipe will not run as it is."""

    what: str
    how: str
    wrong: bool = False


class Checkup:
    """`findings` one after the other; a check that stands on one that failed is left out."""

    def __init__(self, config: RLConfig | SFTConfig):
        self.config = config
        self.task: Task | None = None
        self.prompts: list[Prompt] = []
        self.device: torch.device | None = None
        self.policy: Policy | None = None
        self.texts: Texts | None = None
        self.sound = True

    def findings(self) -> Iterator[Finding]:
        checks: dict[str, Callable[[], Iterator[Finding]]] = {
            "run": self._run,
            "device": self._device,
            "task": self._task,
            "reward": self._reward,
            "model": self._model,
            "lengths": self._lengths,
            "disk": self._disk,
            "memory": self._memory,
            "small step": self._step,
        }
        for what, check in checks.items():
            try:
                for finding in check():
                    self.sound &= not finding.wrong
                    yield finding
            except (ValueError, OSError) as error:
                self.sound = False
                yield Finding(what, str(error), wrong=True)

    def _run(self) -> Iterator[Finding]:
        config, folder = self.config, Path(self.config.output)
        yield Finding("run", f"kind: {config.kind}, {config.steps:,} steps, into {folder}")
        if (folder / CONFIG).exists():
            yield Finding("folder", f"{folder} holds a run already: go on with --resume, or choose another output")

    def _device(self) -> Iterator[Finding]:
        runtime = self.config.runtime
        made = Runtime(**runtime.model_dump(exclude={"processes"}), folder=self.config.output)
        made.close()
        self.device = made.device
        threads = "as many as suit the model" if runtime.threads is None else runtime.threads
        processes = f", {runtime.processes} processes ({runtime.distributed})" if runtime.processes > 1 else ""
        yield Finding("device", f"{made.device}, threads: {threads}{processes}, passes in {runtime.precision}")
        if runtime.trackers:
            yield Finding("trackers", ", ".join(runtime.trackers))

    def _task(self) -> Iterator[Finding]:
        config = self.config
        task = resolve_task(config.task)
        heldout = task.heldout(config.evaluation.prompts)
        self.prompts = first_prompts(task, heldout, config.seed)
        self.task = task
        rows = getattr(task, "train", None)
        stream = f"{len(rows):,} prompts to train on" if isinstance(rows, list) else "an endless stream of prompts"
        yield Finding("task", f"{config.task.name}: {stream}, {len(heldout):,} held out to evaluate on")
        example = task.prompt_at(0, config.seed)
        answer = "" if example.answer is None else f", its answer {shown(example.answer)}"
        yield Finding("first prompt", shown(example.text) + answer)

    def _reward(self) -> Iterator[Finding]:
        if (task := self.task) is None:
            return
        reward = load_reward(self.config.reward, task, sandbox=self.config.sandbox)
        name = self.config.reward or getattr(task, "reward", None) or "the task's own verifier"
        prompt = task.prompt_at(0, self.config.seed)
        solution = task.solve(prompt)
        if solution is None:
            yield Finding("reward", f"{name}; the task knows no solution to try it on")
            return
        score = reward([prompt], [solution])[0]
        if score.value is None:
            yield Finding("reward", f"{name} cannot judge the task's own solution: {score.failure or 'it gave no verdict'}", wrong=True)
        else:
            yield Finding("reward", f"{name}; it gives the task's own solution {score.value:g}")

    def _model(self) -> Iterator[Finding]:
        config = self.config
        if self.task is None:
            return
        self.policy = policy = skeleton(config, config.model, source(config), self.task)
        sizes = sizes_of(policy.model)
        trained = "all trained" if not sizes.adapters else f"{sizes.trained:,} trained"
        origin = source(config) or "built from scratch"
        kind = f"{type(policy.base_model).__name__}, {sizes.parameters:,} parameters in {config.model.dtype}, {trained}, {origin}"
        yield Finding("model", kind)
        yield Finding("tokenizer", f"{type(policy.tokenizer).__name__} of {len(policy.tokenizer):,} tokens")
        if isinstance(config, WMSSConfig):
            weak = sizes_of(self._weak(config).model)
            yield Finding("weak model", f"{weak.parameters:,} parameters, {config.weak}")

    def _weak(self, config: WMSSConfig) -> Policy:
        assert self.task is not None
        return skeleton(
            config, config.model.model_copy(update={"tiny": None} | ({"lora": None} if config.frozen else {})), run_or_model(config.weak), self.task
        )

    def _lengths(self) -> Iterator[Finding]:
        if (policy := self.policy) is None or self.task is None:
            return
        lengths = check_room(self.config, policy, self.prompts)
        limit, first = self.config.completion_limit, policy.encode_prompt(self.task.prompt_at(0, self.config.seed))
        context = f"the context holds {policy.context:,}" if policy.context < 2**31 else "no limit of the context is known"
        span = f"the first prompt has {len(first)}, of {len(lengths):,} looked at the longest {max(lengths):,}"
        yield Finding("tokens", f"{span}; a completion at most {limit:,}; {context}")
        solution = 0
        if isinstance(self.config, SFTConfig):
            solutions = [text for prompt in self.prompts if (text := self.task.solve(prompt)) is not None]
            if not solutions:
                raise ValueError(f"kind: {self.config.kind} learns from solutions, and task {self.config.task.name!r} knows none")
            solution = max(map(len, policy.encode_completions(solutions)))
        self.texts = Texts(max(lengths), solution)

    def _disk(self) -> Iterator[Finding]:
        if self.policy is None:
            return
        sizes, weak = sizes_of(self.policy.model), self._weak_sizes()
        needed, place = disk(self.config, sizes, weak), nearest(Path(self.config.output))
        free = shutil.disk_usage(place).free
        told = f"a checkpoint takes {size(saved_bytes(self.config, sizes, weak))}, the run at most {size(needed)}; {size(free)} are free"
        yield Finding("disk", told, wrong=needed > free)

    def _memory(self) -> Iterator[Finding]:
        if self.policy is None or self.texts is None or self.device is None:
            return
        native = draws_natively(self.policy, self.device)
        found = forecast(
            self.config,
            sizes_of(self.policy.model),
            self.texts,
            process=resident(),  # with task, reward and tokenizer, which the run has as well, and without weights
            device=self.device.type,
            native=native,
            weak=self._weak_sizes(),
        )
        for part in found.parts:
            when = "" if part.phase == "always" else f"while {part.phase}: "
            yield Finding(f"memory, {part.name}", f"{size(part.bytes):>10}  {when}{part.reckoned}")
        yield from verdicts(found, self.device)
        yield Finding("this assumes", "no prompt is longer than those looked at; every completion is as long as it may be, and trained on")
        yield Finding("this leaves out", "what components and the workers of rewards hold; of drawing, learning and saving, the largest counts")

    def _weak_sizes(self) -> Sizes | None:
        return sizes_of(self._weak(self.config).model) if isinstance(self.config, WMSSConfig) else None

    def _step(self) -> Iterator[Finding]:
        if not self.sound:
            yield Finding("small step", "not tried, since something is wrong above")
            return
        made = job.run(self.config, dry_run=True, reporter=SilentReporter()).result
        yield Finding("small step", f"taken in {made['metrics']['time/step']:.2f} s; nothing was written")


def verdicts(found: Forecast, device: torch.device) -> Iterator[Finding]:
    """The sums, beside the memory there is."""
    ram = memory_of_machine()
    if device.type == "cuda":
        yield verdict(f"memory of {device}", found.memory, torch.cuda.get_device_properties(device).total_memory, 1)
        yield verdict("memory of the machine", found.host_memory, ram, found.processes)
    else:
        yield verdict("memory in all", found.memory, ram, found.processes)


def verdict(what: str, needed: int, there: int, processes: int) -> Finding:
    """Too much is wrong; near the limit is told, since a forecast may be off by a quarter."""
    share, among = needed / there, f", by {processes} processes" if processes > 1 else ""
    how = f"{size(needed):>10}  of {size(there)} that are there{among}"
    if share > 1:
        how += ": too much; lower micro_batch_tokens, rows or lengths, take model.lora or gradient_checkpointing, or a smaller model"
    elif share > TIGHT:
        how += ": tight, for a forecast may be off by a quarter"
    return Finding(what, how, wrong=share > 1)


# --- a model without weights ---


def source(config: RunConfig) -> str | None:
    """The folder or hub id that the policy comes from; None for one that is built from scratch. Raises ValueError where `init` is not finished."""
    return config.model.path if config.init is None else str(finished_policy(config.init, "init"))


def run_or_model(name: str) -> str:
    folder = Path(name) / "policy"
    return str(folder) if folder.is_dir() else name


def skeleton(config: RunConfig, model: ModelConfig, origin: str | None, task: Task) -> Policy:
    """The policy of a recipe with every size and no weight. Raises ValueError in one sentence when there is no such model or tokenizer."""
    dtype = DTYPES[model.dtype]
    if origin is None:
        assert model.tiny is not None
        tokenizer = tiny.char_tokenizer(task.alphabet)
        with torch.device("meta"):
            made: PreTrainedModel = tiny.tiny_model(model.tiny, tokenizer, dtype=dtype)
    else:
        try:
            tokenizer, settings = load_tokenizer(origin), AutoConfig.from_pretrained(origin)
            with torch.device("meta"):
                made = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=model.attention)
        except Exception as error:
            absent = "" if Path(origin).is_dir() else "there is no such folder, and the hub gave none: "
            raise ValueError(f"no causal LM could be loaded from {origin!r}: {absent}{(str(error).splitlines() or [''])[0]}") from error
        if (Path(origin) / "generation_config.json").exists():
            made.generation_config = GenerationConfig.from_pretrained(origin)
    if model.lora is not None:
        with torch.device("meta"):
            made = add_lora(made, model.lora)
    return Policy(made, tokenizer, chat=model.chat, system=model.system, device="meta", bf16=config.runtime.precision == "bf16")


def sizes_of(model: nn.Module) -> Sizes:
    """What the forecast needs to know of a causal LM, with adapters or without."""
    base: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # pyright: ignore[reportCallIssue]
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    parameters = list(model.parameters())
    output = base.get_output_embeddings()
    return Sizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        attention=heads * width,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * width,
        mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        element=next(iter(parameters)).element_size(),
        tied=output is None or output.weight is base.get_input_embeddings().weight,
    )


def draws_natively(policy: Policy, device: torch.device) -> bool:
    """Whether the native decoder will run this policy when it is on `device`."""
    policy.device = device
    if unsuitable(policy) is not None:
        return False
    try:
        library()
    except Unavailable:
        return False
    return True


# --- the machine ---


def resident() -> int:
    """Bytes of this process in RAM."""
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_of_machine() -> int:
    """Bytes of RAM, or as many of them as this process's control group may take."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.exists() and (limit := file.read_text().strip()).isdigit():
            limits.append(int(limit))
    return min(limits)


def nearest(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())


def size(count: int) -> str:
    return f"{count / MIB:,.0f} MiB" if count < 10 * 1024 * MIB else f"{count / MIB / 1024:,.1f} GiB"


def shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
