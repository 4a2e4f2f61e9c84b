"""The whole RL step of tacit beside that of tuned TRL 1.16: the same work, each in its own environment and processes, A B A B …

Both start from the same weights and draw, score and train on the same prompts, with the same group size, temperature, length limit, reward, loss
(DAPO's, token-mean), AdamW, gradient clipping, precision and processors. Each case is run like this:

1. Proof: tacit takes its first step and shows it; TRL repeats the update from the same weights. Loss, gradient and change of the weights must agree.
2. Tuning: each side tries one process with all processors and one process per processor, TRL also 1 and 4 micro-batches and bf16; both race with the
   fastest. TRL has no gradient checkpointing, logs nothing, and uses the fused AdamW.
3. Race: a step of each in turn. `ratio` is TRL's time over tacit's for adjacent steps: median, quartiles, minimum and maximum.
4. Floor: the matrix products of the update alone, in torch, in the same processes.

The model decides when completions end: one constant dimension of the embedding makes EOS impossible (fixed length), or so likely that the mean
length is about 30 (variable). The learning rate is too small to change that.

Run it alone on the machine. Cases are merged into the results file, so that they can be run one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _work import CASES, SEED, Case

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "results" / "benchmarks" / "vs_trl.json"
PYTHON = {"ours": ROOT / ".venv/bin/python", "theirs": ROOT / ".venv-trl/bin/python"}
PROCESSORS = len(os.sched_getaffinity(0))
WARM_UP, TRIALS = 2, 2  # steps of a side that do not count; steps that decide how it is tuned


@dataclass(frozen=True)
class Setup:
    """How a side uses the processors."""

    side: str
    precision: str = "fp32"
    ranks: int = 1
    micro_batches: int = 1

    @property
    def threads(self) -> int:
        return max(1, PROCESSORS // self.ranks)

    @property
    def name(self) -> str:
        ranks = f"{self.ranks} process{'es' * (self.ranks > 1)} of {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.precision}, {ranks}" + (f", {self.micro_batches} micro-batches" if self.micro_batches > 1 else "")


class Worker:
    """The processes of one side, waiting for commands."""

    def __init__(self, case: str, setup: Setup, folder: Path, *, job: str = "race", steps: int = 1):
        self.setup = setup
        script = HERE / f"vs_trl_{setup.side}.py"
        options = {"case": case, "folder": folder, "precision": setup.precision, "threads": setup.threads, "micro-batches": setup.micro_batches}
        options |= {"steps": steps, "job": job}
        command = [str(PYTHON[setup.side]), str(script), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(setup.threads), "HF_HUB_OFFLINE": "1"}
        if setup.ranks > 1:
            shared = {"WORLD_SIZE": setup.ranks, "LOCAL_WORLD_SIZE": setup.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            environment |= {name: str(value) for name, value in shared.items()}
        self.processes = []
        for rank in range(setup.ranks):
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if setup.ranks > 1 else {}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            self.processes.append(subprocess.Popen(command, env=environment | of_rank, **pipes))

    def hear(self) -> list[dict[str, Any]]:
        """One answer of every rank."""
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            raise SystemExit(f"a worker has ended: {self.processes[0].args}")
        return [json.loads(line) for line in lines]

    def ask(self, what: str) -> list[dict[str, Any]]:
        for process in self.processes:
            process.stdin.write(json.dumps({"do": what}) + "\n")
            process.stdin.flush()
        return self.hear()

    def step(self) -> dict[str, Any]:
        """The times of the slowest rank."""
        answers = self.ask("step")
        return max(answers, key=lambda answer: answer["seconds"]) | {"tokens": answers[0]["tokens"]}

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def worker(case: str, setup: Setup, folder: Path, **more: Any) -> Iterator[Worker]:
    found = Worker(case, setup, folder, **more)
    try:
        yield found
    finally:
        found.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the four parts ---


def trial(case: str, setup: Setup, folder: Path) -> float:
    """Seconds of the fastest step after warm-up."""
    with worker(case, setup, folder, steps=1 + TRIALS) as tried:
        tried.hear()
        tried.step()
        return min(tried.step()["seconds"] for _ in range(TRIALS))


def tuned(case: str, folder: Path) -> tuple[dict[str, Setup], dict[str, float]]:
    """The fastest setup of each side and precision, and the seconds of all that were tried."""
    seconds: dict[Setup, float] = {}

    def fastest(setups: Sequence[Setup]) -> Setup:
        for setup in setups:
            if setup not in seconds:
                seconds[setup] = trial(case, setup, folder)
                say(f"  {setup.side}, {setup.name}: {seconds[setup] * 1e3:.0f} ms")
        return min(setups, key=seconds.__getitem__)

    found = {}
    for side in ("ours", "theirs"):
        best = fastest([Setup(side, ranks=ranks) for ranks in sorted({1, PROCESSORS})])
        if side == "theirs":
            best = fastest([best, replace(best, micro_batches=4)])
        found[side] = best
        found[f"{side}, bf16"] = replace(best, precision="bf16")
        if side == "theirs":
            fastest([found["theirs, bf16"]])
    return found, {f"{setup.side}, {setup.name}": round(value, 4) for setup, value in seconds.items()}


def proof(name: str, setups: dict[str, Setup], folder: Path) -> dict[str, Any]:
    """TRL's word on tacit's first update. Raises SystemExit when it is another one."""
    with worker(name, setups["ours"], folder) as ours:
        ours.hear()
        ours.ask("show")
    with worker(name, Setup("theirs"), folder, job="prove") as theirs:
        [found] = theirs.hear()
    if not found["holds"]:
        raise SystemExit(f"{name}: the two sides do not do the same work: {found}")
    return found


def race(name: str, case: Case, setups: dict[str, Setup], folder: Path, rounds: int) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The steps of every contestant, in turn; places, memory and the floor."""
    told: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {who: stack.enter_context(worker(name, setup, folder, steps=WARM_UP + rounds)) for who, setup in setups.items()}
        start = {who: w.hear() for who, w in workers.items()}
        steps: dict[str, list[dict[str, Any]]] = {who: [] for who in workers}
        peak: dict[str, float] = {}
        for turn in range(WARM_UP + rounds):
            if turn == WARM_UP + rounds - 1:  # TRL ends with its last step
                peak = {who: sum(rank["peak"] for rank in w.ask("memory")) for who, w in workers.items()}
            for who, w in workers.items():
                step = w.step()
                if turn >= WARM_UP:
                    steps[who].append(step)
        floors = {who: w.ask("floor") for who, w in workers.items() if w.setup.side == "ours"}
    told["place"] = {side: {"versions": start[side][0]["versions"]} for side in ("ours", "theirs")}
    told |= {"machine": start["ours"][0]["machine"], "commit": start["ours"][0]["commit"]}
    told["peak_mb"] = {who: round(value) for who, value in peak.items()}
    told["loaded_mb"] = {who: round(sum(rank["memory"] for rank in ranks)) for who, ranks in start.items()}
    told["floor"] = {who: {"seconds": max(r["seconds"] for r in ranks), "tokens": sum(r["tokens"] for r in ranks)} for who, ranks in floors.items()}
    if case.fixed and {s["tokens"] for s in [*steps["ours"], *steps["theirs"]]} != {case.rows * case.max_new_tokens}:
        raise SystemExit(f"{name}: the two sides did not draw the same number of tokens")
    return steps, told


