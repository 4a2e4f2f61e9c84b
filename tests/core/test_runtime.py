from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tacit.core.runtime as runtime_module
from tacit.config import OptimiserConfig, RuntimeConfig
from tacit.core.checkpoint import CheckpointStore
from tacit.core.runtime import Runtime, blocks, clip_and_step, load_optimiser, lr_lambda, make_optimiser, seed_everything, whole
from tacit.core.trackers import Trackers, flat

# --- alone ---


def test_a_single_process_runs_without_a_process_group():
    runtime = Runtime(**RuntimeConfig(device="cpu").model_dump(exclude={"processes"}), seed=3)
    assert (runtime.rank, runtime.world_size, runtime.is_main, runtime.sharded, runtime.device.type) == (0, 1, True, False, "cpu")
    assert runtime.gather_objects("x") == ["x"] and runtime.broadcast_object("x") == "x" and runtime.all_reduce_max(7) == 7
    rows = [torch.tensor([1, 2])]
    assert runtime.even(rows) is rows
    runtime.barrier()
    model = nn.Linear(2, 1)
    before = [p.clone() for p in model.parameters()]
    runtime.distribute(model)
    model(torch.ones(1, 2)).sum().backward()
    runtime.reduce_gradients(model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert model.weight.grad is not None and torch.equal(model.weight.grad, torch.ones(1, 2))
    runtime.log({"loss": 1.0}, 0)
    runtime.close()


def test_importing_it_is_quick():
    """Nothing but torch and numpy: accelerate, transformers and torch's sharding wait until somebody needs them."""
    code = "import sys, tacit.core.runtime; print(*[m for m in ('accelerate', 'transformers', 'peft', 'torch.distributed.fsdp') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_precision():
    x = torch.ones(2, 2)
    with Runtime(device="cpu").autocast():
        assert (x @ x).dtype == torch.float32
    with Runtime(device="cpu", precision="bf16").autocast():
        assert (x @ x).dtype == torch.bfloat16


def test_threads():
    before = torch.get_num_threads()
    try:
        Runtime(device="cpu", threads=2)
        assert torch.get_num_threads() == 2
        Runtime(device="cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["cuda:99", "mps:0", "gpu"])
def test_a_missing_device_is_one_sentence(name):
    with pytest.raises(ValueError, match=rf"^device '{name}' is not available here \(.*\); set runtime.device to auto or cpu$"):
        Runtime(device=name)


def test_one_device_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runtime_module, "_device", torch.device)
    with pytest.raises(ValueError, match="'cuda:1' names one device for all processes; write 'cuda'"):
        Runtime(device="cuda:1")


# --- random numbers ---


def draws() -> list[Any]:
    return [random.random(), np.random.random(), torch.rand(3).tolist()]


def test_rng_state_through_a_checkpoint(tmp_path):
    runtime = Runtime(device="cpu", seed=5)
    CheckpointStore(tmp_path).save(0, runtime.rng_state())
    expected = draws()
    assert draws() != expected
    runtime.set_rng_state(CheckpointStore(tmp_path).latest().state)
    assert draws() == expected


def test_seed_everything():
    seed_everything(2**40 + 1)
    first = draws()
    seed_everything(2**40 + 1)
    assert draws() == first
    Runtime(device="cpu")  # without a seed the generators go on
    assert draws() != first


# --- optimiser ---


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "expected"),
    [
        ("constant", 0, 3, [1, 1, 1, 1, 1]),
        ("constant", 4, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", 0, 4, [1, 0.75, 0.5, 0.25, 0, 0]),
        ("linear", 2, 6, [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", 1, 5, [1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]),
        ("linear", 5, 3, [0.2, 0.4, 0.6, 0.8, 1, 1, 0]),
    ],
)
def test_schedules(schedule, warmup, steps, expected):
    factor = lr_lambda(schedule, warmup, steps)
    assert [factor(i) for i in range(len(expected))] == pytest.approx(expected, abs=1e-12)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule 'wsd'"):
        lr_lambda("wsd", 0, 1)(0)


def small_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).to(dtype)


def test_vectors_do_not_decay():
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser, scheduler = make_optimiser(model.named_parameters(), OptimiserConfig(lr=0.5, weight_decay=0.1), 1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert clip_and_step(optimiser, scheduler, model.parameters(), 1.0) == 0.0
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.5 * 0.1 if p.ndim == 2 else 1), rtol=1e-12, atol=0)


