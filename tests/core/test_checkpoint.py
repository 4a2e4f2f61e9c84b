from __future__ import annotations

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tacit.core import checkpoint
from tacit.core.checkpoint import CheckpointError, CheckpointStore
from tacit.core.rollouts import Prompt, Ragged, RolloutBatch


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every bit (NaN equals NaN)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(i, j) and same(x, y) for (i, x), (j, y) in zip(a.items(), b.items(), strict=True))
    return a.hex() == b.hex() if isinstance(a, float) else a == b


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def round_trip(folder: Path, state: Any) -> Any:
    CheckpointStore(folder).save(1, state)
    found = CheckpointStore(folder).latest()
    assert found is not None and found.step == 1
    return found.state


def test_no_checkpoint_yet(tmp_path):
    assert CheckpointStore(tmp_path / "missing").latest() is None
    assert CheckpointStore(tmp_path / "missing").steps() == []


@pytest.mark.parametrize("dtype", sorted(checkpoint.DTYPES, key=str), ids=str)
def test_tensor_dtypes_are_exact(tmp_path, dtype):
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (24, dtype.itemsize), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensor = bits.view(dtype).reshape(2, 3, 4)  # random bits: NaN payloads, subnormals and infinities among them
    state = {"full": tensor, "scalar": tensor[0, 0, 0], "empty": tensor[:0], "view": tensor[:, 1:, ::2], "turned": tensor.transpose(0, 2)}
    assert same(round_trip(tmp_path, state), state)


def test_tied_weights_are_stored_apart(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    found = round_trip(tmp_path, {"a": tied, "b": tied, "half": tied[1]})
    assert same(found, {"a": tied, "b": tied, "half": tied[1]})
    found["a"].zero_()
    assert same(found["b"], tied)


def test_plain_values_are_exact(tmp_path):
    state = {
        "numbers": [0, -1, 2**200, True, False, None, 0.1, -0.0, 5e-324, float("nan"), float("inf"), float("-inf")],
        "text": ["", "naïve 日本 \ud800 \x00", "$"],
        "bytes": b"\x00\xff",
        "nested": ({"a": (1, [2, ()])}, []),
        "keys": {0: "int", True: "overwrites", "0": "str", 1.5: "float", None: "none", (1, "a"): "tuple"},
        "$": "tensor",
        "tagged": {"$": "tuple", "items": [1]},
        "empty": {},
        "numpy": [
            np.float64(0.1),
            np.int8(-3),
            np.bool_(True),
            np.array("ab"),
            np.array([1, 2], ">i4"),
            np.zeros((0, 3)),
            np.datetime64("2026-11-24"),
        ],
    }
    assert same(round_trip(tmp_path, state), state)


def test_random_number_generators_resume(tmp_path):
    generator = np.random.Generator(np.random.PCG64(7))
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "pcg": generator.bit_generator.state,
        "torch": torch.get_rng_state(),
    }
    expected = random.random(), np.random.random(), generator.random(), torch.rand(3)
    found = round_trip(tmp_path, state)
    assert same(found, state)
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    generator.bit_generator.state = found["pcg"]
    torch.set_rng_state(found["torch"])
    assert same((random.random(), np.random.random(), generator.random(), torch.rand(3)), expected)


