"""The whole step by two processes: what one process draws and learns, two draw and learn, replicated or sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tacit
import tacit.rl.update as update_module
from tacit.core.checkpoint import CheckpointStore
from tacit.core.runtime import Runtime, whole
from tacit.rl.pipo import PIPO
from tacit.rl.rollback import Rollback
from tacit.rl.rollout_bandit import CBS
from tacit.rl.trainer import Trainer

# Five prompts and rows of unlike lengths: the ranks get unequal numbers of rows and of micro-batches, and one row too few for a share each.
FULL: dict[str, Any] = {
    "filter": {"drop_constant": True, "max_rounds": 2, "overlong_buffer": 2},
    "epochs": 2,
    "minibatch_rows": 9,
    "micro_batch_tokens": 18,
    "kl": {"coefficient": 0.05, "importance_weighted": True},
    "importance_cap": 2.0,
}
PLAIN = {"prefix_sharing": False}
SAMPLING = {"prompts": 5, "group_size": 5, "max_new_tokens": 4}
OPTIMISER = {"lr": 0.02, "warmup": 2, "schedule": "cosine", "weight_decay": 0.01}
STEPS = 2


def trainer_of(lab: Any, runtime: Runtime, algorithm: dict[str, Any], agents: int = 1, components: Any = (), **sampling: Any) -> Trainer:
    made = []
    for index in range(agents):
        policy = lab.policy(seed=index)
        mirror = lab.policy(seed=index) if runtime.sharded else None
        runtime.distribute(policy.scorer)
        options: dict[str, Any] = {"sampling": SAMPLING | sampling, "optimiser": OPTIMISER, "mirror": mirror, "steps": STEPS}
        options |= {"index": index, "components": list(components)}
        made.append(lab.agent(policy, algorithm=algorithm, **options))
    return Trainer(made, lab.letters(), lab.first_letter, runtime=runtime)


def described(trainer: Trainer, steps: list[Any]) -> dict[str, Any]:
    """All that must agree, as JSON; floats survive it exactly."""
    return {
        "tokens": [step.drawn.token.tolist() for step in steps],
        "groups": [step.drawn.group.tolist() for step in steps],
        "drawn by": [step.drawn.agent.tolist() for step in steps],
        "advantages": [step.pool.advantage.tolist() for step in steps],
        "kept": [step.kept.tolist() for step in steps],
        "metrics": [{n: v for n, v in step.metrics.items() if not n.startswith(("time/", "throughput/", "cbs/seconds"))} for step in steps],
        "weights": [{name: p.tolist() for name, p in agent.policy.state_dict().items()} for agent in trainer.agents],
    }


class Watch:
    """Loss and gradient of every optimiser step, summed over ranks, and this rank's number of micro-batches with work in them."""

    def __init__(self, runtime: Runtime):
        self.losses: list[float] = []
        self.gradients: list[dict[str, Any]] = []
        self.micro_batches: list[int] = []
        self._loss, self._count = 0.0, 0
        self._objective, self._step = update_module.objective, update_module.clip_and_step

        def objective(agent, update, part, *rest):
            loss = self._objective(agent, update, part, *rest)
            self._loss += float(loss.detach())
            self._count += bool(part.action.any())
            return loss

        def clip_and_step(optimiser, scheduler, params, max_norm):
            self.losses.append(sum(runtime.gather_objects(self._loss)))
            self.gradients.append([whole(p.grad).tolist() for p in params])
            self.micro_batches.append(self._count)
            self._loss, self._count = 0.0, 0
            return self._step(optimiser, scheduler, params, max_norm)

        update_module.objective, update_module.clip_and_step = objective, clip_and_step

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        update_module.objective, update_module.clip_and_step = self._objective, self._step