def test_adamw_by_hand():
    """One weight, gradient 3 clipped to 1; then gradient -1. Source: Loshchilov & Hutter, algorithm 2."""
    weight = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    optimiser, scheduler = make_optimiser([("w", weight)], OptimiserConfig(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5, warmup=2), 9)
    w, m, v = 2.0, 0.0, 0.0
    for t, (gradient, clipped, lr) in enumerate([(3.0, 1.0, 0.05), (-1.0, -1.0, 0.1)], start=1):
        weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        assert clip_and_step(optimiser, scheduler, [weight], 1.0) == pytest.approx(abs(gradient))
        clipped = clipped / (1 + 1e-6) if abs(gradient) > 1 else clipped / 1.0
        m, v = 0.9 * m + 0.1 * clipped, 0.99 * v + 0.01 * clipped**2
        w = w * (1 - lr * 0.5) - lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-8)
        assert weight.item() == pytest.approx(w, rel=1e-6)
        assert weight.grad is None


def test_no_clipping():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimiser, scheduler = make_optimiser([("w", weight)], OptimiserConfig(), 1)
    weight.grad = torch.full((2, 2), 50.0)
    assert clip_and_step(optimiser, scheduler, [weight], None) == 100.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_non_finite_gradient_never_happened(bad):
    model = small_model()
    optimiser, scheduler = make_optimiser(model.named_parameters(), OptimiserConfig(warmup=5), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.full_like(p, bad)
        assert not math.isfinite(clip_and_step(optimiser, scheduler, model.parameters(), 1.0))
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert scheduler.last_epoch == 0 and not optimiser.state and all(p.grad is None for p in model.parameters())


def train(model: nn.Module, optimiser: Any, scheduler: Any, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        clip_and_step(optimiser, scheduler, list(model.parameters()), 1.0)


def test_optimiser_resumes_bit_for_bit(tmp_path):
    config = OptimiserConfig(lr=0.01, weight_decay=0.1, warmup=2, schedule="cosine")
    straight = small_model()
    train(straight, *make_optimiser(straight.named_parameters(), config, 8), range(8))

    model = small_model()
    optimiser, scheduler = make_optimiser(model.named_parameters(), config, 8)
    train(model, optimiser, scheduler, range(5))
    state = {"model": model.state_dict(), "optimiser": whole(optimiser.state_dict()), "scheduler": scheduler.state_dict()}
    CheckpointStore(tmp_path).save(5, state)

    state = CheckpointStore(tmp_path).latest().state
    resumed = small_model()
    optimiser, scheduler = make_optimiser(resumed.named_parameters(), config, 8)
    resumed.load_state_dict(state["model"])
    load_optimiser(optimiser, state["optimiser"])
    scheduler.load_state_dict(state["scheduler"])
    train(resumed, optimiser, scheduler, range(5, 8))
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), straight.parameters(), strict=True))


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimiser([], OptimiserConfig(), 1)


def test_blocks_are_the_outermost_lists():
    expert = nn.Module()
    expert.experts = nn.ModuleList([nn.Linear(1, 1)])
    model = nn.Module()
    model.body = nn.Module()
    model.body.layers = nn.ModuleList([expert, nn.Linear(2, 2)])
    model.head = nn.Linear(1, 1)
    assert blocks(model) == [expert, model.body.layers[1]]


# --- trackers ---


class FakeTracker:
    made: list[FakeTracker]

    def __init__(self, project: str, **options: Any):
        self.project, self.options, self.said = project, options, []
        self.made.append(self)

    def start(self) -> None:
        self.said.append("start")

    def store_init_configuration(self, values: dict) -> None:
        self.said.append(values)

    def log(self, values: dict, step: int) -> None:
        self.said.append((step, values))

    def finish(self) -> None:
        self.said.append("finish")


def test_trackers_open_when_there_is_something_to_say(tmp_path, monkeypatch):
    import accelerate.tracking

    accelerate.PartialState()  # before the world seems to hold every package
    FakeTracker.made = []
    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, FakeTracker)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    runtime = Runtime(device="cpu", trackers=["wandb", "tensorboard"], folder=tmp_path / "demo")
    assert FakeTracker.made == []
    runtime.log_config({"seed": 1, "optimiser": {"betas": (0.9, 0.95)}})
    runtime.log({"loss": 0.5}, 3)
    runtime.close()
    wandb, tensorboard = FakeTracker.made
    assert (wandb.project, wandb.options) == ("tacit", {"name": "demo"})
    assert (tensorboard.project, tensorboard.options) == ("tensorboard", {"logging_dir": tmp_path / "demo"})
    assert wandb.said == tensorboard.said == ["start", {"seed": 1, "optimiser.betas": "(0.9, 0.95)"}, (3, {"loss": 0.5}), "finish"]


