"""What a run is: pydantic models, read from a YAML file and dotted overrides. Imports no torch, so that help and errors are instant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from tacit.mistakes import choice
from tacit.recipe import ConfigError, Dumper, read
from tacit.retrieval_config import RetrievalConfig
from tacit.sections import CheckpointConfig, RuntimeConfig, Strict

GROUP_RELATIVE = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")  # advantages that are 0 for a lone completion


class TinyConfig(Strict):
    """A small model built from scratch, with a character tokenizer over the task's alphabet."""

    family: Literal["llama", "qwen2", "qwen3"] = "llama"
    hidden: int = Field(default=64, ge=8, description="width of the residual stream")
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    kv_heads: int | None = Field(default=None, description="key/value heads; default: as many as heads")
    mlp: int = Field(default=192, ge=8, description="width of the feed-forward layer")
    context: int = Field(default=256, ge=8, description="longest prompt plus completion, in tokens")


class LoraConfig(Strict):
    """Low-rank adapters by peft; the reference policy is then the model with the adapter switched off."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target: str | list[str] = Field(default="all-linear", description="module names, or 'all-linear'")


class ModelConfig(Strict):
    """Which policy. One of `path` and `tiny`, unless the run starts from another run (`init`)."""

    path: str | None = Field(default=None, description="local folder or hub id of any causal LM that transformers loads")
    tiny: TinyConfig | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    lora: LoraConfig | None = None
    chat: bool = Field(default=False, description="wrap prompts with the tokenizer's chat template")
    system: str | None = Field(default=None, description="system message, with chat: true")
    attention: str = Field(default="sdpa", description="attn_implementation of transformers")
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if self.path and self.tiny:
            raise ValueError("give either model.path or model.tiny, not both")
        return self


class TaskConfig(Strict):
    """Where prompts come from: a built-in task, `data.jsonl`, or the user's own `file.py:Class`."""

    name: str = Field(description="sorting, gsm8k_steps, data.jsonl, or file.py:Class")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the task")
    columns: dict[str, str] = Field(default_factory=dict, description="for a file: which column is prompt, answer, id")


class OptimiserConfig(Strict):
    """AdamW with a schedule, one clipped step per mini-batch."""

    lr: float = Field(default=2e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="null: no clipping")


class SamplingConfig(Strict):
    """The rollouts of one step."""

    prompts: int = Field(default=32, ge=1, description="prompts per step")
    group_size: int = Field(default=16, ge=1, description="completions per prompt")
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    stop: list[str] = Field(default_factory=list, description="strings that end a completion, beside the EOS tokens")
    rows: int = Field(default=512, ge=1, description="rows decoded at a time")


class KLConfig(Strict):
    """Divergence from the reference policy."""

    coefficient: float = Field(default=0.0, ge=0)
    form: Literal["k1", "k2", "k3", "k3_unbiased"] = "k3"
    where: Literal["loss", "reward"] = "loss"
    importance_weighted: bool = Field(default=False, description="multiply a KL in the loss by the policy ratio")


class FilterConfig(Strict):
    """DAPO's dynamic sampling: groups without signal are dropped and others drawn in their place."""

    drop_constant: bool = False
    max_rounds: int = Field(default=4, ge=1, description="draws per step before it goes on with what it has")
    drop_truncated: bool = Field(default=False, description="mask completions that hit the length limit (over-long filtering)")
    overlong_buffer: int = Field(default=0, ge=0, description="tokens before the limit in which a growing penalty applies; 0: off")
    overlong_penalty: float = Field(default=1.0, ge=0)


class CriticConfig(Strict):
    """PPO's value function, with `advantage: gae`: a copy of the policy's trunk with an output and an optimiser of its own."""

    lr: float | None = Field(default=None, gt=0, description="default: ten times optimiser.lr, whose other settings hold for both")
    gamma: float = Field(default=1.0, ge=0, le=1, description="discount a token")
    lam: float = Field(default=1.0, ge=0, le=1, description="GAE's λ. 1: return minus value; 0: the error of one step")
    clip: float | None = Field(default=0.5, gt=0, description="a step counts up to this far from the value at drawing; null: no clipping")
    whiten: bool = Field(default=True, description="advantages are brought to mean 0 and std 1 over the tokens of the step")