# --- what is told of them ---


def summary(steps: list[dict[str, Any]], rows: int) -> dict[str, float]:
    """Median seconds of the step and its parts, useful (completion) tokens a second, and their mean length."""
    middle = {part: statistics.median(s[part] for s in steps) for part in ("seconds", "rollout", "update")}
    middle["other"] = statistics.median(s["seconds"] - s["rollout"] - s["update"] for s in steps)
    tokens = sum(s["tokens"] for s in steps)
    rate = round(tokens / sum(s["seconds"] for s in steps))
    return {**{k: round(v, 4) for k, v in middle.items()}, "useful_tokens_per_second": rate, "mean_length": round(tokens / rows / len(steps), 1)}


def ratio(slow: list[dict[str, Any]], fast: list[dict[str, Any]], part: str = "seconds") -> dict[str, float]:
    """Of adjacent steps."""
    found = sorted(s[part] / f[part] for s, f in zip(slow, fast, strict=True))
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    spread = {"median": middle, "quartiles": [round(low, 2), round(high, 2)], "range": [round(found[0], 2), round(found[-1], 2)]}
    return spread | {"median": round(middle, 3)}


def run(name: str, rounds: int | None) -> dict[str, Any]:
    case, began = CASES[name], time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = Worker(name, Setup("ours"), folder, job="make")
        made.close()
        say(f"{name}: tuning")
        setups, tried = tuned(name, folder)
        proven = proof(name, setups, folder)
        steps, told = race(name, case, setups, folder, rounds or case.rounds)
    sides = {who: summary(found, case.rows) for who, found in steps.items()}
    ratios = {part: ratio(steps["theirs"], steps["ours"], part) for part in ("seconds", "rollout", "update")}
    faster = min(("theirs", "theirs, bf16"), key=lambda who: sides[who]["seconds"])
    bf16 = ratio(steps[faster], steps["ours, bf16"]) | {"against": setups[faster].precision}
    floors = {who: f | {"update_over_floor": round(sides[who]["update"] / f["seconds"], 2)} for who, f in told.pop("floor").items()}
    result = {
        "ratio": ratios["seconds"],
        "ratio_rollout": ratios["rollout"],
        "ratio_update": ratios["update"],
        "ratio_bf16": bf16,
        "bar": case.bar,
        "meets_bar": None if case.bar is None else ratios["seconds"]["median"] >= case.bar,
        "sides": {
            who: {"setup": setups[who].name, **side, "peak_mb": told["peak_mb"][who], "loaded_mb": told["loaded_mb"][who]}
            for who, side in sides.items()
        },
        "floor": floors,
        "same_work": proven,
        "tuning": tried,
        "rounds": len(steps["ours"]),
        **{key: told[key] for key in ("place", "machine", "commit")},
        "seconds": round(time.perf_counter() - began),
    }
    say(line(name, result))
    return result


