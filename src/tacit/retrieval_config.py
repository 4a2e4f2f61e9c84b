"""What a training of an encoder is: `kind: retrieval`. It has no task, policy or reward, so it is no RunConfig.

Defaults are those of the specification's table 2.8, all [inferred]: of its full size over a pretrained base, of its small size (`SMALL`) over a base
that is made from the corpus, where width, learning rates, temperature and weight of roles are ours, chosen on held-out sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from tacit.sections import CheckpointConfig, RuntimeConfig, Strict

SMALL: dict[str, dict[str, Any]] = {  # defaults over a small base, where the recipe says nothing else
    "": {"learning_rate": 3e-4, "head_learning_rate": 3e-3},
    "model": {"whole": 0.6, "pooled": "mean", "kinds": True, "intent_temperature": 1.0},
    "loss": {"temperature": 0.03, "roles": 1.0},
}


class SmallConfig(Strict):
    """An encoder made from the corpus alone: word pieces of its own, and word vectors that start as latent semantic analysis."""

    layers: int = Field(default=0, ge=0, description="of a transformer over the word vectors; 0: none, the fastest by far")
    hidden: int = Field(default=512, ge=8, description="width of the vectors; an index stores four of them a passage")
    heads: int = Field(default=4, ge=1, description="of each layer; they share `hidden` evenly")
    vocabulary: int = Field(default=15_000, ge=100, description="word pieces at most")
    length: int = Field(default=256, ge=8, description="longest text in tokens")


class BaseConfig(Strict):
    """The encoder that the model stands on: one of `path` and `small`, which is taken where neither is given."""

    path: str | None = Field(default=None, description="local folder or hub id of any encoder that transformers loads")
    small: SmallConfig | None = None

    @model_validator(mode="after")
    def _one_base(self) -> BaseConfig:
        if (self.path is None) == (self.small is None):
            raise ValueError("name the encoder: either base.path or base.small")
        return self


class FacetConfig(Strict):
    """How texts become vectors, one of the whole and one for each facet. `small:` is the default over `base.small`."""

    whole: float = Field(default=0.5, ge=0, le=1, description="λ0, the weight of the whole text in a score; small: 0.6")
    granularities: list[Literal["token", "sentence", "global"]] = Field(
        default=["token", "sentence", "global"], min_length=1, description="what vectors of facets are made of"
    )
    gates: Literal["adaptive", "constant"] = Field(default="adaptive", description="how granularities are mixed: by facet and text, or one way")
    pooled: Literal["first", "mean"] = Field(default="first", description="the whole text: state of its first token, or mean; small: mean")
    kinds: bool = Field(default=False, description="a learnt vector tells questions from documents; small: true")
    intent_temperature: float = Field(default=0.5, gt=0, description="τ_f, of the facets that a question asks for; small: 1")
    evidence: bool = Field(default=False, description="a facet counts as much as its surest sentence")
    length: int | None = Field(default=None, ge=8, description="tokens read of a text; default: as many as the base reads, 512 at most")
    anchors: Literal["centroids", "orthogonal"] = Field(default="centroids", description="where they start: at labelled sentences, or at random")


class FacetLossConfig(Strict):
    """L = pairs · L_dd + question · L_qd + roles · (K1 + K2) + orthogonality · ‖ÂÂᵀ − I‖²."""

    form: Literal["infonce", "triplet"] = "infonce"
    temperature: float = Field(default=0.05, gt=0, description="τ of infonce; small: 0.03")
    margin: float = Field(default=1.0, gt=0, description="of triplet")
    pairs: float = Field(default=1.0, ge=0, description="0: questions alone")
    question: float = Field(default=1.0, ge=0, description="λ_q; 0: pairs of documents alone")
    roles: float = Field(default=0.2, ge=0, description="λ_K; 0: no labelled sentence is learnt from; small: 1")
    orthogonality: float = Field(default=0.01, ge=0, description="keeps the anchors from becoming one")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="ε of the labels of sentences")
    kl: Literal["labels", "match"] = Field(default="labels", description="what a question's facets are compared with: its label, or the answer's fit")
    hard: bool = Field(default=True, description="hard negatives are used")

    @model_validator(mode="after")
    def _learns(self) -> FacetLossConfig:
        if not (self.pairs or self.question):
            raise ValueError("there is nothing to learn from: loss.pairs and loss.question are both 0")
        return self


class MixtureConfig(Strict):
    """Shares of the kinds of pairs, of questions, and of labelled texts; 0 leaves one out, and what a corpus cannot give is passed over."""

    halves: float = Field(default=0.2, ge=0, description="pairs: two halves of one abstract")
    title: float = Field(default=0.15, ge=0, description="pairs: a title and its abstract")
    neighbours: float = Field(default=0.3, ge=0, description="pairs: a paper and one of its five nearest by words")
    facets: float = Field(default=0.35, ge=0, description="pairs: the same by the sentences of one facet, alike in that facet")
    cloze: float = Field(default=0.4, ge=0, description="questions: the words of a sentence of one facet, taken out of its paper")
    aspects: float = Field(default=0.2, ge=0, description="questions: two to four sentences, taken out of their paper")
    given: float = Field(default=0.4, ge=0, description="questions: those of `questions`, or of the scientific sets")
    taught: float = Field(default=0.5, ge=0, le=1, description="labelled texts whose labels are those of a teacher that learnt from `roles`")

    @model_validator(mode="after")
    def _some_pairs(self) -> MixtureConfig:
        if not (self.halves or self.title or self.neighbours or self.facets):
            raise ValueError("mixture leaves no kind of pair: give halves, title, neighbours or facets a share")
        return self


class HeldoutConfig(Strict):
    """What is held out to choose by, never learnt from."""

    documents: int = Field(default=200, ge=2, description="papers of the corpus, a fifth of it at most")
    sets: list[Literal["specter", "search", "tldr"]] = Field(
        default_factory=list, description="public ones below TACIT_DATA: triplets and clicks of SciRepEval, summaries of SciTLDR (dev)"
    )


class RetrievalConfig(Strict):
    """A UniFAR-style encoder: one model for papers like a paper and for papers that answer a question, by facet."""

    kind: Literal["retrieval"] = "retrieval"
    seed: int = Field(default=0, ge=0)
    output: str = Field(description="folder of the run, for example runs/papers")
    corpus: list[str] = Field(
        default_factory=list,
        description="folders and files as `tacit search index` reads them, or their names below TACIT_DATA; default: the scientific sets there",
    )
    roles: list[str] | None = Field(
        default=None, description="JSON lines of `sentences` and their `labels`; default: csabstruct/train.jsonl.gz below TACIT_DATA, if there"
    )
    questions: list[str] = Field(default_factory=list, description="JSON lines of a `question` and the `id` of its paper, or its `answer`")
    mixture: MixtureConfig = MixtureConfig()
    base: BaseConfig = BaseConfig(small=SmallConfig())
    model: FacetConfig = FacetConfig()
    loss: FacetLossConfig = FacetLossConfig()
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=32, ge=2, description="pairs and as many questions a step; each has the others' answers as negatives")
    learning_rate: float = Field(default=2e-5, gt=0, description="of the base; small: 3e-4")
    head_learning_rate: float = Field(default=1e-4, gt=0, description="of anchors, gates and projections; small: 3e-3")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which the rate rises, before it falls to 0, both linearly")
    max_grad_norm: float = Field(default=1.0, gt=0)
    keep: Literal["best", "last"] = Field(
        default="best", description="the model that a run leaves: of the checkpoint with the best held-out `eval/map`, or of the last step"
    )
    evaluation: HeldoutConfig = HeldoutConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=100)
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _small_defaults(cls, given: Any) -> Any:
        """Over a small base, what is not given takes the small defaults."""
        if not isinstance(given, Mapping) or not _is_small(given.get("base")):
            return given
        filled = {**SMALL[""], **given}
        for name in ("model", "loss"):
            section = given.get(name, {})
            section = section.model_dump(exclude_unset=True) if isinstance(section, BaseModel) else section
            filled[name] = {**SMALL[name], **section} if isinstance(section, Mapping) else section
        return filled

    @model_validator(mode="after")
    def _one_process(self) -> RetrievalConfig:
        if self.runtime.processes > 1:
            raise ValueError("kind: retrieval trains in one process: set runtime.processes: 1")
        return self


def _is_small(base: Any) -> bool:
    if isinstance(base, Mapping):
        return base.get("small") is not None
    return base is None or (isinstance(base, BaseConfig) and base.small is not None)