class AlgorithmConfig(Strict):
    """Advantage, loss and aggregation of the base update."""

    advantage: str = Field(
        default="grpo", description="grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline, remax, mean_centred, gae, or file.py:function"
    )
    critic: CriticConfig = CriticConfig()
    length_penalty: float = Field(default=0.0, ge=0, description="length-rank shaping among the right answers of a group")
    loss: str = Field(default="clip", description="clip, gspo, sequence, cispo, policy_gradient, or file.py:function")
    clip_low: float = Field(default=0.2, ge=0)
    clip_high: float = Field(default=0.2, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)
    aggregation: Literal["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = "token-mean"
    kl: KLConfig = KLConfig()
    importance_cap: float | None = Field(default=None, gt=0, description="truncated importance sampling for sampler/trainer mismatch")
    old_logprobs: Literal["auto", "recompute", "behaviour"] = "auto"
    filter: FilterConfig = FilterConfig()
    skip_silent: bool = Field(default=True, description="rows whose advantage is exactly 0 are not computed where that changes no gradient")
    prefix_sharing: bool = Field(default=True, description="completions of one prompt share its computation where that saves work")
    epochs: int = Field(default=1, ge=1)
    minibatch_rows: int | None = Field(default=None, ge=1, description="rows per optimiser step; default: the whole batch")
    micro_batch_tokens: int | None = Field(default=None, ge=1, description="padded tokens per forward pass; default: 4096 on a CPU, 16384 elsewhere")


class ComponentConfig(Strict):
    """A method added to the loop: a registered name or `package.module:Class`, with its arguments."""

    name: str = Field(description="a registered name, or package.module:Class")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the component")


class EvaluationConfig(Strict):
    """Held-out evaluation by the task's verifier."""

    every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only before and after")
    prompts: int = Field(default=512, ge=1)
    samples: int = Field(default=1, ge=1, description="completions per prompt")
    temperature: float = Field(default=1.0, ge=0, description="0: greedy")
    top_p: float = Field(default=1.0, gt=0, le=1)


class DumpConfig(Strict):
    """Steps whose rollouts are written out, with the state before they were learnt from, for `tacit train RECIPE --replay-step N`."""

    steps: list[int] = Field(default_factory=list, description="numbers of steps, as metrics.jsonl counts them: the first is 1")
    every: int = Field(default=0, ge=0, description="steps between dumps; 0: only those of `steps`")

    def wants(self, step: int) -> bool:
        return step in self.steps or (self.every > 0 and step % self.every == 0)


class RunConfig(Strict):
    """What every run of a language model has."""

    seed: int = Field(default=0, ge=0)
    output: str = Field(description="folder of the run, for example runs/sorting")
    init: str | None = Field(default=None, description="folder of a finished run whose policy this one starts from")
    model: ModelConfig = ModelConfig()
    task: TaskConfig = Field(description="where prompts come from, for example task: {name: sorting}")
    reward: str | None = Field(default=None, description="file.py:function or Class; default: the task's own")
    sandbox: Literal["required", "unsafe"] = Field(default="required", description="unsafe: run programs of the model where they cannot be isolated")
    runtime: RuntimeConfig = RuntimeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _has_a_policy(self) -> RunConfig:
        if not (self.init or self.model.path or self.model.tiny):
            raise ValueError("name the policy: model.path, model.tiny or init")
        return self


class RLConfig(RunConfig):
    """Reinforcement learning with verifiable rewards."""

    kind: Literal["rl"] = "rl"
    steps: int = Field(default=200, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    components: list[ComponentConfig] = Field(default_factory=list)
    dump: DumpConfig = DumpConfig()

    @property
    def completion_limit(self) -> int:
        """Tokens of a completion, in training and in evaluation."""
        return self.sampling.max_new_tokens

    @model_validator(mode="after")
    def _can_learn(self) -> RLConfig:
        advantage, buffer = self.algorithm.advantage, self.algorithm.filter.overlong_buffer
        if self.sampling.group_size == 1 and advantage in GROUP_RELATIVE:
            raise ValueError(
                f"{advantage!r} compares the completions of a prompt: set sampling.group_size to 2 or more, or another algorithm.advantage"
            )
        if buffer > self.sampling.max_new_tokens:
            raise ValueError(f"algorithm.filter.overlong_buffer ({buffer}) must be at most sampling.max_new_tokens ({self.sampling.max_new_tokens})")
        return self


class SFTConfig(RunConfig):
    """Supervised fine-tuning on the task's solutions, loss on the completion only."""

    kind: Literal["sft"] = "sft"
    steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=128, ge=1, description="examples per optimiser step")
    examples: int | None = Field(default=None, ge=1, description="train on the first so many of the task's stream, over and over; default: all of it")
    packing: bool = Field(default=True, description="fill rows with several examples, attention kept apart")
    micro_batch_tokens: int | None = Field(default=None, ge=1, description="padded tokens per forward pass; default: 4096 on a CPU, 16384 elsewhere")
    max_new_tokens: int = Field(default=64, ge=1, description="for the evaluation by verifier")
    logit_scale: float = Field(default=1.0, gt=0, description="factor on the logits in training, 1/temperature; below 1: WMSS's control D0")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the uniform distribution in the target")
    neftune: float = Field(default=0.0, ge=0, description="NEFTune's alpha: noise on embeddings in training; 0: none")
    keep: Literal["last", "best", "every"] = Field(
        default="last", description="the policy that a run leaves: of the last step, of the best evaluation, or the last and others in kept/"
    )
    keep_every: int = Field(default=0, ge=0, description="with keep: every, steps between policies that go to kept/step-00000040 and so on")
    best_by: Literal["loss", "verifier"] = Field(default="loss", description="what makes an evaluation the best: held-out loss, or pass@1")
    patience: int = Field(default=0, ge=0, description="evaluations without a better one after which training ends, with the best; 0: never")
    optimiser: OptimiserConfig = OptimiserConfig(lr=2e-3, warmup=20)

    @model_validator(mode="after")
    def _can_keep(self) -> SFTConfig:
        if (self.keep == "every") != bool(self.keep_every):
            raise ValueError("keep: every and keep_every go together: say how many steps lie between two policies that are kept")
        if self.restores_best and not self.evaluation.every:
            raise ValueError("the best evaluation is looked for among several: set evaluation.every, the steps between them")
        return self

    @property
    def restores_best(self) -> bool:
        """Whether the policy of the best evaluation is what a run ends with."""
        return self.keep == "best" or self.patience > 0

    @property
    def completion_limit(self) -> int:
        """Tokens of a completion, in evaluation."""
        return self.max_new_tokens


class SelectionConfig(Strict):
    """Which examples WMSS trains on: drawn with replacement, by the change of predictive entropy from the weak model to the strong."""

    formula: Literal["v2", "v1", "code", "random", "none"] = Field(
        default="v2", description="the paper's two versions, its code, as many at random as v2 would keep, or all"
    )
    alpha: float = Field(default=0.1, ge=0)
    beta: float = Field(default=0.8, ge=0)
    gamma: float = Field(default=0.1, ge=0)
    multiplier: float = Field(default=1.0, gt=0, description="draws per example")
    deduplicate: bool = Field(default=True, description="each example once, as the paper's v2 does and its code does not")
    seed: int = Field(default=42, ge=0)


class WMSSConfig(SFTConfig):
    """WMSS: the policy (`init` or `model.path`) goes on training with its logits mixed with those of a weaker model, such as its own past."""

    kind: Literal["wmss"] = "wmss"  # pyright: ignore[reportIncompatibleVariableOverride]
    weak: str = Field(description="the weak model: folder of a finished run, folder of a model, or hub id")
    lam: float = Field(default=0.5, ge=0, le=1, description="λ, the share of the strong model in the mixed logits")
    frozen: bool = Field(default=False, description="the weak model does not train")
    shuffle: bool = Field(default=False, description="a control: weak logits of wrong tokens change places at random")
    clip: Literal["joint", "branch"] = Field(default="joint", description="max_grad_norm holds for both models' gradients together, or for each")
    rounds: int = Field(default=1, ge=1, description="K; `steps` is shared out, and the next weak model is the strong one that the round began with")
    examples: int = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=4096, ge=1, description="size of the set to select from: the first of the task's stream"
    )
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _rounds_fit(self) -> WMSSConfig:
        if self.steps % self.rounds:
            raise ValueError(f"steps ({self.steps}) must be a multiple of rounds ({self.rounds})")
        if self.logit_scale != 1.0:
            raise ValueError("logit_scale is for kind: sft; the mixed logits of kind: wmss are scaled by lam")
        if self.runtime.processes > 1:
            raise ValueError("kind: wmss trains two models in one process: set runtime.processes: 1")
        return self


