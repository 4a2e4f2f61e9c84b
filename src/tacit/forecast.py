"""How much memory and disk a training run will take, from its recipe and the sizes of its model: arithmetic alone, nothing is loaded.

What is counted is what stays: tensors that autograd keeps were listed with `saved_tensors_hooks` for the Llama family, in fp32, bf16, under
autocast and with adapters; other models with gated MLPs are alike. What is fitted, to fifteen runs of 0.7 to 2 GiB on a CPU, is what glibc keeps
in holes between blocks: HOLES, SCRATCH and ADAPTED. `tests/test_forecast.py` works examples by hand, `tests/test_checkup.py` measures runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tacit.config import RLConfig, SFTConfig, WMSSConfig
from tacit.core.checkpoint import SHARD_BYTES
from tacit.core.logprobs import CHUNK_ELEMENTS
from tacit.core.policy import MICRO_BATCH_TOKENS
from tacit.core.scorer import WORTH
from tacit.generation.transformers_decoder import ROOM

MIB = 2**20
PAGE = 32  # positions of a page of the native decoder, see generation/native/cache.h
EVALUATION_ROWS = 512  # rows that an evaluation decodes at a time: the sampler's default
HOLES, SCRATCH, ADAPTED = 0.25, 64 * MIB, 2  # holes on a CPU: of all activations, for small blocks, and layers more where adapters add their products
CUDA_CONTEXT = 512 * MIB  # what CUDA and its libraries keep on a device; not measured here
STEP_LOGITS = 4 * 8  # bytes that drawing a token takes for each logit beside the logit itself: generation.noise works in float64

Phase = Literal["always", "drawing", "learning", "saving"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a causal LM is made of. `attention` and `keys` are the widths of all heads together, of queries and of keys; `element` bytes a weight."""

    layers: int
    hidden: int
    heads: int
    attention: int
    keys: int
    mlp: int
    vocabulary: int
    parameters: int
    trained: int
    element: int = 4
    tied: bool = True

    @property
    def weights(self) -> int:
        return self.parameters * self.element

    @property
    def adapters(self) -> bool:
        return self.trained < self.parameters


@dataclass(frozen=True, slots=True)
class Texts:
    """The longest prompt and the longest solution with its end (0: there is none), in tokens."""

    prompt: int
    solution: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What takes memory, when, and how it was reckoned. `host`: in the RAM, wherever the model is."""

    name: str
    bytes: int
    phase: Phase
    reckoned: str
    host: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """`parts` of one process, of which there are `processes` on this machine."""

    parts: tuple[Part, ...]
    device: str
    processes: int
    micro: MicroBatch

    @property
    def memory(self) -> int:
        """Bytes that are taken where the model is: in RAM by all processes, or on a CUDA device by one."""
        return self._peak(host=False) if self.device == "cuda" else self.processes * self._peak(host=False)

    @property
    def host_memory(self) -> int:
        """Bytes of RAM beside a CUDA device; elsewhere RAM is all there is."""
        return self.processes * self._peak(host=True) if self.device == "cuda" else self.memory

    def _peak(self, *, host: bool) -> int:
        sums = dict.fromkeys(("always", "drawing", "learning", "saving"), 0)
        for part in self.parts:
            if self.device != "cuda" or part.host == host:
                sums[part.phase] += part.bytes
        return sums.pop("always") + max(sums.values())


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tokens of a forward pass, in rows of so many or prompts with their completions of so many; `masked` where rows hold several packed texts;
    `several` of them make an optimiser step."""

    tokens: int
    row: int
    masked: bool
    several: bool


