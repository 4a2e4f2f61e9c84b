"""The bundled router: a logistic model on metadata, shipped as coefficients. No LLM, no scikit-learn, microseconds a decision.

It estimates P(long context gives the better answer | the two routes differ), and sends there what exceeds the threshold of the answerer. Weights
are shared between answerers, each with deviations of its own; an answerer that it was not fitted on gets the mean of those of its strength.
Source: our construction after section 7.3 of the specification. `tacit.routing.fitting` writes the file, from LaRA or from your own table.
"""

from __future__ import annotations

import json
from importlib.resources import files
from math import exp
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit.routing.decision import Decision, Metadata, decision, hard_rule
from tacit.routing.features import DESCRIBED, NAMES, TYPES, features

MOST_REASONS = 3


class Part(BaseModel):
    """What one answerer, or a group of them, adds to the shared weights, and from which probability on long context is worth its cost."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    intercept: float
    weights: list[float] = Field(min_length=len(NAMES), max_length=len(NAMES))
    threshold: float = Field(ge=0, le=1)
    strength: str


class Coefficients(BaseModel):
    """The artefact. `mean` and `scale` standardise the features."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    format: Literal["tacit router 1"] = "tacit router 1"
    features: list[str]
    mean: list[float] = Field(min_length=len(NAMES), max_length=len(NAMES))
    scale: list[float] = Field(min_length=len(NAMES), max_length=len(NAMES))
    weights: list[float] = Field(min_length=len(NAMES), max_length=len(NAMES))
    answerers: dict[str, Part] = Field(min_length=1)
    fitted_on: str

    def part(self, answerer: str, strength: str) -> tuple[str, Part]:
        """The part of `answerer`; else the mean part of its strength, or of all; and which it is."""
        if answerer in self.answerers:
            return answerer, self.answerers[answerer]
        alike = [p for p in self.answerers.values() if p.strength == strength]
        told = f"{strength} answerers" if alike else "all answerers"
        return f"the mean of {told}", mean_part(alike or list(self.answerers.values()))


def mean_part(parts: list[Part]) -> Part:
    n = len(parts)
    return Part(
        intercept=sum(p.intercept for p in parts) / n,
        weights=[sum(column) / n for column in zip(*(p.weights for p in parts))],
        threshold=sum(p.threshold for p in parts) / n,
        strength=parts[0].strength,
    )


class LearnedRouter:
    """Decides by `coefficients`. Neither the head nor the title of a document has a say."""

    def __init__(self, coefficients: Coefficients, name: str = "bundled"):
        if tuple(coefficients.features) != NAMES:
            raise ValueError(f"these coefficients are for the features {', '.join(coefficients.features)}; this version has {', '.join(NAMES)}")
        self.coefficients, self.name = coefficients, name
        self._parts: dict[tuple[str, str], tuple[str, Part]] = {}

    @classmethod
    def load(cls, path: str | Path | None = None) -> LearnedRouter:
        """The router of a file that `tacit route calibrate` wrote, by default the bundled one. Raises ValueError when the file is none."""
        source = files("tacit.routing").joinpath("bundled.json") if path is None else Path(path)
        try:
            return cls(Coefficients.model_validate_json(source.read_text(encoding="utf-8")), "bundled" if path is None else Path(path).stem)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path} is no router: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg'].lower()}") from None

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.coefficients.model_dump(), indent=1) + "\n", encoding="utf-8")

    def decide(self, metadata: Metadata) -> Decision:
        return hard_rule(metadata) or self._weigh(metadata)

    def _weigh(self, metadata: Metadata) -> Decision:
        c, setting = self.coefficients, metadata.setting
        key = (setting.answer_model, setting.strength)
        if key not in self._parts:
            self._parts[key] = c.part(*key)
        whose, part = self._parts[key]
        values = features(metadata)
        pulls = [(w + own) * (x - m) / s for w, own, x, m, s in zip(c.weights, part.weights, values, c.mean, c.scale)]
        if metadata.doc_type not in TYPES:  # of no type that it knows: the average document
            pulls = [0.0 if name in TYPES else pull for name, pull in zip(NAMES, pulls)]
        better = 1 / (1 + exp(-min(50.0, max(-50.0, part.intercept + sum(pulls)))))
        to_lc = better > part.threshold
        told = f"Where the routes differ, long context is better with probability {better:.2f}; it is taken above {part.threshold:.2f} ({whose})."
        return decision(
            metadata,
            better,
            (told, *_said(values, pulls, to_lc)),
            "model",
            threshold=part.threshold,
            confidence=better if to_lc else 1 - better,
            trace={"pulls": dict(zip(NAMES, (round(p, 4) for p in pulls)))},
        )


def _said(values: list[float], pulls: list[float], to_lc: bool) -> list[str]:
    """The facts that speak loudest, those for the route first; of yes-or-no facts only those that hold."""
    counted = {"words", "names", "length"}
    held = [(pull, name) for name, value, pull in zip(NAMES, values, pulls) if name in counted or value]
    loud = sorted(held, key=lambda found: -abs(found[0]))[:MOST_REASONS]
    ordered = sorted(loud, key=lambda found: -found[0] if to_lc else found[0])
    return [f"{'For long context' if pull > 0 else 'For RAG'}: {DESCRIBED[name]} ({pull:+.2f})." for pull, name in ordered]
