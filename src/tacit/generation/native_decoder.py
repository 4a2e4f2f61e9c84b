"""The native decoder: Llama, Mistral, Qwen2 and Qwen3 models on the CPU by a C++ library (native/), where a small model spends its time on products.

Sequences share the pages of their keys and values, so that a fork costs nothing, and what a row draws depends on no other row, to the last bit.
Rows are shared out over threads that do not wait for each other. Any other model is for `transformers_decoder`.
"""

from __future__ import annotations

import ctypes as c
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from tacit.core.policy import Policy
from tacit.generation import native_library as lib
from tacit.generation.decoder import Handle
from tacit.generation.drawing import Drawn, Ended, Order

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
ROTARY = ("default", "linear", "dynamic", "llama3", "yarn")  # whose angles depend on the position alone, up to the model's context
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
STOPPED = 1
Layout = list[Tensor | None]


class NativeDecoder:
    """Decodes with the model of `policy`, in bf16 where the policy computes in it, with `threads` threads.

    Outside a session every call packs the weights anew. `pack_seconds` is what packing took last.
    Raises ValueError when the model is not of its kind (`unsuitable` says why), and native_library.Unavailable when there is no library.
    """

    def __init__(self, policy: Policy, threads: int = 1):
        if reason := unsuitable(policy):
            raise ValueError(f"the native decoder cannot run this policy: {reason}")
        self.policy, self.threads = policy, threads
        self.precision = "bf16" if policy.bf16 or policy.base_model.lm_head.weight.dtype == torch.bfloat16 else "fp32"
        self.pack_seconds = 0.0
        self._library = lib.library()
        self._model = self._make_model(policy.base_model)
        self._packed: Layout | None = None  # while a session is open
        self._positions = 0  # of which the angles are known

    @contextmanager
    def session(self) -> Iterator[None]:
        """Raises ValueError when the model has been changed into one that the native decoder does not run."""
        if self._packed is not None:
            yield
            return
        if reason := unsuitable(self.policy):
            raise ValueError(f"this decoder was made for the model as it was; make another, since now {reason}")
        began = time.perf_counter()
        self._packed = weights_of(self.policy.base_model)
        addresses = (c.c_void_p * len(self._packed))(*(None if w is None else w.data_ptr() for w in self._packed))
        self._check(self._library.tacit_pack(self._model, addresses))
        self.pack_seconds = time.perf_counter() - began
        try:
            yield
        finally:
            self._packed = None

    def prefill(self, prompts: list[list[int]]) -> Handle:
        """Reads R prompts. Raises ValueError when there is none, or an empty one, or one with a token that the model does not know."""
        if not prompts or not all(prompts):
            raise ValueError("prefill needs at least one prompt, and every prompt at least one token")
        ids, starts = self._flat(prompts)
        self._know_positions(max(map(len, prompts)))
        logits = torch.empty(len(prompts), self.vocabulary)
        made = c.c_void_p()
        watch = Watch()
        with self.session():
            count, threads = len(prompts), min(self.threads, len(prompts))
            status = self._library.tacit_prefill(self._model, _at(ids), _at(starts), count, logits.data_ptr(), threads, watch.poll, c.byref(made))
        self._check(status, watch)
        return Handle(logits, Rows(self._library, made.value, np.array([len(prompt) for prompt in prompts])))

    def fork(self, handle: Handle, rows: Tensor) -> Handle:
        state: Rows = handle.state
        index = np.ascontiguousarray(rows.cpu().numpy(), np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(state.lengths):
            raise IndexError(f"rows of a handle of {len(state.lengths)} must lie in [0, {len(state.lengths)})")
        made = self._library.tacit_fork(state.address, _at(index), len(index))
        if made is None:
            raise MemoryError("no memory is left for keys and values")
        return Handle(handle.logits[rows], Rows(self._library, made, state.lengths[index]))

    def keep(self, handle: Handle, rows: Tensor) -> None:
        kept, before = self.fork(handle, rows), handle.state
        handle.logits, handle.state = kept.logits, kept.state
        before.release()

    def step(self, handle: Handle, tokens: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Raises ValueError unless exactly one of `tokens` and `embeddings` is given, and for a token that the model does not know."""
        if (tokens is None) == (embeddings is None):
            raise ValueError("a step needs either tokens or embeddings")
        state: Rows = handle.state
        count, hidden = len(state.lengths), self.policy.base_model.config.hidden_size
        ids, inputs = None, None
        if tokens is not None:
            ids = np.ascontiguousarray(tokens.cpu().numpy(), np.int64)
            self._check_ids(ids)
            if ids.shape != (count,):
                raise ValueError(f"tokens have shape {tuple(ids.shape)}, the handle has {count} rows")
        elif embeddings is not None:
            inputs = embeddings.detach().to("cpu", torch.float32).contiguous()
            if inputs.shape != (count, hidden):
                raise ValueError(f"embeddings have shape {tuple(inputs.shape)}, the handle needs ({count}, {hidden})")
        self._know_positions(int(state.lengths.max(initial=0)) + 1)
        logits = torch.empty(count, self.vocabulary)
        watch = Watch()
        with self.session():
            addresses = _at(ids), None if inputs is None else inputs.data_ptr(), logits.data_ptr()
            threads = max(1, min(self.threads, count // 8))  # a thread costs more than a few rows of it
            status = self._library.tacit_step(self._model, state.address, *addresses, threads, watch.poll)
        self._check(status, watch)
        state.lengths += 1
        handle.logits = logits
        return logits

    def release(self, handle: Handle) -> None:
        handle.state.release()
        handle.logits, handle.state = handle.logits[:0], None

    def draw(self, order: Order) -> Drawn:
        """Draws whole rows in one call: each prompt is read once, and a row that ends gives its place to the next."""
        ids, starts = self._flat(order.prompts)
        self._know_positions(max(map(len, order.prompts)) + int(order.limits.max()))
        count, offsets = len(order.prompt_of_row), np.concatenate([[0], np.cumsum(order.limits)])
        tokens, logp = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.float32)
        entropy = np.zeros(offsets[-1], np.float32) if order.entropy else None
        lengths, finished, so_far = np.zeros(count, np.int64), np.zeros(count, np.uint8), np.zeros(1, np.int64)

        def tell() -> None:
            if order.progress is not None:
                order.progress(int(so_far[0]))

        watch = Watch(tell, order.ended)
        with self.session():
            arrays = {"rows": order.prompt_of_row, "limits": order.limits, "offsets": offsets, "keys": order.keys, "stop_ids": order.stop_ids}
            given = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            given |= {"ids": ids, "starts": starts, "tokens": tokens, "logp": logp, "lengths": lengths, "finished": finished, "drawn": so_far}
            request = lib.Draw(
                **{name: _at(array) for name, array in given.items()},
                entropy=_at(entropy),
                prompts=len(order.prompts),
                count=count,
                temperature=order.temperature,
                top_p=order.top_p,
                stop_count=len(order.stop_ids),
                at_once=order.at_once,
                threads=max(1, min(self.threads, count // 2)),
                poll=watch.poll,
                seen=watch.see,
            )
            status = self._library.tacit_draw(self._model, c.byref(request))
        self._check(status, watch)
        tell()
        used = np.arange(offsets[-1]) - np.repeat(offsets[:-1], order.limits) < np.repeat(lengths, order.limits)
        return Drawn(tokens[used], logp[used], None if entropy is None else entropy[used], lengths, finished.astype(bool), request.steps)

    @property
    def vocabulary(self) -> int:
        return self.policy.base_model.config.vocab_size

    def _make_model(self, model: Any) -> int:
        attention, config = model.model.layers[0].self_attn, model.config
        shape = lib.Shape(
            layers=len(model.model.layers),
            hidden=config.hidden_size,
            heads=attention.q_proj.out_features // attention.head_dim,
            kv_heads=attention.k_proj.out_features // attention.head_dim,
            width=attention.head_dim,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            stored_bf16=model.lm_head.weight.dtype == torch.bfloat16,
            computed_bf16=self.precision == "bf16",
            epsilon=config.rms_norm_eps,
            scale=attention.scaling,
        )
        address = self._library.tacit_model(c.byref(shape))
        if address is None:
            raise MemoryError("no memory is left for the packed weights")
        weakref.finalize(self, self._library.tacit_forget, address)
        return address

    def _know_positions(self, count: int) -> None:
        """Gives the library the angles of at least the positions [0, count)."""
        if count <= self._positions:
            return
        rotary = self.policy.base_model.model.rotary_emb
        if rotary.rope_type == "dynamic" and count > self.policy.context:
            raise ValueError(f"{count} positions are more than the model's context of {self.policy.context}, where its rotary positions change")
        count = min(max(count, 2 * self._positions, 256), max(count, self.policy.context))
        with torch.no_grad():
            tables = rotary(torch.zeros(1), torch.arange(count)[None])
        half = tables[0].shape[-1] // 2
        cosines, sines = (table[0, :, :half].float().contiguous() for table in tables)
        self._library.tacit_rotary(self._model, cosines.data_ptr(), sines.data_ptr(), count)
        self._positions = count

    def _flat(self, prompts: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All ids, and where each prompt starts and the last one ends."""
        ids = np.concatenate([np.asarray(prompt, np.int64) for prompt in prompts])
        self._check_ids(ids)
        return ids, np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])])

    def _check_ids(self, ids: NDArray[np.int64]) -> None:
        wrong = ids[(ids < 0) | (ids >= self.vocabulary)]
        if len(wrong):
            raise ValueError(f"there is no token {wrong[0]}: the model has {self.vocabulary}; does the tokenizer belong to it?")

    def _check(self, status: int, watch: Watch | None = None) -> None:
        if watch is not None and watch.error is not None:
            raise watch.error
        if status:
            raise KeyboardInterrupt if status == STOPPED else MemoryError("no memory is left for decoding; sample with fewer rows at a time")


