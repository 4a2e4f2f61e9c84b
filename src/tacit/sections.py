"""Sections that recipes of every kind share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Unknown keys are errors, numbers are finite, and a validated config does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RuntimeConfig(Strict):
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of forward and backward; weights keep model.dtype")
    threads: int | None = Field(default=None, ge=1, description="torch threads; default: 1 for tiny models, else torch's choice")
    processes: int = Field(default=1, ge=1, description="processes on this machine; under torchrun, those that it started")
    distributed: Literal["ddp", "fsdp2"] = "ddp"
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] = Field(default_factory=list)


class CheckpointConfig(Strict):
    every: int = Field(default=20, ge=1, description="steps")
    keep: int = Field(default=2, ge=1)