def full_run(lab: Any, runtime: Runtime, folder: Path, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two steps, with a checkpoint in between that rank 0 writes."""
    with Watch(runtime) as watch:
        trainer = trainer_of(lab, runtime, FULL | (more or {}))
        first = trainer.step()
        state = trainer.state_dict()
        if runtime.is_main:
            CheckpointStore(folder).save(1, state)
        runtime.barrier()
        found = described(trainer, [first, trainer.step()])
    counts = runtime.gather_objects(watch.micro_batches)
    return found | {"losses": watch.losses, "gradients": watch.gradients, "micro-batches": counts}


def resumed_run(lab: Any, runtime: Runtime, folder: Path) -> dict[str, Any]:
    """The second step again, from the checkpoint."""
    trainer = trainer_of(lab, runtime, FULL)
    trainer.load_state_dict(CheckpointStore(folder).latest().state)
    return described(trainer, [trainer.step()])


def other_runs(lab: Any, runtime: Runtime, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two agents with ReMax, whose greedy rollouts share the pool; a single prompt, which leaves a second rank idle; PIPO and a rollback."""
    found = {}
    for name, trainer in {
        "two agents": trainer_of(lab, runtime, {"advantage": "remax", **(more or {})}, agents=2),
        "one prompt": trainer_of(lab, runtime, {"epochs": 2, **(more or {})}, prompts=1),
    }.items():
        found[name] = described(trainer, [trainer.step()])
    guard: Any = Rollback(probes=7, every=1)
    verdicts = iter([False, False, False, True, False])  # the fourth step takes the policy back
    guard.test.harmed = lambda scores: next(verdicts)
    trainer = trainer_of(lab, runtime, {"minibatch_rows": 9}, components=[PIPO(window=2, constant=0.5), guard])
    found["pipo and rollback"] = described(trainer, [trainer.step() for _ in range(5)])
    return found


def bandit(lab: Any, runtime: Runtime, more: dict[str, Any] | None = None) -> Trainer:
    """A buffer of two rounds, of which the scheduler chooses from the third step on."""
    cbs = CBS(mode="global", rounds=2, count=0.5, warmup=2, explore=(0.0, 0.0, 1), dropout=0.0, probes=3)
    return trainer_of(lab, runtime, {"minibatch_rows": 9, **(more or {})}, components=[cbs])


def bandit_run(lab: Any, runtime: Runtime, folder: Path, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Five steps, and the last two again from a checkpoint, when a label is pending."""
    trainer = bandit(lab, runtime, more)
    steps = [trainer.step() for _ in range(3)]
    state = trainer.state_dict()
    if runtime.is_main:
        CheckpointStore(folder).save(3, state)
    runtime.barrier()
    found = described(trainer, steps + [trainer.step() for _ in range(2)])
    again = bandit(lab, runtime, more)
    again.load_state_dict(CheckpointStore(folder).latest().state)
    return found | {"resumed": described(again, [again.step() for _ in range(2)])}


def in_two_processes(folder: Path) -> None:
    """What each rank runs under torchrun. Results of rank 0 go to a file."""
    from torch.distributed.tensor import DTensor

    from conftest import Lab  # this folder's, beside the script

    lab, found = Lab(), {}
    for way in ("ddp", "fsdp2"):
        runtime = Runtime(device="cpu", threads=1, seed=0, distributed=way)
        assert runtime.world_size == 2, "torchrun did not start two processes"
        trainer = trainer_of(lab, runtime, FULL)
        found[way] = {
            "sharded": [isinstance(p, DTensor) for _, p in trainer.agents[0].policy.trainable()],
            "mirror sharded": [isinstance(p, DTensor) for _, p in trainer.agents[0].mirror.trainable()],
            "full": full_run(lab, runtime, folder / way),
            "resumed": resumed_run(lab, runtime, folder / way),
            "cbs": bandit_run(lab, runtime, folder / f"{way}-cbs"),
            **other_runs(lab, runtime),
        }
        weights = [found[way][run]["weights"] for run in ("full", "cbs")]
        found[way]["ranks agree"] = len({json.dumps(w) for w in runtime.gather_objects(weights)}) == 1
    if runtime.is_main:
        (folder / "found.json").write_text(json.dumps(found))
    runtime.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tacit.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def alone(lab, tmp_path_factory) -> dict[str, Any]:
    """Every completion in a row of its own."""
    runtime = Runtime(device="cpu")
    cbs = bandit_run(lab, runtime, tmp_path_factory.mktemp("alone-cbs"), PLAIN)
    return {"full": full_run(lab, runtime, tmp_path_factory.mktemp("alone"), PLAIN), "cbs": cbs, **other_runs(lab, runtime, PLAIN)}


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    """Numbers within 1e-9, what CBS's float32 network says within 1e-5, everything else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name in expected:
            assert_equal(found[name], expected[name], f"{place}/{name}")
    elif isinstance(expected, list) and not all(isinstance(x, int | float) for x in expected):
        assert len(found) == len(expected), place
        for index, item in enumerate(expected):
            assert_equal(found[index], item, f"{place}/{index}")
    else:
        tolerance = 1e-5 if "cbs/loss" in place else 1e-6 if "logp_gap" in place or "importance" in place or "sample_size" in place else 1e-9
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-12), place


def test_the_test_tests_what_it_should(two, alone):
    """The ranks had unequal work, the filter drew again, and something was learnt."""
    for way in ("ddp", "fsdp2"):
        counts = two[way]["full"]["micro-batches"]
        assert any(a != b for a, b in zip(*counts, strict=True)) and all(min(c) >= 1 for c in counts)
        assert two[way]["ranks agree"]
    assert max(m["data/rounds"] for m in alone["full"]["metrics"]) == 2
    assert all(m["optimiser/grad_norm"] > 1e-3 and m["optimiser/steps"] >= 4 for m in alone["full"]["metrics"])
    verified = alone["pipo and rollback"]["metrics"]
    assert [m.get("agent0/replay/optimiser/steps") for m in verified] == [None, None, 3, None, None]
    assert [m["rollback/harm"] for m in verified] == [0, 0, 0, 1, 0]
    chosen = alone["cbs"]["metrics"]
    assert [m["cbs/epsilon"] for m in chosen] == [1, 1, 0, 0, 0] and all(m["select/replayed"] > 0 for m in chosen[1:])
    assert {0, 1} == set(alone["two agents"]["drawn by"][0])
    assert not any(two["ddp"]["sharded"])
    assert all(two["fsdp2"]["sharded"]) and not any(two["fsdp2"]["mirror sharded"])


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
@pytest.mark.parametrize("run", ["full", "two agents", "one prompt", "pipo and rollback", "cbs"])
def test_two_processes_are_as_one(two, alone, way, run):
    found, expected = dict(two[way][run]), dict(alone[run])
    found.pop("micro-batches", None), expected.pop("micro-batches", None)
    assert_equal(found, expected)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_resume_bit_for_bit(two, way):
    for straight, resumed, since in ((two[way]["full"], two[way]["resumed"], 1), (two[way]["cbs"], two[way]["cbs"]["resumed"], 3)):
        assert resumed["weights"] == straight["weights"]
        for name in ("tokens", "advantages", "kept", "metrics"):
            assert resumed[name] == straight[name][since:]


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
