"""Trackers: where metrics go beside the run folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = {"trackio": ("trackio",), "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}  # one of each suffices


class Trackers:
    """trackio, tensorboard and wandb, by accelerate's classes, opened at the first word they get.

    The run is called after `folder` in project "tacit"; tensorboard writes into FOLDER/tensorboard.
    Raises ValueError at once when one is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path):
        self.names, self.folder = list(names), folder.resolve()
        self._open: list[Any] = []
        for name in names:
            if name not in PACKAGES:
                raise ValueError(f"unknown tracker {name!r}: choose from {', '.join(PACKAGES)}")
            if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
                raise ValueError(f"the tracker {name!r} is not installed; pip install 'tacit[trackers]', or remove it from runtime.trackers")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._opened():
            tracker.log(dict(metrics), step=step)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Tells what the run is; nested fields become `a.b`."""
        for tracker in self._opened():
            tracker.store_init_configuration(flat(config))

    def close(self) -> None:
        for tracker in self._open:
            tracker.finish()
        self._open = []

    def _opened(self) -> list[Any]:
        if self.names and not self._open:
            from accelerate import PartialState  # a second to import, and most runs do without
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            PartialState()  # some of these classes ask for it and do not make it
            for name in self.names:
                files = name == "tensorboard"
                options: dict[str, Any] = {"logging_dir": self.folder} if files else {"name": self.folder.name}
                tracker = LOGGER_TYPE_TO_CLASS[name]("tensorboard" if files else "tacit", **options)
                tracker.start()
                self._open.append(tracker)
        return self._open


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """{"a": {"b": 1}} -> {"a.b": 1}; what is neither number nor text becomes text."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
