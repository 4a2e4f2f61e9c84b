"""What was saved, opened as a policy: a finished run, the newest checkpoint of an unfinished one, or any causal LM that transformers loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tacit.config import ModelConfig, RLConfig, SFTConfig, load
from tacit.core.checkpoint import CheckpointStore
from tacit.core.policy import Policy, load_policy
from tacit.tasks.base import resolve_task


@dataclass(frozen=True)
class Saved:
    """A policy that can be opened. `recipe` is that of the run it comes from; `weights` are those of a checkpoint taken at `step`."""

    source: str
    recipe: RLConfig | SFTConfig | None = None
    step: int | None = None
    weights: Any = None

    @property
    def name(self) -> str:
        """What identifies it, also after the run has gone on."""
        return self.source if self.step is None else f"{self.source} at step {self.step}"

    def open(self, device: torch.device, model: ModelConfig) -> Policy:
        """The policy, with chat template and dtype as `model` says. Raises ValueError when no model can be loaded."""
        transformers.utils.logging.disable_progress_bar()
        if self.recipe is None:
            return load_policy(model.model_copy(update={"path": self.source}), device=device)
        if self.weights is None:
            plain = model.model_copy(update={"path": None, "tiny": None, "lora": None})  # adapters were merged when the run was finished
            return load_policy(plain, device=device, folder=Path(self.source) / "policy")
        folder = Path(self.recipe.init) / "policy" if self.recipe.init else None
        policy = load_policy(model, alphabet=resolve_task(self.recipe.task).alphabet, seed=self.recipe.seed, device=device, folder=folder)
        policy.load_state_dict(self.weights)
        return policy


def find(source: str) -> Saved:
    """What lies at `source`; a name that is no folder is taken for one on the hub. Raises ValueError when a folder holds no policy."""
    folder = Path(source)
    recipe = load(folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    if recipe is not None and (folder / "policy").is_dir():
        return Saved(source, recipe)
    if recipe is not None and (newest := CheckpointStore(folder / "checkpoints").latest()) is not None:
        learner = newest.state["learner"]
        return Saved(source, recipe, newest.step, learner["policy"] if "policy" in learner else learner["agents"][0]["policy"])
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{source} holds no policy: give the folder of a run, or one where transformers has saved a model")
    return Saved(source)