def test_accelerate_still_knows_our_trackers():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    for name in ("trackio", "tensorboard", "wandb"):
        assert issubclass(LOGGER_TYPE_TO_CLASS[name], GeneralTracker) and callable(LOGGER_TYPE_TO_CLASS[name].start)


def test_a_missing_tracker_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tracker 'wandb' is not installed; pip install 'tacit\[trackers\]'"):
        Runtime(device="cpu", trackers=["wandb"])
    with pytest.raises(ValueError, match="unknown tracker 'mlflow'"):
        Trackers(["mlflow"], Path("."))
    assert flat({"a": {"b": {"c": None}}, "d": True}) == {"a.b.c": "None", "d": True}


# --- two processes ---


class Toy(nn.Module):
    """Embedding, two blocks, tied head: what matters of a causal LM here. A weight that only odd tokens use, and one that nobody does."""

    def __init__(self, seed: int = 0, always: bool = False):
        super().__init__()
        self.always = always
        torch.manual_seed(seed)
        self.embed = nn.Embedding(10, 6)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])
        self.odd = nn.Parameter(torch.randn(6))
        self.unused = nn.Parameter(torch.randn(3))
        self.double()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        if self.always or (ids % 2).any():
            x = x + self.odd * (ids % 2)[..., None]
        for layer in self.layers:
            x = x + layer(x)
        return (x @ self.embed.weight.T).log_softmax(-1)