class EvalConfig(Strict):
    """What `tacit eval` measures, and so what a resumed evaluation must have in common with the one it continues."""

    kind: Literal["eval"] = "eval"
    policy: str = Field(description="folder of a run or model, hub id, or URL of an endpoint")
    model: str | None = Field(default=None, description="name of the model at the endpoint")
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    chat: bool = False
    system: str | None = None
    tasks: list[TaskConfig] = Field(min_length=1)
    reward: str | None = Field(default=None, description="file.py:function or Class; default: each task's own")
    sandbox: Literal["required", "unsafe"] = "required"
    prompts: int | None = Field(default=None, ge=1, description="held-out prompts of each task; default: up to 512")
    samples: int = Field(default=1, ge=1, description="completions per prompt")
    k: list[int] = Field(default_factory=list, description="which pass@k and maj@k; default: 1 and the number of samples")
    temperature: float = Field(default=1.0, ge=0, description="0: greedy")
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    stop: list[str] = Field(default_factory=list)
    request: dict[str, Any] = Field(default_factory=dict, description="further fields of each request to an endpoint; null removes one")

    @property
    def ks(self) -> list[int]:
        return sorted(set(self.k or [1, self.samples]))

    @model_validator(mode="after")
    def _can_be_measured(self) -> EvalConfig:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("greedy completions are all alike: set --samples 1, or a --temperature above 0")
        if self.ks[0] < 1:
            raise ValueError(f"--k {self.ks[0]} is no number of completions; it starts at 1")
        if self.ks[-1] > self.samples:
            raise ValueError(f"pass@{self.ks[-1]} needs {self.ks[-1]} samples of each prompt, not {self.samples}: set --samples {self.ks[-1]}")
        names = [task.name for task in self.tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"task {twice!r} is given twice; evaluate its variants into different --output folders")
        return self


