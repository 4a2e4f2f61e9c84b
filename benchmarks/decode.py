"""Decoding on the CPU: the native decoder beside `generate`, `generate` with its static cache, and the generic decoder, turn by turn.

All draw the same number of rows of the same length from the same weights (no end token), each with the number of threads, 1 or all, that it is
faster with here and now. `ratios` are generate's median time / the native decoder's; those named "generic/..." the generic decoder's. The native time
holds the packing of the weights. `of_floor` is what the matrix products alone take in torch, with all threads, over the native time;
`of_bandwidth` is what it reads of weights, once a step and thread, over what the memory gives. `two_processes` draws half of the rows in each of two
processes of one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from tacit.config import TinyConfig
from tacit.core.environment import environment
from tacit.core.policy import Policy
from tacit.core.rollouts import Prompt
from tacit.core.runtime import Runtime
from tacit.core.tiny import char_tokenizer, tiny_model
from tacit.generation.decoders import usable_threads
from tacit.generation.native_decoder import NativeDecoder, weights_of
from tacit.generation.sampler import Sampler
from tacit.generation.transformers_decoder import TransformersDecoder

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODELS = {
    "1.1M": TinyConfig(family="qwen2", hidden=128, layers=5, heads=4, mlp=384, context=512),
    "10.7M": TinyConfig(family="qwen2", hidden=384, layers=6, heads=6, mlp=1024, context=512),
    "50M": TinyConfig(family="qwen2", hidden=640, layers=10, heads=10, kv_heads=5, mlp=2048, context=512),
}
GROUP = 8
Contestant = Callable[[int], Any]  # draws once, with a seed


@dataclass(frozen=True)
class Case:
    model: str
    rows: int
    prompt: int = 16
    new: int = 64
    bf16: bool = False
    rounds: int = 5

    @property
    def name(self) -> str:
        return f"{self.model} {'bf16' if self.bf16 else 'fp32'}, {self.rows} rows, prompt {self.prompt}, {self.new} new"

    def prompts(self) -> list[Prompt]:
        generator = torch.Generator().manual_seed(0)
        letters = torch.randint(len(LETTERS), (self.rows // GROUP, self.prompt), generator=generator)
        return [Prompt(str(i), "".join(LETTERS[j] for j in row)) for i, row in enumerate(letters)]

    def policy(self) -> Policy:
        tokenizer = char_tokenizer(LETTERS)
        model = tiny_model(MODELS[self.model], tokenizer, seed=0)
        policy = Policy(model.to(torch.bfloat16) if self.bf16 else model, tokenizer)  # pyright: ignore[reportArgumentType]
        policy.stop_ids = frozenset()
        return policy


CASES = [
    *(Case("1.1M", rows) for rows in (8, 32, 128)),
    Case("1.1M", 512, rounds=3),
    Case("1.1M", 32, prompt=256),
    *(Case("10.7M", rows, rounds=3) for rows in (8, 32)),
    Case("10.7M", 128, new=32, rounds=3),
    Case("10.7M", 512, new=8, rounds=2),
    Case("10.7M", 32, prompt=256, new=32, rounds=2),
    Case("10.7M", 32, bf16=True, rounds=3),
    *(Case("50M", rows, new=16, rounds=2) for rows in (8, 32, 128)),
    Case("50M", 512, new=4, rounds=2),
    Case("50M", 32, new=16, bf16=True, rounds=2),
]


def contestants(case: Case, policy: Policy) -> dict[str, Contestant]:
    prompts = case.prompts()
    ids = torch.tensor([policy.encode_prompt(prompt) for prompt in prompts for _ in range(GROUP)])

    def generate(seed: int, **options: Any) -> Any:
        torch.manual_seed(seed)
        length = {"max_new_tokens": case.new, "min_new_tokens": case.new}
        sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        found = policy.model.generate(ids, attention_mask=torch.ones_like(ids), **length, **sampling, **options)  # pyright: ignore[reportCallIssue]
        assert found.shape == (case.rows, case.prompt + case.new)

    def sampling(decoder: Any) -> Contestant:
        sampler = Sampler(decoder, policy, max_new_tokens=case.new)

        def sample(seed: int) -> None:
            batch = sampler.sample(prompts, GROUP, seed=seed, step=0, groups=list(range(len(prompts))))
            assert len(batch.token) == case.rows * case.new

        return sample

    return {
        "generate": generate,
        "static": lambda seed: generate(seed, cache_implementation="static", disable_compile=True),
        "generic": sampling(TransformersDecoder(policy)),
        "native, 1 thread": sampling(NativeDecoder(policy, threads=1)),
        "native": sampling(NativeDecoder(policy, threads=usable_threads())),
    }


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def race(case: Case, policy: Policy) -> dict[str, Any]:
    """Median seconds of each, in turn, after a round with each number of threads in which those of torch are chosen."""
    runners, threads = contestants(case, policy), {}
    for name, draw in runners.items():
        found = {}
        for count in sorted({1, usable_threads()}) if not name.startswith("native") else [1]:
            torch.set_num_threads(count)
            found[count] = seconds(lambda draw=draw: draw(0))
        threads[name] = min(found, key=found.__getitem__)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(case.rounds):
        for name, draw in runners.items():
            torch.set_num_threads(threads[name])
            times[name].append(seconds(lambda draw=draw, turn=turn: draw(turn)))
    tokens = case.rows * case.new
    return {
        name: {"seconds": round(statistics.median(t), 4), "tokens_per_second": round(tokens / statistics.median(t)), "torch_threads": threads[name]}
        for name, t in times.items()
    }


def floor(case: Case, policy: Policy) -> float:
    """Seconds of the matrix products of every step, prompts aside."""
    torch.set_num_threads(usable_threads())
    weights = [w for w in weights_of(policy.base_model)[1:] if w is not None and w.ndim == 2]
    inputs = {w.shape[1]: torch.randn(case.rows, w.shape[1]).to(w.dtype) for w in weights}

    def step() -> None:
        for w in weights:
            torch.mm(inputs[w.shape[1]], w.T)

    step()
    return statistics.median(seconds(step) for _ in range(20)) * case.new


def memory_bandwidth() -> float:
    """Bytes a second that all threads read."""
    torch.set_num_threads(usable_threads())
    large = torch.ones(2**27)
    return large.numel() * 4 / min(seconds(large.sum) for _ in range(5))


def share_of_process(case: Case, barrier: Any, times: Any) -> None:
    torch.set_num_threads(1)
    policy, half = case.policy(), Case(case.model, case.rows // 2, case.prompt, case.new, case.bf16)
    draw = contestants(half, policy)["native, 1 thread"]
    draw(0)
    for turn in range(case.rounds):
        barrier.wait()
        times.put((turn, seconds(lambda turn=turn: draw(turn))))


def two_processes(case: Case) -> float:
    """Median seconds until both have drawn their half."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(2), context.Queue()
    workers = [context.Process(target=share_of_process, args=(case, barrier, times)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [times.get() for _ in range(2 * case.rounds)]
    for worker in workers:
        worker.join()
    return statistics.median(max(s for t, s in found if t == turn) for turn in range(case.rounds))


def run(case: Case, bandwidth: float) -> dict[str, Any]:
    policy = case.policy()
    result = race(case, policy)
    native, size = result["native"]["seconds"], sum(w.numel() * w.element_size() for w in weights_of(policy.base_model)[1:] if w is not None)
    decoder = NativeDecoder(policy)
    with decoder.session():
        pass
    result |= {
        "pack_seconds": round(decoder.pack_seconds, 4),
        "of_floor": round(floor(case, policy) / native, 2),
        "of_bandwidth": round(size * case.new * usable_threads() / native / bandwidth, 3),
    }
    if case.rows == 128 and usable_threads() > 1:
        result["two_processes"] = {"seconds": round(two_processes(case), 4)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose names contain this")
    only = parser.parse_args().only
    transformers.utils.logging.set_verbosity_error()
    result: dict[str, Any] = {"ratios": {}, "cases": {}}
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        bandwidth = memory_bandwidth()
        for case in CASES:
            if only not in case.name:
                continue
            found = run(case, bandwidth)
            result["cases"][case.name] = found
            native = found["native"]["seconds"]
            result["ratios"] |= {case.name: round(found["generate"]["seconds"] / native, 2)}
            result["ratios"] |= {f"generic/{case.name}": round(found["generic"]["seconds"] / native, 2)}
            speeds = ", ".join(
                f"{name} {found[name]['tokens_per_second']:,}" for name in ("generate", "static", "generic", "native, 1 thread", "native")
            )
            print(f"{case.name}: {speeds} tokens/s; {result['ratios'][case.name]} x generate", flush=True)
    result |= {"memory_gb_per_second": round(bandwidth / 1e9, 1), "threads": usable_threads(), "seconds": round(time.perf_counter() - began)}
    print(json.dumps(result | {"environment": environment(Runtime(device="cpu"))}, indent=1))


if __name__ == "__main__":
    main()