def test_optimiser_and_rollouts_resume(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    prompts = [Prompt("a", "1+1=", answer=2, info={"level": (1, 2)})]
    batch = RolloutBatch(
        prompts,
        Ragged.from_lists([[1, 2]]),
        torch.tensor([0, 2]),
        rows={"group": torch.tensor([0])},
        tokens={"token": torch.tensor([3, 4]), "behaviour_logp": torch.tensor([-0.5, -0.25])},
    )
    state = {"optimiser": optimiser.state_dict(), "model": model.state_dict(), "replay": [batch.state_dict()]}
    found = round_trip(tmp_path, state)
    assert same(found, {**state, "model": dict(state["model"])})
    torch.optim.AdamW(torch.nn.Linear(3, 2).parameters()).load_state_dict(found["optimiser"])
    assert same(RolloutBatch.from_state_dict(found["replay"][0]).state_dict(), batch.state_dict())


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
arrays = hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
tensors = hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)).map(torch.from_numpy)
states = st.recursive(
    plain | arrays | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(plain.filter(lambda k: k == k), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=states)
def test_any_state_round_trips(tmp_path, state):
    assert same(round_trip(tmp_path, state), state)


def test_large_states_are_split_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100)
    state = [torch.full((n,), float(n)) for n in (10, 40, 1, 1, 1, 30)]
    assert same(round_trip(tmp_path, state), state)
    assert len(list((tmp_path / "step-00000001").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"a": [1, {"b": {2}}]}, r"state\['a'\]\[1\]\['b'\].*builtins\.set"),
        ({"f": (0, len)}, r"state\['f'\]\[1\].*builtin_function"),
        ({"n": np.array([None])}, r"state\['n'\].*object"),
        ({"t": torch.zeros(2, device="meta")}, r"state\['t'\].*meta"),
        ({"t": torch.eye(2).to_sparse()}, r"state\['t'\].*sparse"),
        ({"t": torch.zeros(2, dtype=torch.complex128)}, r"state\['t'\].*complex128"),
        ({frozenset([1]): 0}, r"state key frozenset.*frozenset"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, bad, where):
    with pytest.raises(TypeError, match=where):
        CheckpointStore(tmp_path).save(1, bad)
    assert list(tmp_path.iterdir()) == []


# --- retention ---


def test_only_the_newest_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 5, 9):
        store.save(step, step)
    assert store.steps() == [5, 9] and {p.name for p in tmp_path.iterdir()} == {"step-00000005", "step-00000009"}
    with pytest.raises(ValueError, match="keep"):
        CheckpointStore(tmp_path, keep=0)