class Rows:
    """Sequences that the library holds until `release`, or until this object goes."""

    def __init__(self, library: c.CDLL, address: int | None, lengths: NDArray[np.int64]):
        self.address, self.lengths = address, lengths
        self.release = weakref.finalize(self, library.tacit_release, address)


class Watch:
    """What the library calls back while it computes. An error raised there stops it and is kept for the caller, since it cannot pass through C++.

    Both functions are generators: the interpreter handles signals where it enters Python, and entering a generator that has yielded inside its `try`
    it is there already, while an error at the entrance of an ordinary function would be lost.
    """

    def __init__(self, tell: Callable[[], None] | None = None, ended: Ended | None = None):
        self.error: BaseException | None = None
        polling, seeing = self._polling(tell or (lambda: None)), self._seeing(ended)
        next(polling)
        next(seeing)
        self.poll, self.see = lib.Poll(polling.__next__), lib.See() if ended is None else lib.See(seeing.send)

    def _polling(self, tell: Callable[[], None]) -> Generator[int]:
        while True:
            try:
                yield int(self.error is not None)
                tell()
            except GeneratorExit:
                return
            except BaseException as error:  # noqa: BLE001 - raised again where the call was made
                self.error = error

    def _seeing(self, ended: Ended | None) -> Generator[int, Any]:
        while True:
            try:
                just = (yield int(self.error is not None)).contents
                rows, tokens, flags = (np.ctypeslib.as_array(array, (just.count,)) for array in (just.rows, just.tokens, just.ended))
                if ended is not None:
                    flags |= ended(rows, tokens)
            except GeneratorExit:
                return
            except BaseException as error:  # noqa: BLE001 - likewise
                self.error = error


