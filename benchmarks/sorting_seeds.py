"""Does GRPO teach sorting in every seed? The demo's two sorting recipes, five seeds, two processes of one thread each.

Prints one JSON object: held-out sampled pass@1 before and after GRPO and the gain with its interval, per seed; exit code 1 if a seed gains less
than 20 points. The same runs by hand: tacit train recipes/demo/sorting_sft.yaml seed=3, then recipes/demo/sorting_grpo.yaml seed=3.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "demo"
SEEDS, BAR = range(5), 0.20


def one_seed(seed: int) -> dict:
    """Warm start and GRPO of one seed, in a folder that is thrown away."""
    from tacit.config import load
    from tacit.job import run

    with tempfile.TemporaryDirectory() as folder:
        warm, final = f"{folder}/sft", f"{folder}/grpo"
        run(load(RECIPES / "sorting_sft.yaml", [f"seed={seed}", f"output={warm}"]))
        result = run(load(RECIPES / "sorting_grpo.yaml", [f"seed={seed}", f"output={final}", f"init={warm}"])).result
    print(f"seed {seed}: {result['before']['mean']:.3f} -> {result['after']['mean']:.3f}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return {"seed": seed, **{name: result[name] for name in ("before", "after", "gain", "prompts", "samples", "seconds", "environment")}}


if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(one_seed, SEEDS))
    holds = all(row["gain"]["mean"] >= BAR for row in rows)
    print(json.dumps({"benchmark": "sorting_seeds", "bar": BAR, "holds": holds, "seeds": rows}, indent=1))
    sys.exit(not holds)