def line(name: str, result: dict[str, Any]) -> str:
    def side(who: str) -> str:
        x = result["sides"][who]
        parts = f"{x['rollout'] * 1e3:.0f} + {x['update'] * 1e3:.0f} + {x['other'] * 1e3:.0f}"
        return f"  {who:13} {x['seconds'] * 1e3:6.0f} ms ({parts}), {x['useful_tokens_per_second']} tokens/s, {x['peak_mb']} MB; {x['setup']}"

    r, floor = result["ratio"], result["floor"]["ours"]
    head = f"{name}: {r['median']} [{r['quartiles'][0]}, {r['quartiles'][1]}], bar {result['bar']}; bf16 {result['ratio_bf16']['median']}"
    head += f" against {result['ratio_bf16']['against']}; update {floor['update_over_floor']} × floor"
    return "\n".join([head, *map(side, result["sides"])])


def losses(name: str, result: dict[str, Any]) -> list[str]:
    """Where tacit is the slower one."""
    parts = {"step": "ratio", "rollout": "ratio_rollout", "update": "ratio_update", "bf16 step": "ratio_bf16"}
    found = [f"{name}: {part}" for part, key in parts.items() if result[key]["median"] < 1]
    mine, yours = result["sides"]["ours"], result["sides"]["theirs"]
    return found + ([f"{name}: peak memory"] if mine["peak_mb"] > yours["peak_mb"] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="only this case (several times: these)")
    parser.add_argument("--rounds", type=int, help="steps of either side that count")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    for name in options.case or CASES:
        result = run(name, options.rounds)
        before = json.loads(options.output.read_text())["cases"] if options.output.exists() else {}
        cases = {case: found for case, found in ({**before, name: result}).items() if case in CASES}
        cases = {case: cases[case] for case in CASES if case in cases}
        merged = {
            "benchmark": "vs_trl",
            "seed": SEED,
            "ratios": {case: found["ratio"]["median"] for case, found in cases.items()},
            "bars": {case: found["bar"] for case, found in cases.items() if found["bar"]},
            "where_we_lose": [text for case, found in cases.items() for text in losses(case, found)],
            "cases": cases,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main()