ROWS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 2, 4], [6, 8, 2]])
SHARES = [[[0, 1], [2]], [[3, 4]]]  # micro-batches of ranks 0 and 1; rank 1 has no odd token and one micro-batch less
CONFIG = OptimiserConfig(lr=0.05, weight_decay=0.1)


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Summed over these rows, with the denominator of all rows."""
    return -model(rows[:, :-1]).gather(-1, rows[:, 1:, None]).sum() / ROWS[:, 1:].numel()


def in_two_processes() -> None:
    """What each rank runs under torchrun. Results of rank 0 are printed as one JSON line."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    runtime = Runtime(device="cpu", seed=11, threads=1)
    assert runtime.world_size == 2, "torchrun did not start two processes"
    rank, found = runtime.rank, {}
    found["gathered"] = runtime.gather_objects({"rank": rank})
    found["broadcast"] = [runtime.broadcast_object(f"from {rank}"), runtime.broadcast_object(f"from {rank}", source=1)]
    found["max"] = runtime.all_reduce_max(10 - rank)
    found["even"] = [len(runtime.even([torch.zeros(1)] * (3 - rank))), len(Runtime(device="cpu", distributed="fsdp2").even([ROWS] * (3 - rank)))]
    runtime.barrier()

    random.seed(rank)
    state, expected = runtime.rng_state(), random.random()
    random.seed(99)
    runtime.set_rng_state(state)
    found["rng"] = [*runtime.gather_objects(random.random() == expected), len(state["ranks"])]

    # replicas: rank 1 starts from other weights and takes over rank 0's; then three steps on unequal shares, the last one without rank 1
    model = Toy(seed=rank)
    runtime.distribute(model)
    optimiser, scheduler = make_optimiser(model.named_parameters(), CONFIG, 3)
    found["gradients"], found["norms"] = [], []
    for step in range(3):
        for rows in SHARES[rank] if step < 2 or rank == 0 else []:
            loss_of(model, ROWS[rows]).backward()
        runtime.reduce_gradients(model.parameters())
        found["gradients"].append({n: None if p.grad is None else p.grad.tolist() for n, p in model.named_parameters()})
        found["norms"].append(clip_and_step(optimiser, scheduler, model.parameters(), 0.1))
    found["weights"] = {n: p.tolist() for n, p in model.named_parameters()}
    found["ranks agree"] = len({json.dumps(w) for w in runtime.gather_objects(found["weights"])}) == 1
    mixed = [nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.float32, torch.float64)]
    for p in mixed:
        p.grad = torch.full_like(p, rank + 1.0)
    runtime.reduce_gradients(mixed)
    found["mixed"] = [p.grad.tolist() for p in mixed]

    # shards
    runtime = Runtime(device="cpu", distributed="fsdp2")
    model = Toy(seed=rank, always=not hasattr(FSDPModule, "set_reduce_scatter_unused_params"))  # before torch 2.13 all ranks use the same weights
    runtime.distribute(model)
    found["all DTensors"] = all(isinstance(p, DTensor) for p in model.parameters())
    optimiser, scheduler = make_optimiser(model.named_parameters(), CONFIG, 3)
    found["sharded gradients"], found["sharded norms"] = [], []
    for step in range(3):
        for rows in runtime.even([torch.tensor(rows) for rows in (SHARES[rank] if step < 2 or rank == 0 else [])]):
            used = len(rows) > 0
            (loss_of(model, ROWS[rows] if used else ROWS[:1]) * used).backward()  # a rank without work takes part with weight 0
        runtime.reduce_gradients(model.parameters())
        found["sharded gradients"].append(whole({n: p.grad for n, p in model.named_parameters()}))
        found["sharded norms"].append(clip_and_step(optimiser, scheduler, model.parameters(), 0.1))
        if step == 1:  # through a checkpoint of whole tensors into a new optimiser
            state = whole(optimiser.state_dict())
            assert not any(isinstance(v, DTensor) for s in state["state"].values() for v in s.values())
            again, schedule = make_optimiser(model.named_parameters(), CONFIG, 3)
            load_optimiser(again, state)
            schedule.load_state_dict(scheduler.state_dict())
            optimiser, scheduler = again, schedule
    found["sharded gradients"] = [{n: None if g is None else g.tolist() for n, g in step.items()} for step in found["sharded gradients"]]
    found["sharded weights"] = {n: p.tolist() for n, p in whole({n: p.detach() for n, p in model.named_parameters()}).items()}
    single, sharded = Toy().float(), Toy().float()  # in float32 FSDP takes another way to the sum
    runtime.distribute(sharded)
    loss_of(single, ROWS[:2]).backward()
    loss_of(sharded, ROWS[rank : rank + 1]).backward()
    expected = {n: p.grad for n, p in single.named_parameters() if p.grad is not None}
    found["float32"] = max(float((whole(p.grad) - expected[n]).abs().max()) for n, p in sharded.named_parameters() if n in expected)
    if runtime.is_main:
        print(json.dumps(found))
    runtime.close()


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The same three steps in one process."""
    model, found = Toy(), {"gradients": [], "norms": []}
    optimiser, scheduler = make_optimiser(model.named_parameters(), CONFIG, 3)
    for step in range(3):
        rows = [r for share in (SHARES if step < 2 else SHARES[:1]) for micro in share for r in micro]
        loss_of(model, ROWS[rows]).backward()
        found["gradients"].append({n: None if p.grad is None else p.grad.tolist() for n, p in model.named_parameters()})
        found["norms"].append(clip_and_step(optimiser, scheduler, model.parameters(), 0.1))
    found["weights"] = {n: p.tolist() for n, p in model.named_parameters()}
    return found


def test_objects_travel_in_rank_order(two):
    assert two["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert two["broadcast"] == ["from 0", "from 1"]
    assert two["max"] == 10
    assert two["even"] == [3, 3]
    assert two["rng"] == [True, True, 2]


def test_replicas_train_as_one_process_does(two, alone):
    """Unequal numbers of micro-batches, in the third step none on rank 1; gradients that one rank or no rank has."""
    assert two["ranks agree"]
    assert two["norms"] == pytest.approx(alone["norms"], rel=1e-9)
    for found, expected in zip(two["gradients"], alone["gradients"], strict=True):
        assert found["unused"] is None and expected["odd"] is not None
        assert_close(found, expected)
    assert_close(two["weights"], alone["weights"])
    assert two["mixed"] == [[3.0, 3.0], [3.0, 3.0]]


def test_shards_train_as_one_process_does(two, alone):
    assert two["all DTensors"]
    assert two["sharded norms"] == pytest.approx(alone["norms"], rel=1e-9)
    for found, expected in zip(two["sharded gradients"], alone["gradients"], strict=True):
        assert_close(found, expected)
    assert_close(two["sharded weights"], alone["weights"])
    assert two["float32"] < 1e-6


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(
                torch.tensor(found[name], dtype=torch.float64), torch.tensor(value, dtype=torch.float64), rtol=1e-9, atol=1e-12, msg=name
            )


if __name__ == "__main__":
    in_two_processes()
