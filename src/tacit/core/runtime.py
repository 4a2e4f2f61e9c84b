"""Runtime: where a run computes, alone or as one of several processes; and its optimiser.

Several processes are started by `torchrun`, or on one machine by `tacit.processes`; accelerate's PartialState then picks backend and device
and opens the process group. accelerate is imported only there and for trackers: a single process needs neither, and starts at once.
(`accelerate launch --cpu` starts one process whatever it is asked for, and accelerate's FSDP plug-in does nothing on a CPU, hence torchrun
and torch's own `fully_shard` here.)

Data parallelism, in two forms, with losses that already carry global denominators, so that gradients are *summed*, never averaged:
    ddp     every rank holds all weights. Ranks may run different numbers of micro-batches, even none: one collective per optimiser step.
    fsdp2   weights, gradients and moments are sharded (DTensors). Every forward and backward pass is collective, see `even`.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from tacit.config import OptimiserConfig
from tacit.core.trackers import Trackers


class Runtime:
    """Device, precision, processes, seeds and trackers. Takes the fields of RuntimeConfig but `processes`, for who starts them.

    `seed=None` leaves the random number generators alone; `folder` is where trackers that write files put them.
    Raises ValueError when the device is not there or a tracker is not installed.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        threads: int | None = None,
        distributed: Literal["ddp", "fsdp2"] = "ddp",
        trackers: Sequence[str] = (),
        seed: int | None = None,
        folder: str | Path = ".",
    ):
        self.precision, self.distributed = precision, distributed
        self.rank, self.world_size = 0, 1
        self.device: torch.device = _device(device)
        if self.device.type == "cpu":
            _keep_freed_memory()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self._join(device)
        if threads is not None:
            torch.set_num_threads(threads)
        if seed is not None:
            seed_everything(seed)
        self._trackers = Trackers(trackers if self.is_main else (), Path(folder))

    def _join(self, asked: str) -> None:
        from accelerate import PartialState

        if ":" in asked:
            raise ValueError(f"device {asked!r} names one device for all processes; write {asked.split(':')[0]!r}, and each takes its own")
        state = PartialState(cpu=self.device.type == "cpu")
        assert state.device is not None
        self.rank, self.world_size, self.device = state.process_index, state.num_processes, state.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether weights are split over the processes."""
        return self.distributed == "fsdp2" and self.world_size > 1

    def autocast(self) -> torch.autocast:
        """The precision of forward passes; in fp32 it changes nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    # --- collectives: every rank calls them, in the same order; alone they cost nothing ---

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """The `value` of rank `source`."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, source)
        return box[0]

    def all_reduce_max(self, value: int) -> int:
        """The largest `value` of any rank."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def even(self, rows: list[Tensor]) -> list[Tensor]:
        """The micro-batches of this rank, row indices (n,) each; where passes are collective, as many as any rank has.

        Ranks with fewer get empty ones. Models take no empty batch: run any row there, with its loss multiplied by 0 or masked.
        """
        if not self.sharded:
            return rows
        return rows + [torch.empty(0, dtype=torch.int64)] * (self.all_reduce_max(len(rows)) - len(rows))

    # --- weights and gradients ---

    def distribute(self, module: nn.Module) -> None:
        """Makes `module` ready for training by several processes, in place. Call it before the optimiser is made.

        ddp: all ranks take over rank 0's weights. fsdp2: each element of the outermost module lists (the transformer blocks), then the
        rest, becomes a sharding unit; afterwards only calls of `module` itself, not of its parts, see whole weights.
        """
        if self.world_size == 1:
            return
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor, 0)
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for unit in [*blocks(module), module]:
            fully_shard(unit, mesh=mesh)
            assert isinstance(unit, FSDPModule)
            unit.set_gradient_divide_factor(1.0)  # sum, not mean
            unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
            if hasattr(unit, "set_reduce_scatter_unused_params"):  # torch >= 2.13: a rank that skips an expert must not hang the others
                unit.set_reduce_scatter_unused_params(True, recurse=False)

    def reduce_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Sums the gradients of all ranks, in one collective per dtype; a rank without a gradient contributes nothing.

        A parameter that no rank has a gradient for keeps None, as in a single process. Sharded gradients were summed in backward.
        """
        if self.world_size == 1:
            return
        groups: dict[torch.dtype, list[nn.Parameter]] = {}
        for p in params:
            if not is_sharded(p):
                groups.setdefault(p.dtype, []).append(p)
        for dtype, members in groups.items():
            sizes = [p.numel() for p in members]
            present = torch.tensor([p.grad is not None for p in members], dtype=dtype, device=self.device)
            flat = torch.cat([present, *(torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in members)])
            dist.all_reduce(flat)
            for p, total, seen in zip(members, flat[len(members) :].split(sizes), flat[: len(members)].tolist(), strict=True):
                if seen:
                    p.grad = torch.empty_like(p).copy_(total.view_as(p)) if p.grad is None else p.grad.copy_(total.view_as(p))

    # --- random numbers ---

    def rng_state(self) -> dict[str, Any]:
        """The generators of python, numpy, torch and CUDA, of every rank: collective, so all ranks call it when one saves."""
        state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"ranks": self.gather_objects(state)}

    def set_rng_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `rng_state`. With more ranks than it was taken from, the states are dealt out again from the first."""
        mine = state["ranks"][self.rank % len(state["ranks"])]
        random.setstate(mine["python"])
        np.random.set_state(mine["numpy"])
        torch.set_rng_state(mine["torch"])
        if self.device.type == "cuda" and "cuda" in mine:
            torch.cuda.set_rng_state(mine["cuda"], self.device)

    # --- the end of each step, and of all ---

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends metrics to the trackers, from the main process."""
        self._trackers.log(metrics, step)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Tells the trackers what the run is."""
        self._trackers.log_config(config)

    def close(self) -> None:
        """Ends trackers and leaves the process group."""
        self._trackers.close()
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            # A gloo thread that lets go of its last work takes the GIL for it; were the interpreter gone by then, the process would be aborted.
            time.sleep(0.1)


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: to get large blocks from the kernel for every tensor costs a small model a twentieth of its step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, size in {-3: 2**25, -1: 2**31 - 1}.items():  # M_MMAP_THRESHOLD, at its most; M_TRIM_THRESHOLD
            mallopt(option, size)


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch (all devices), alike on every rank: models built from scratch start out equal."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _device(name: str) -> torch.device:
    """The device called `name`. Raises ValueError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available here ({str(error).splitlines()[0]}); set runtime.device to auto or cpu") from error
    return device


# --- sharded weights ---


def blocks(module: nn.Module) -> list[nn.Module]:
    """The elements of the outermost module lists: the transformer blocks of any causal LM."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(state: Any) -> Any:
    """Nested state with every sharded tensor gathered on the CPU, ready for a checkpoint. Collective when there are any."""
    if isinstance(state, Tensor):
        return state.full_tensor().cpu() if is_sharded(state) else state  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state