def micro_batch(config: RLConfig | SFTConfig, sizes: Sizes, texts: Texts, device: str = "cpu") -> MicroBatch:
    """The largest micro-batch of a process: as many rows as the budget of tokens takes, every completion as long as it may be."""
    processes = config.runtime.processes
    if isinstance(config, RLConfig):
        algorithm, group, before, after = config.algorithm, config.sampling.group_size, texts.prompt, config.sampling.max_new_tokens
        budget = algorithm.micro_batch_tokens or MICRO_BATCH_TOKENS.get(device, 16384)
        rows, row = -(-(algorithm.minibatch_rows or config.sampling.prompts * group) // processes), before + after
        together = max(1, min(group, (budget - before) // after)) if algorithm.prefix_sharing else 1
        shared, masked = before + together * after, False  # the prompt once, then its completions: see core.treeattention
        if together > 1 and shared <= WORTH * together * row:
            rows, row = -(-rows // together), shared
    else:
        budget = config.micro_batch_tokens or MICRO_BATCH_TOKENS.get(device, 16384)
        rows, row, masked = -(-config.batch_size // processes), texts.prompt + texts.solution, config.packing
    fit = max(1, budget // row)
    return MicroBatch(row * min(fit, rows), row, masked, several=rows > fit)


def kept_by_layer(sizes: Sizes, micro: MicroBatch, *, autocast: bool = False, eager: bool = False) -> int:
    """Bytes of activations that one layer keeps for backward, for each token of a micro-batch.

    Two norms keep their input in fp32 and, if they train, what they have scaled; five matrices keep the output of those norms (each a copy of its own
    under autocast); attention its queries, keys, values and result; a gated MLP four tensors of its width.
    """
    compute, accurate = 2 if autocast else sizes.element, max(4, sizes.element)
    norms = 2 * sizes.hidden * (accurate + (0 if sizes.adapters else sizes.element))
    inputs = (5 if autocast else 2) * sizes.hidden * compute
    rest = (2 * sizes.attention + 2 * sizes.keys + 4 * sizes.mlp) * compute
    pairs = 2 * sizes.heads * micro.row if eager else micro.row * micro.masked  # scores of every head, or a mask
    return norms + inputs + rest + pairs * compute


def activations(config: RLConfig | SFTConfig, sizes: Sizes, micro: MicroBatch) -> tuple[int, int]:
    """(all that backward needs of a forward pass, what backward takes besides), in bytes."""
    autocast = config.runtime.precision == "bf16"
    layer = micro.tokens * kept_by_layer(sizes, micro, autocast=autocast, eager=config.model.attention == "eager")
    end = micro.tokens * sizes.hidden * (2 * max(4, sizes.element) + sizes.element)  # the last norm, and the states that predict a token
    layers = sizes.layers * layer
    if config.model.gradient_checkpointing:
        layers = sizes.layers * micro.tokens * sizes.hidden * sizes.element + layer
    return layers + end + (2 * sizes.parameters if autocast and sizes.element > 2 else 0), layer


def head(sizes: Sizes, micro: MicroBatch, *, heads: int = 1) -> int:
    """Bytes that log-probs and their gradient take: four chunks of logits, and a gradient of the head's own where it trains."""
    chunk = min(micro.tokens, max(1, CHUNK_ELEMENTS // sizes.vocabulary)) * sizes.vocabulary
    return heads * 4 * max(4, sizes.element) * chunk + (0 if sizes.adapters else 4 * heads * sizes.vocabulary * sizes.hidden)


def rows_at_once(config: RLConfig | SFTConfig) -> tuple[int, int]:
    """(rows, completions of a prompt among them) that are decoded at a time, in training or in evaluation, whichever are more."""
    evaluated = min(EVALUATION_ROWS, -(-config.evaluation.prompts // config.runtime.processes) * config.evaluation.samples)
    found = evaluated, config.evaluation.samples
    if isinstance(config, RLConfig):
        drawn = -(-config.sampling.prompts // config.runtime.processes) * config.sampling.group_size
        found = max(found, (min(config.sampling.rows, drawn), config.sampling.group_size))
    return found


def cache(config: RLConfig | SFTConfig, sizes: Sizes, texts: Texts, *, native: bool) -> int:
    """Bytes of keys and values when every row reaches its end. The native decoder has pages in fp32, and whole ones of a prompt are there once."""
    (rows, group), length = rows_at_once(config), texts.prompt + config.completion_limit
    position = 2 * sizes.keys * sizes.layers
    if native:
        shared, own = texts.prompt // PAGE, -(-length // PAGE)
        return (-(-rows // group) * shared + rows * (own - shared)) * PAGE * position * 4
    compute = 2 if config.runtime.precision == "bf16" else sizes.element
    return rows * (length + ROOM) * position * compute


def forecast(
    config: RLConfig | SFTConfig,
    sizes: Sizes,
    texts: Texts,
    *,
    process: int,
    device: str = "cpu",
    native: bool = False,
    weak: Sizes | None = None,
) -> Forecast:
    """What a run takes. `process`: bytes of Python and its libraries; `native`: the native decoder draws; `weak`: the other model of wmss."""
    micro = micro_batch(config, sizes, texts, device)
    parts = [*_always(config, sizes, process, device, weak), *_drawing(config, sizes, texts, native), *_learning(config, sizes, micro, device, weak)]
    written = min(saved_bytes(config, sizes, weak), SHARD_BYTES)
    parts.append(Part("file being written", written, "always", "in one block, which no hole holds", host=True))
    parts.append(Part("tensors being written", written, "saving", "another copy", host=True))
    return Forecast(tuple(part for part in parts if part.bytes), device, config.runtime.processes, micro)


def _always(config: RLConfig | SFTConfig, sizes: Sizes, process: int, device: str, weak: Sizes | None) -> Iterator[Part]:
    sharers, several = (config.runtime.processes if config.runtime.distributed == "fsdp2" else 1), config.runtime.processes > 1
    yield Part("process", process, "always", "Python and its libraries, as they are here now", host=True)
    if device == "cuda":
        yield Part("CUDA", CUDA_CONTEXT, "always", "its context and libraries, a guess")
    yield Part("weights", sizes.weights // sharers, "always", _times(sizes.parameters, sizes.element))
    if sharers > 1:
        yield Part("whole weights, to draw with", sizes.weights, "always", _times(sizes.parameters, sizes.element))
    moments = 2 * sizes.trained * sizes.element
    yield Part("optimiser states", moments // sharers, "always", "two moments of " + _times(sizes.trained, sizes.element))
    if isinstance(config, RLConfig) and config.algorithm.kl.coefficient > 0 and not sizes.adapters:
        yield Part("reference policy", sizes.weights, "always", "a copy of the weights, for algorithm.kl")
    if critic := critic_parameters(config, sizes):
        yield Part("critic", critic * sizes.element, "always", _times(critic, sizes.element))
        yield Part("its optimiser states", 2 * critic * sizes.element, "always", "two moments of " + _times(critic, sizes.element))
    if weak is not None and isinstance(config, WMSSConfig):
        yield Part("weak model", weak.weights, "always", _times(weak.parameters, weak.element))
        if config.rounds > 1:
            yield Part("strong model as the round began", sizes.trained * sizes.element, "always", _times(sizes.trained, sizes.element))
        if not config.frozen:
            yield Part("its optimiser states", 2 * weak.trained * weak.element, "always", "two moments of " + _times(weak.trained, weak.element))
    if isinstance(config, SFTConfig) and config.restores_best:
        yield Part("best policy so far", sizes.trained * sizes.element, "always", _times(sizes.trained, sizes.element))
    if several and sharers == 1:
        yield Part("gradients of all processes", sizes.trained * sizes.element, "always", "added up in one piece")


def _drawing(config: RLConfig | SFTConfig, sizes: Sizes, texts: Texts, native: bool) -> Iterator[Part]:
    (rows, _), length = rows_at_once(config), texts.prompt + config.completion_limit
    keys = cache(config, sizes, texts, native=native)
    reckoned = f"{rows:,} rows of {texts.prompt:,} + {config.completion_limit:,} tokens"
    if native:
        wide = 2 if config.runtime.precision == "bf16" or sizes.element == 2 else 4
        packed = sizes.parameters - (0 if sizes.tied else sizes.vocabulary * sizes.hidden)
        yield Part("weights of the native decoder", packed * wide, "always", "packed anew, " + _times(packed, wide))
        yield Part("keys and values", keys, "always", reckoned + f", {-(-length // PAGE)} pages each, kept for the next step")
    else:
        yield Part("keys and values", keys, "drawing", reckoned)
        yield Part(
            "logits of a step", rows * sizes.vocabulary * (sizes.element + STEP_LOGITS), "drawing", f"{rows:,} x {sizes.vocabulary:,}, in float64"
        )


def _learning(config: RLConfig | SFTConfig, sizes: Sizes, micro: MicroBatch, device: str, weak: Sizes | None) -> Iterator[Part]:
    sharers = config.runtime.processes if config.runtime.distributed == "fsdp2" else 1
    yield Part("gradients", sizes.trained * sizes.element // sharers, "learning", _times(sizes.trained, sizes.element))
    if critic := critic_parameters(config, sizes):
        yield Part("gradients of the critic", critic * sizes.element, "learning", _times(critic, sizes.element))
    kept, besides = activations(config, sizes, micro)
    if weak is not None and isinstance(config, WMSSConfig) and not config.frozen:
        yield Part("gradients of the weak model", weak.trained * weak.element, "learning", _times(weak.trained, weak.element))
        more, _ = activations(config, weak, micro)
        kept += more
    yield Part("activations", kept, "learning", f"{micro.tokens:,} tokens in rows of {micro.row:,}, {sizes.layers} layers")
    yield Part("their gradients", besides, "learning", "as much as one layer keeps")
    yield Part("logits and their gradient", head(sizes, micro, heads=1 if weak is None else 2), "learning", "in chunks of the vocabulary")
    if device == "cpu":
        holes = round(HOLES * kept) + SCRATCH + (ADAPTED * besides if sizes.adapters else 0)
        yield Part("holes between blocks", holes, "learning", "what the C library's allocator cannot give out again, as measured")


def critic_parameters(config: RLConfig | SFTConfig, sizes: Sizes) -> int:
    """What PPO's critic trains: an adapter like the policy's, or a trunk of its own, without the policy's head; 0 without a critic."""
    if not isinstance(config, RLConfig) or config.algorithm.advantage != "gae":
        return 0
    return sizes.trained if sizes.adapters else sizes.parameters - (0 if sizes.tied else sizes.vocabulary * sizes.hidden)


def saved_bytes(config: RLConfig | SFTConfig, sizes: Sizes, weak: Sizes | None = None) -> int:
    """Bytes of a checkpoint: what trains with both moments, a critic too; the best policy so far; under wmss the weak model, and the strong one of
    the round's beginning where another round follows."""
    found = 3 * (sizes.trained + critic_parameters(config, sizes)) * sizes.element
    if isinstance(config, SFTConfig) and config.restores_best:
        found += sizes.trained * sizes.element
    if weak is not None and isinstance(config, WMSSConfig):
        start = sizes.trained * sizes.element if config.rounds > 1 else 0
        found += weak.weights + start + (0 if config.frozen else 2 * weak.trained * weak.element)
    return found


def disk(config: RLConfig | SFTConfig, sizes: Sizes, weak: Sizes | None = None) -> int:
    """Bytes that a run writes at most: the checkpoints it keeps and one more while it is written, dumps, policies on the way and at the end."""
    dumps = sum(config.dump.wants(step) for step in range(1, config.steps + 1)) if isinstance(config, RLConfig) else 0
    policies = 1 + (config.steps // config.keep_every if isinstance(config, SFTConfig) and config.keep_every else 0)
    return (config.checkpoint.keep + 1 + dumps) * saved_bytes(config, sizes, weak) + policies * sizes.weights


def _times(count: int, size: int) -> str:
    return f"{count:,} x {size} bytes"
