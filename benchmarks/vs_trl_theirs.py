"""TRL's side of `vs_trl.py`: its own `train()`, a step whenever told; and its answer to the update that tacit shows."""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from _common import trl_trainer
from _work import BETAS, CASES, CLIP, LEARNING_RATE, MAX_GRAD_NORM, PAD_ID, SEED, Case, vowels
from _worker import Line, arguments, place, resident

BARS = {"loss": 1e-5, "cosine": 0.9999, "norm": 1e-3}  # those of parity_trl.py


def trainer_of(case: Case, model: Path, output: Path, *, ranks: int, micro_batches: int, precision: str, steps: int) -> GRPOTrainer:
    settings = {
        "per_device_train_batch_size": case.rows // micro_batches // ranks,
        "gradient_accumulation_steps": micro_batches,
        "num_generations": case.group_size,
        "max_completion_length": case.max_new_tokens,
        "max_steps": steps,
        "loss_type": "dapo",
        "epsilon": CLIP[0],
        "epsilon_high": CLIP[1],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "max_grad_norm": MAX_GRAD_NORM,
        "seed": SEED,
        "bf16": precision == "bf16",
    }
    prompts = [case.prompt(i) for i in range(case.prompts * steps)]
    return trl_trainer(model, output, prompts, lambda completions, **_: [vowels(c) for c in completions], settings)


class Turns(TrainerCallback):
    """After each step it tells what that took, and waits for the next command; what it waits is nobody's time."""

    def __init__(self, trainer: GRPOTrainer, line: Line, rows: int):
        self.trainer, self.line, self.rows = trainer, line, rows
        self.spent = {"generate": 0.0, "before": 0.0}
        self._time("_generate_single_turn", "generate")
        self._time("_generate_and_score_completions", "before")
        self.start = 0.0

    def _time(self, method: str, name: str) -> None:
        original = getattr(self.trainer, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = original(*arguments, **named)
            self.spent[name] += time.perf_counter() - start
            return result

        setattr(self.trainer, method, timed)

    def wait(self, control: Any = None) -> None:
        while (command := self.line.hear()) is not None and command["do"] == "memory":
            self.line.tell({"peak": resident("VmHWM")})
        if command is None and control is not None:
            control.should_training_stop = True
        self.spent = dict.fromkeys(self.spent, 0.0)
        self.start = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.start
        tokens = round(self.rows * self.trainer._metrics["train"]["completions/mean_length"][-1])
        update = seconds - self.spent["before"]
        self.line.tell({"seconds": seconds, "rollout": self.spent["generate"], "update": update, "tokens": tokens})
        self.wait(control)


def prove(trainer: GRPOTrainer, ours: dict[str, Any]) -> dict[str, Any]:
    """TRL's loss, gradient and change of weights beside tacit's: the same rollouts, from the same weights."""
    prompts, completions = ours["prompts"], ours["completions"]
    left, right = max(map(len, prompts)), max(map(len, completions))
    inputs = {
        "prompt_ids": torch.tensor([[PAD_ID] * (left - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([c + [PAD_ID] * (right - len(c)) for c in completions]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (right - len(c)) for c in completions]),
        "advantages": ours["advantages"],
        "num_items_in_batch": torch.tensor(sum(map(len, completions)) * trainer.args.steps_per_generation),
    }
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    trainer.create_optimizer_and_scheduler(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = torch.cat([p.detach().flatten() for p in parameters])
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    gradient = torch.cat([p.grad.flatten().clone() for p in parameters])
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    trainer.optimizer.step()
    change = torch.cat([p.detach().flatten() for p in parameters]) - before
    found = {
        "parameters": len(before),
        "loss": [ours["loss"], float(loss.detach())],
        "gradient": compared(ours["gradient"], gradient),
        "change_of_weights": compared(ours["change"], change),
    }
    # group advantages cancel in the mean: fp32 knows such a loss to a share of its terms only, see parity_trl.py
    size = float((ours["advantages"].abs() * torch.tensor([len(c) for c in completions])).sum()) / sum(map(len, completions))
    same_loss = abs(found["loss"][0] - found["loss"][1]) <= BARS["loss"] * max(abs(found["loss"][1]), 0.01 * size)
    holds = all(x["cosine"] > BARS["cosine"] and abs(x["norm_ratio"] - 1) <= BARS["norm"] for x in (found["gradient"], found["change_of_weights"]))
    return {"holds": same_loss and holds, "bars": BARS, **found}


def compared(a: Tensor, b: Tensor) -> dict[str, float]:
    a, b = a.double(), b.double()
    assert math.isfinite(float(a.norm())) and a.shape == b.shape
    return {"cosine": float(torch.cosine_similarity(a, b, dim=0)), "norm_ratio": float(a.norm() / b.norm())}


def main() -> None:
    line, options = Line(), arguments()
    torch.set_num_threads(options.threads)
    case, ranks = CASES[options.case], int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as output:
        how = {"ranks": ranks, "micro_batches": options.micro_batches, "precision": options.precision, "steps": options.steps}
        trainer = trainer_of(case, options.folder / "model", Path(output), **how)
        if options.job == "prove":
            line.tell(prove(trainer, torch.load(options.folder / "first.pt")))
            return
        assert torch.get_num_threads() == options.threads
        line.tell({"rank": trainer.accelerator.process_index, "memory": resident("VmRSS"), **place()})
        trainer.add_callback(Turns(trainer, line, case.rows))
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