def sharded_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor that every rank has, split as `reference` is; as it is when `reference` is not split."""
    if not is_sharded(reference) or is_sharded(tensor) or tensor.shape != reference.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)  # pyright: ignore[reportAttributeAccessIssue]


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimiser.load_state_dict` that also takes the `whole` state of a sharded optimiser."""
    params = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {i: {name: sharded_like(v, params[i]) if isinstance(v, Tensor) else v for name, v in s.items()} for i, s in state["state"].items()}
    optimiser.load_state_dict({**state, "state": moments})


# --- optimiser ---


def make_optimiser(named_params: Iterable[tuple[str, nn.Parameter]], config: OptimiserConfig, steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW and its schedule over `steps` optimiser steps. Biases, norms and other vectors do not decay.

    Source: Loshchilov & Hutter (2019), Decoupled weight decay regularization. The fused kernel is torch's fastest on every device (on one
    CPU thread 3.5 times faster than the loop at 0.2M parameters and 3.1 times at 10M) and deterministic.
    """
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in named_params:
        decays[p.ndim >= 2 and "norm" not in name.lower()].append(p)
    groups = [{"params": members, "weight_decay": config.weight_decay * decay} for decay, members in decays.items() if members]
    if not groups:
        raise ValueError("there is nothing to train: no parameter requires a gradient")
    optimiser = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    return optimiser, LambdaLR(optimiser, lr_lambda(config.schedule, config.warmup, steps))


def lr_lambda(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at step 0, 1, ...: rises in `warmup` equal steps to 1, then stays, or falls to 0 at step `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        match schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - done
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * done))
        raise ValueError(f"unknown schedule {schedule!r}: choose constant, linear or cosine")

    return factor


def clip_and_step(optimiser: torch.optim.Optimizer, scheduler: LambdaLR | None, params: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """One optimiser step with gradients scaled down to at most `max_norm` in all. Clears them and returns their norm before scaling.

    The step counts for the schedule, if one is given. When the norm is not finite nothing else happens: weights, moments and schedule stay as
    they are, and the caller counts it.
    """
    params = list(params)
    gradients = [p.grad for p in params if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if is_sharded(norm):
        norm = norm.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    if math.isfinite(size := float(norm)):
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(params, max_norm, norm)
        optimiser.step()
        if scheduler is not None:
            scheduler.step()
    optimiser.zero_grad()
    return size