def unsuitable(policy: Policy) -> str | None:
    """Why the native decoder does not run this policy; None when it does."""
    model, config = policy.base_model, policy.base_model.config
    name = type(model).__name__
    if policy.device.type != "cpu":
        return f"it is on {policy.device}"
    if policy.has_adapter:
        return "it has adapters that are not merged"
    if type(model) not in FAMILY:
        return f"{name} is not of the Llama, Mistral, Qwen2 or Qwen3 family"
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules()):
        return "hooks or replaced methods want its modules to run"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (name.startswith("Mistral") and config.sliding_window is not None):
        return "its attention has a sliding window"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}, not silu"
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.bfloat16}):
        return f"its weights are in {' and '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))}, not in float32 or bfloat16"
    return _altered(model)


def _altered(model: Any) -> str | None:
    """Why this model of the family is not as its config says it is built."""
    attention, rotary = model.model.layers[0].self_attn, model.model.rotary_emb
    if rotary.rope_type not in ROTARY:
        return f"its rotary positions are scaled by {rotary.rope_type}"
    if attention.head_dim % 2 or 2 * len(rotary.inv_freq) != attention.head_dim:
        return "its rotary positions turn a part of a head"
    if not all(type(p) is nn.Parameter for p in model.parameters()):
        return "its weights are shared out over processes"
    modules = [model.lm_head, *(layer.get_submodule(name) for layer in model.model.layers for name in PROJECTIONS)]
    if any(type(m) is not nn.Linear for m in modules) or model.lm_head.bias is not None or type(model.model.embed_tokens) is not nn.Embedding:
        return "some of its layers are of another kind"
    return None


def weights_of(model: Any) -> Layout:
    """In the order of the lists in model.h."""
    weights: Layout = [model.model.embed_tokens.weight, model.lm_head.weight, model.model.norm.weight]
    for layer in model.model.layers:
        attention, projections = layer.self_attn, [layer.get_submodule(name) for name in PROJECTIONS]
        head_norms = [attention.q_norm.weight, attention.k_norm.weight] if hasattr(attention, "q_norm") else [None, None]
        matrices, biases = [p.weight for p in projections], [p.bias for p in projections]
        weights += [layer.input_layernorm.weight, *matrices[:4], *head_norms, layer.post_attention_layernorm.weight, *matrices[4:], *biases]
    return [None if w is None else w.detach().contiguous() for w in weights]


def _at(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
