"""Policy: a causal LM with its tokenizer, and the log-probs, entropies and hidden states of its tokens."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from tacit.config import LoraConfig, ModelConfig
from tacit.core import tiny
from tacit.core.layout import dealt, families, filled, micro_batches
from tacit.core.rollouts import TURNS, Prompt, Ragged, token_index
from tacit.core.runtime import sharded_like, whole
from tacit.core.scorer import TokenScorer, TokenStats, evaluating

logger = logging.getLogger("tacit")
MICRO_BATCH_TOKENS = {"cpu": 4096}  # what a core computes on should stay in its cache: 1024 takes a sixth longer, 16384 twice as long
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Policy:
    """Any causal LM that `transformers` loads, and its tokenizer.

    Raises ValueError when the model has no end-of-sequence token: nothing could ever end a completion; or when `chat` finds no template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool = False,
        system: str | None = None,
        device: str | torch.device = "cpu",
        bf16: bool = False,
    ):
        if chat and tokenizer.chat_template is None:
            raise ValueError("model.chat is on, but this tokenizer has no chat template; set model.chat: false, or take a checkpoint tuned for chat")
        self.device = torch.device(device)
        self.model = model.to(self.device)  # pyright: ignore[reportArgumentType]
        self.tokenizer = tokenizer
        self.chat, self.system, self.bf16 = chat, system, bf16
        self.version = 0  # optimiser steps seen
        self.stop_ids = _stop_ids(model, tokenizer)
        text_config, pad = model.config.get_text_config(), tokenizer.pad_token_id
        self.pad_id = pad if pad is not None and pad < text_config.vocab_size else min(self.stop_ids)  # never attended to, any embedded id will do
        self.context = int(getattr(text_config, "max_position_embeddings", None) or 2**31)
        self.scorer = TokenScorer(self.base_model)  # the module that data-parallel wrappers take as their root
        self._reference: TokenScorer | None = None

    @property
    def base_model(self) -> PreTrainedModel:
        """The causal LM itself; adapters live inside it."""
        return self.model.get_base_model() if self.has_adapter else self.model  # pyright: ignore[reportCallIssue]

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config") and hasattr(self.model, "get_base_model")

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    # --- text and tokens ---

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, chat template applied when the policy has `chat`. Raises ValueError when nothing remains to condition on."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The same for many, in one call of the tokenizer where there is no template."""
        if self.chat:
            found = [self._in_template(prompt) for prompt in prompts]
        else:
            if talk := next((prompt for prompt in prompts if TURNS in prompt.info), None):
                raise ValueError(f"prompt {talk.id!r} is a conversation: set model.chat: true, and take a model whose tokenizer has a chat template")
            found = self._encode([prompt.text for prompt in prompts], add_special_tokens=True)
            found = [ids[:-1] if ids and ids[-1] in self.stop_ids else ids for ids in found]  # tokenizers that close every text
        for prompt, ids in zip(prompts, found, strict=True):
            if not ids:
                raise ValueError(f"prompt {prompt.id!r} is empty after tokenisation: a completion needs at least one token to follow")
        return found

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of a reference completion with its end-of-sequence token, for supervised training."""
        return self.encode_completions([text])[0]

    def encode_completions(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*ids, self._end] for ids in self._encode(texts, add_special_tokens=False)]

    @cached_property
    def _end(self) -> int:
        """The token that ends a completion to learn: in chat the one that the template puts behind the assistant's words, where it ends one."""
        if self.chat:
            said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            ids: Any = self.tokenizer.apply_chat_template(said, tokenize=True, return_dict=False)
            if (last := next((i for i in reversed(ids) if i in self.stop_ids), None)) is not None:
                return last
        end = self.tokenizer.eos_token_id
        return end if isinstance(end, int) else min(self.stop_ids)

    def _in_template(self, prompt: Prompt) -> list[int]:
        turns = list(prompt.info.get(TURNS) or [{"role": "user", "content": prompt.text}])
        if self.system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))  # pyright: ignore[reportReturnType]

    def _encode(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        tiny.check_characters(self.tokenizer, "".join(texts))
        return self.tokenizer(list(texts), **options)["input_ids"] if texts else []

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)  # pyright: ignore[reportReturnType]

    # --- one forward pass ---

    def micro_batches(self, lengths: Tensor, budget: int | None = None) -> list[Tensor]:
        """Row indices of each micro-batch for rows of these lengths (B,); without a budget, as many tokens as suit the device."""
        return micro_batches(lengths, budget or self._budget)

    @property
    def _budget(self) -> int:
        return MICRO_BATCH_TOKENS.get(self.device.type, 16384)

    def shared_out(self, prompts: Ragged, completions: Ragged, ranks: int, budget: int | None = None, *, shared: bool = True) -> list[list[Tensor]]:
        """For every rank the row indices of its micro-batches, so that ranks do like work; with `shared`, rows of one prompt stay together.

        A prompt's completions are parted where ranks would have unlike work otherwise.
        """
        budget = budget or self._budget
        if not (shared and self._shares()):
            lengths = prompts.lengths + completions.lengths
            order = torch.argsort(lengths, descending=True, stable=True)
            return [[order[rank::ranks][index] for index in micro_batches(lengths[order[rank::ranks]], budget)] for rank in range(ranks)]
        total = int(prompts.lengths.sum() + completions.lengths.sum())
        cuts = [families(prompts, completions, min(budget, total // parts)) for parts in ((1,) if ranks == 1 else (1, 4 * ranks, 16 * ranks))]
        deals = [(members, sizes, dealt(sizes, ranks)) for members, sizes in cuts]
        members, sizes, shares = min(deals, key=lambda deal: max(int(deal[1][share].sum()) for share in deal[2]))
        return [[torch.cat([members[i] for i in run]) for run in filled(share, sizes, budget)] for share in shares]

    def _shares(self) -> bool:
        """Whether this model can let completions share a prompt."""
        if self.scorer.shares is None:  # it tries inside a pass of its own, where weights that processes share out are whole
            one = Ragged(torch.tensor([self.pad_id]), torch.tensor([0, 1]))
            with torch.no_grad():
                self.score(one, one, shared=True)
        return bool(self.scorer.shares)

    def score(self, prompts: Ragged, completions: Ragged, **wanted: Any) -> TokenStats:
        """One forward pass over these rows, differentiable. `wanted`: temperature=1.0, entropy=False, hidden=False, packed=False, shared=False.

        In training mode, which gradient checkpointing asks for, unless gradients are off; see `disable_dropout`.
        """
        self.model.train(torch.is_grad_enabled())
        with self.autocast():
            return self.scorer(prompts, completions, self.pad_id, **wanted)

    @torch.no_grad()
    def token_stats(
        self, prompts: Ragged, completions: Ragged, *, micro_batch_tokens: int | None = None, reference: bool = False, **wanted: Any
    ) -> TokenStats:
        """The same for any number of rows, in micro-batches, without gradient or dropout, on the CPU; under the reference policy when asked."""
        parts: dict[str, list[Tensor]] = {"logp": [], "entropy": [], "hidden": []}
        order = self.micro_batches(prompts.lengths + completions.lengths, micro_batch_tokens)
        with evaluating(self.model), self.reference() if reference else nullcontext(self.scorer) as scorer, self.autocast():
            for index in order:
                stats = scorer(prompts.select(index), completions.select(index), self.pad_id, **wanted)
                for name, tensors in parts.items():
                    if (value := getattr(stats, name)) is not None:
                        tensors.append(value.cpu())
        at = torch.cat([token_index(completions.offsets, index) for index in order]) if order else torch.empty(0, dtype=torch.int64)
        return TokenStats(**{name: _scatter(tensors, at) for name, tensors in parts.items() if tensors or name == "logp" or wanted.get(name)})

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def reference(self) -> Iterator[TokenScorer]:
        """The policy as it was when `keep_reference` was called; with LoRA, the model without its adapter."""
        if self._reference is not None:
            yield self._reference
        elif self.has_adapter:
            with self.model.disable_adapter():  # pyright: ignore[reportCallIssue]
                yield self.scorer
        else:
            raise RuntimeError("call keep_reference() before the first update")

    def keep_reference(self) -> None:
        """Freezes a copy of the weights as the reference; an adapter needs none."""
        if not self.has_adapter and self._reference is None:
            self._reference = TokenScorer(copy.deepcopy(self.base_model).requires_grad_(False).eval())

    def disable_dropout(self) -> None:
        """Policy gradients compare the same network before and after; dropout would add noise to every ratio."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)

    # --- saving ---

    def state_dict(self) -> dict[str, Tensor]:
        """What training changes: the adapter under LoRA, otherwise all weights, tied ones once."""
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}  # named_parameters lists a tied weight once
        return whole({k: v.detach() for k, v in self.model.state_dict().items() if k in trained})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes `state_dict` back. Raises ValueError when names or shapes are not those of this model."""
        live = dict(self.trainable())
        expected, found = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (live, state))
        if odd := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
            raise ValueError(f"these weights belong to another model: {len(odd)} names or shapes differ, {odd[0]!r} among them")
        self.model.load_state_dict({name: sharded_like(tensor, live[name]) for name, tensor in state.items()}, strict=False)

    def save(self, folder: str | Path) -> None:
        """Writes an ordinary `transformers` folder, adapters merged; with LoRA the adapter alone goes to FOLDER/adapter as well."""
        model = self.model
        if self.has_adapter:
            model.save_pretrained(Path(folder) / "adapter")
            model = copy.deepcopy(self.model).merge_and_unload()  # pyright: ignore[reportCallIssue]
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_whole(self, folder: Path) -> None:
        """`save`, so that the folder is there whole or not at all, for those that read it meanwhile."""
        making = folder.with_name(f".{folder.name}.tmp")
        for old in (making, folder):
            shutil.rmtree(old, ignore_errors=True)
        self.save(making)
        making.replace(folder)


def load_policy(
    config: ModelConfig,
    *,
    alphabet: str = "",
    seed: int = 0,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    folder: str | Path | None = None,
) -> Policy:
    """The policy of a recipe: from `folder` when given, else from config.path, else built from scratch over `alphabet`.

    Raises ValueError with one sentence when no model can be loaded.
    """
    dtype = DTYPES[config.dtype]
    source = folder or config.path
    if source is not None:
        try:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=config.attention)
            tokenizer = load_tokenizer(source)
        except Exception as error:
            absent = "" if Path(source).is_dir() else "there is no such folder, and the hub gave none: "
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"no causal LM could be loaded from {str(source)!r}: {absent}{reason}") from error
    elif config.tiny is not None:
        tokenizer = tiny.char_tokenizer(alphabet)
        model = tiny.tiny_model(config.tiny, tokenizer, seed=seed, dtype=dtype)
        model.set_attn_implementation(config.attention)
    else:
        raise ValueError("name the policy: model.path, model.tiny or init")
    if config.lora is not None:
        model = add_lora(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model, tokenizer, chat=config.chat, system=config.system, device=device, bf16=bf16)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    A generic one is whole in its tokenizer.json, and read from there: AutoTokenizer would replace it by the class that belongs to the model's
    type (for qwen2 a byte-pair one over the same vocabulary, which loses spaces). Raises ValueError when there is none: AutoTokenizer would make
    an empty one up.
    """
    generic = get_tokenizer_config(source).get("tokenizer_class") == PreTrainedTokenizerFast.__name__
    none = "it holds no tokenizer; save one beside the model, as tokenizer.save_pretrained does"
    try:
        tokenizer = (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source)
    except ValueError as error:  # some model types make one up, others say at length that they cannot
        raise ValueError(none) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(none)
    return tokenizer


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PreTrainedModel:
    """The model with a peft LoRA adapter; only the adapter trains."""
    from peft import LoraConfig as PeftLora  # takes seconds to import, and most runs do without
    from peft import get_peft_model

    settings = PeftLora(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=config.target, task_type="CAUSAL_LM")  # pyright: ignore[reportArgumentType]
    try:
        return get_peft_model(model, settings)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
        raise ValueError(f"model.lora.target {config.target!r} fits no module of this model; its linear ones are {', '.join(known)}") from error


def _scatter(parts: list[Tensor], at: Tensor) -> Tensor:
    """Micro-batch results back in the order of the rows."""
    if not parts:
        return torch.empty(0)
    flat = torch.cat(parts)
    out = torch.empty_like(flat)
    out[at] = flat
    return out


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = [*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id]
    stop = frozenset(i for i in ids if i is not None)
    if not stop:
        raise ValueError(
            "the tokenizer has no EOS token and the model's generation config names none, so no completion could end; "
            "set tokenizer.eos_token (for example tokenizer.eos_token = '</s>') or generation_config.eos_token_id and save the folder again"
        )
    return stop