def test_the_same_step_again_replaces(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(3, "old")
    store.save(3, "new")
    assert store.latest() == (3, "new") and len(list(tmp_path.iterdir())) == 1


def test_an_abandoned_course_goes(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20, 30):
        store.save(step, step)
    store.save(15, "after a rollback")
    assert store.steps() == [10, 15] and store.latest() == (15, "after a rollback")


def test_leftovers_are_cleaned(tmp_path):
    (tmp_path / ".saving-00000007").mkdir(parents=True)
    (tmp_path / "step-00000004").mkdir()  # renamed, never marked
    CheckpointStore(tmp_path).save(8, None)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000008"]


@pytest.mark.parametrize("die_in", ["_write", "flush", "_make_way", "_write_marker"])
def test_replacing_a_step_never_leaves_none(tmp_path, monkeypatch, die_in):
    """The process dies inside each stage of a save: nothing of ours runs after that."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(3, "old")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, die_in, dies)
        patch.setattr(checkpoint, "_remove", lambda folder: None)
        with pytest.raises(Died):
            store.save(3, "new")
    assert store.latest() == (3, "old")
    store.save(3, "new")
    assert store.latest() == (3, "new") and len(list(tmp_path.iterdir())) == 1


class Died(BaseException):
    pass


def dies(*_: Any) -> Any:
    raise Died


# --- damage ---


def damage_cases() -> list[Any]:
    rng = random.Random(0)
    files = ["state.json", "tensors-0000.safetensors", "COMPLETE"]
    return [(name, kind, rng.random()) for name in files for kind in ("cut", "flip") for _ in range(12)] + [(n, "gone", 0.0) for n in files]


@pytest.mark.parametrize(("name", "kind", "where"), damage_cases())
def test_damage_is_passed_over_with_one_message(tmp_path, caplog, name, kind, where):
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.arange(50.0), "s": "first"})
    store.save(2, {"w": torch.arange(50.0), "s": "second"})
    victim = tmp_path / "step-00000002" / name
    data = bytearray(victim.read_bytes())
    at = int(where * len(data))
    if kind == "gone":
        victim.unlink()
    elif kind == "cut":
        victim.write_bytes(data[:at])
    else:
        data[at] ^= 1 << int(where * 1e6) % 8
        victim.write_bytes(data)
    with caplog.at_level(logging.WARNING, "tacit"):
        found = store.latest()
    assert found is not None and found.step == 1 and same(found.state, {"w": torch.arange(50.0), "s": "first"})
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "step-00000002" in record.message and "step 1 is used instead" in record.message


def test_nothing_whole_is_none(tmp_path, caplog):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, step)
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("")
    assert store.latest() is None
    assert "no other is there" in caplog.records[0].message and len(caplog.records) == 1


@pytest.mark.parametrize("marker", ['{"format": 99, "files": {"state.json": {}}}', '{"format": 1, "files": {}}', "[]"])
def test_foreign_markers_are_not_trusted(tmp_path, marker):
    CheckpointStore(tmp_path).save(1, None)
    (tmp_path / "step-00000001" / "COMPLETE").write_text(marker)
    assert CheckpointStore(tmp_path).latest() is None


def test_unknown_kinds_of_value_are_an_error():
    with pytest.raises(CheckpointError, match="'later'"):
        checkpoint._decode({"$": "later"}, {})


@pytest.mark.parametrize("failing_write", [0, 1, 2])
@pytest.mark.parametrize("step", [2, 1])
def test_full_disk(tmp_path, monkeypatch, failing_write, step):
    store = CheckpointStore(tmp_path)
    store.save(1, "kept")
    writes = iter(range(10))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{descriptor}") and next(writes) == failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CheckpointError, match=rf"step {step} in {tmp_path}.* needs [\d,]+ bytes and [\d,]+ are free; .*step 1 is untouched"):
            store.save(step, torch.zeros(1000))
    assert store.latest() == (1, "kept") and len(list(tmp_path.iterdir())) == 1
    store.save(step, "again")
    assert store.latest() == (step, "again")


def test_other_failures_pass_through(tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        CheckpointStore(tmp_path).save(1, None)
    assert list(tmp_path.iterdir()) == []


def test_first_save_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="there is no earlier checkpoint"):
        CheckpointStore(tmp_path).save(1, None)


SAVER = """
import os, sys, torch
from tacit.core.checkpoint import CheckpointStore
torch.set_num_threads(1)
store = CheckpointStore(sys.argv[1])
for line in sys.stdin:  # one life after another, forked so that each starts at once
    step = int(line)
    if child := os.fork():
        os.write(1, b"born %d\\n" % child)
        os.waitpid(child, 0)
        os.write(1, b"dead 0\\n")
        continue
    while True:
        store.save(step, {"step": step, "w": torch.full((20000,), float(step)), "rest": [step] * 500})
        os.write(1, b"saved %d\\n" % step)
        step += 1
"""


def test_kill_9_at_any_moment(tmp_path):
    """What is found is whole, and no save that returned is missing.

    Paced by the saver, not by the clock: each life may finish 0 to 2 saves, then dies within about the time that one more takes.
    """
    rng, step, awaited, interrupted, duration = random.Random(1), 1, 0, 0, 0.01
    with subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin and parent.stdout
        for _ in range(24):
            print(step, file=parent.stdin, flush=True)
            born, child = parent.stdout.readline().split()
            assert born == "born"
            returned, saves, start = step - 1, rng.randint(0, 2), time.perf_counter()
            for _ in range(saves):
                returned = int(parent.stdout.readline().split()[1])
            if saves:
                duration = (time.perf_counter() - start) / saves
            awaited += saves
            time.sleep(rng.uniform(0.0, duration))
            os.kill(int(child), signal.SIGKILL)
            while (word := parent.stdout.readline().split())[0] == "saved":
                returned = int(word[1])
            interrupted += any(p.name.startswith(".saving-") or not (p / "COMPLETE").exists() for p in tmp_path.iterdir())
            found = CheckpointStore(tmp_path).latest()
            assert (found.step if found else 0) in (returned, returned + 1)
            if found:
                assert same(found.state, {"step": found.step, "w": torch.full((20000,), float(found.step)), "rest": [found.step] * 500})
                step = found.step + 1
        parent.stdin.close()
    assert step > awaited >= 12 and interrupted > 0


def test_small_states_cost_little(tmp_path):
    """A tiny run checkpoints often. Processor time only: how long the disk takes to flush is the machine's affair."""
    store = CheckpointStore(tmp_path)
    state = {"weights": {f"layer.{i}": torch.zeros(1300) for i in range(200)}, "log": list(range(2000))}  # 1 MB
    times = []
    for step in range(10):
        start = time.process_time()
        store.save(step, state)
        times.append(time.process_time() - start)
    assert min(times) < 0.05
