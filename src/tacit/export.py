"""A finished run as a folder for others: weights, tokenizer, generation settings, and a model card that says where they come from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tacit.config import RLConfig, SFTConfig, load
from tacit.report.runs import read_run
from tacit.report.verdict import estimate, shower, verdict

KINDS = {  # tag on the hub, and what it is called in the card
    "rl": ("reinforcement-learning", "Reinforcement learning with verifiable rewards"),
    "sft": ("sft", "Supervised fine-tuning on the task's solutions"),
    "wmss": ("sft", "Supervised training with the logits of a weak model mixed in (WMSS)"),
}
CARD, RECIPE, RESULT = "README.md", "recipe.yaml", "result.json"


class ExportError(ValueError):
    """Nothing can be exported; why, and what to do, in one sentence."""


def export(
    run: Path, output: Path | None = None, *, step: int | None = None, adapter: bool = False, dtype: str | None = None, force: bool = False
) -> Path:
    """Writes the policy of a finished run to `output` (default: RUN/export), whole or not at all, and returns it; with `step`, one that it kept.

    Merged weights as `transformers` and vLLM read them, bit for bit those of the run unless `dtype` (float32, bfloat16, float16) is given; with
    `adapter` the LoRA adapter as peft reads it. Raises ExportError when the run is not finished or has no adapter, and when `output` is there
    without `force`.
    """
    policy = run / "policy" if step is None else run / "kept" / f"step-{step:08d}"
    if not (run / "config.yaml").is_file():
        raise ExportError(f"{run} holds no run; give the output folder of `tacit train`")
    config = load(run / "config.yaml")
    if step is not None and not policy.is_dir():
        kept = ", ".join(str(int(path.name.removeprefix("step-"))) for path in sorted((run / "kept").glob("step-*"))) or "none"
        raise ExportError(f"{run} has not kept the policy of step {step}; the steps that it kept: {kept}")
    if not policy.is_dir() or not (run / "result.json").is_file():
        raise ExportError(f"{run} is not finished, so there is nothing to export yet; finish it with --resume")
    if adapter and not (policy / "adapter").is_dir():
        raise ExportError(f"{run} was trained without LoRA, so it has no adapter; export the whole weights, without --adapter")
    if adapter and dtype:
        raise ExportError("--dtype converts whole weights; leave it out with --adapter")
    output = output or run / ("export" if step is None else f"export-{step}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not force:
        raise ExportError(f"{output} is there already; choose another --output, or replace it with --force")

    output.parent.mkdir(parents=True, exist_ok=True)
    making = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        weights(policy, making, adapter=adapter, dtype=dtype)
        generation = generation_settings(json.loads((policy / "generation_config.json").read_text(encoding="utf-8")), config)
        if not adapter:
            (making / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
        shutil.copy(run / "config.yaml", making / RECIPE)
        shutil.copy(run / "result.json", making / RESULT)
        (making / CARD).write_text(card(run, config, step=step, adapter=adapter, dtype=dtype), encoding="utf-8")
        if output.is_dir():
            shutil.rmtree(output)
        making.replace(output)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return output


def weights(policy: Path, to: Path, *, adapter: bool, dtype: str | None) -> None:
    """Model and tokenizer files. Without a change of dtype they are copied: nothing is rounded, and nothing large is loaded."""
    if adapter:
        shutil.copytree(policy / "adapter", to)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (policy / name).exists():
                shutil.copy(policy / name, to / name)
        return
    shutil.copytree(policy, to, ignore=shutil.ignore_patterns("adapter"))
    if dtype is not None:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(policy, dtype=getattr(torch, dtype))
        for old in to.glob("*.safetensors*"):
            old.unlink()
        model.save_pretrained(to)


def generation_settings(there: Mapping[str, Any], config: RLConfig | SFTConfig) -> dict[str, Any]:
    """generation_config.json with the sampling of the recipe, so that a server draws as training drew."""
    temperature = config.sampling.temperature if isinstance(config, RLConfig) else 1.0
    return {**there, "do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0, "max_new_tokens": config.completion_limit}


# --- the model card ---


def card(run: Path, config: RLConfig | SFTConfig, *, step: int | None = None, adapter: bool, dtype: str | None) -> str:
    """README.md as the hub reads it. It says what the run recorded, and nothing else."""
    found = read_run(run, run.name, most_text=0)
    result = found.result or {}
    base = config.model.path
    about: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    about["tags"] = ["tacit", KINDS[config.kind][0]]
    if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        about["base_model"] = base
    show = shower(found)
    rows = [f"| {name} | {interval(found, key, show)} |" for key, name in (("before", "before training"), ("after", "after training"))]
    rows += [f"| baseline: {name} | {show(value)} |" for name, value in (result.get("baselines") or {}).items()]
    said = verdict(found)
    start = f"from the run `{config.init}`" if config.init else f"from `{base}`" if base else "from random weights, a small model built from scratch"
    facts = {
        "training": f"{KINDS[config.kind][1]}, {config.steps:,} steps, {start}",
        "task": f"`{config.task.name}`" + (f" with options `{config.task.options}`" if config.task.options else ""),
        "reward": f"`{config.reward}`" if config.reward else "the task's own verifier",
        "seed": str(config.seed),
        "optimiser": f"AdamW, learning rate {config.optimiser.lr:g}, {config.optimiser.schedule}",
        "weights": "LoRA adapter" if adapter else f"whole{', the adapter merged' if config.model.lora else ''}, {dtype or config.model.dtype}",
        "completions": f"up to {config.completion_limit} tokens",
        **{name: str(value) for name, value in (result.get("environment") or {}).items() if value is not None},
    }
    if step is not None:
        facts["step"] = f"{step}, kept on the way: the numbers above are those of the run's end"
    return (
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n# {run.name}\n\n{said.headline}. {said.sentence}\n\n"
        f"One seed. Whether the gain holds over seeds, this run does not say.\n\n"
        f"| held-out {result.get('metric', 'metric')} ({result.get('prompts', '?')} prompts, {result.get('samples', '?')} samples each, "
        f"temperature {result.get('temperature', '?')}) | value (95 % interval over prompts) |\n|---|---|\n" + "\n".join(rows) + "\n\n"
        "## How it was made\n\n" + "".join(f"- {name}: {value}\n" for name, value in facts.items()) + "\n"
        f"The whole recipe is in `{RECIPE}`, the numbers are in `{RESULT}`.\n\n## Use\n\n{usage(adapter=adapter, chat=config.model.chat, base=base)}"
    )


def interval(found: Any, key: str, show: Any) -> str:
    value = estimate(found, key)
    if value is None:
        return "–"
    return show(value.mean) + (" ({} to {})".format(*map(show, value.interval)) if value.interval else "")


def usage(*, adapter: bool, chat: bool, base: str | None) -> str:
    prompts = "Prompts go through the chat template." if chat else "Prompts are plain text, without a chat template."
    if adapter:
        return (
            f"{prompts}\n\n```python\nfrom peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM.from_pretrained(FOLDER)\n```\n"
            + ("" if base else "\nThe adapter fits the weights that its run started from.\n")
        )
    return (
        f"{prompts}\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```\n"
    )