KINDS: dict[str, type[RLConfig] | type[SFTConfig]] = {"rl": RLConfig, "sft": SFTConfig, "wmss": WMSSConfig}  # those that train a language model
JOBS: dict[str, type[RLConfig] | type[SFTConfig] | type[RetrievalConfig]] = KINDS | {"retrieval": RetrievalConfig}


def load(path: str | Path, overrides: Sequence[str] = ()) -> RLConfig | SFTConfig:
    """The recipe of a language model, see `load_job`. Raises ConfigError for other kinds too."""
    config = load_job(path, overrides)
    if isinstance(config, RetrievalConfig):
        raise ConfigError(f"{path}: kind: retrieval trains an encoder, not a language model; tacit train (--dry-run) and tacit search are for it")
    return config


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> RLConfig | SFTConfig | RetrievalConfig:
    """Reads a recipe and applies `key.sub=value` overrides. Raises ConfigError naming file, line and field."""
    recipe = read(path)
    for override in overrides:
        recipe.override(override)
    kind = recipe.data.get("kind")
    if kind is None:
        raise ConfigError(f"{path}: 'kind' is missing; write kind: {' or kind: '.join(JOBS)}")
    if not isinstance(kind, str) or kind not in JOBS:
        raise ConfigError(f"{recipe.place(('kind',))}: {choice(repr('kind'), kind, list(JOBS))}")
    return recipe.validate(JOBS[kind])


def dump(config: RLConfig | SFTConfig | RetrievalConfig) -> str:
    """The config as YAML, defaults written out; `load` of it gives an equal config."""
    data = config.model_dump()
    return yaml.dump({"kind": data.pop("kind"), **data}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
