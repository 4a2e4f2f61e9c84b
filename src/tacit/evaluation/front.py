"""From what a user typed to an evaluation, or to samples: the settings of a run are the defaults for its policy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tacit.config import EvalConfig, ModelConfig, RLConfig
from tacit.core.policy import Policy
from tacit.core.progress import Reporter
from tacit.core.rollouts import Prompt, Role
from tacit.core.runtime import Runtime
from tacit.evaluation import run as job
from tacit.evaluation.answerers import LocalPolicy, RemoteModel, sampler
from tacit.evaluation.items import Answerer
from tacit.evaluation.saved import Saved, find
from tacit.job import suit_threads
from tacit.recipe import ConfigError, Loader, Recipe, yaml

KEY_ENV = "OPENAI_API_KEY"
MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """What will be measured, where it goes, and the saved policy it is measured of, if it is no endpoint."""

    config: EvalConfig
    output: Path
    saved: Saved | None


def plan(asked: Mapping[str, Any]) -> Plan:
    """The plan for the options of `tacit eval` that have a value. Raises ValueError in one sentence."""
    source, endpoint = asked.get("source"), asked.get("endpoint")
    if (source is None) == (endpoint is None):
        raise ValueError("name what to evaluate: the folder of a run or model, or --endpoint URL with --model NAME, and not both")
    if endpoint is not None and "model" not in asked:
        raise ValueError("which model at the endpoint? Give its name with --model")
    saved = None if source is None else find(source)
    settings = defaults(saved) | {name: value for name, value in asked.items() if name in EvalConfig.model_fields}
    settings |= {"policy": endpoint if saved is None else saved.name}
    if "task" in asked:
        settings["tasks"] = [a_task(text) for text in asked["task"]]
    if "tasks" not in settings:
        raise ValueError("on what? Give a --task, such as --task gsm8k or --task my.jsonl")
    if "k" in asked:
        settings["k"] = numbers(asked["k"], int, "--k", "1,4,16")
    settings["request"] = mapping(asked.get("request", "{}"), "--request")
    config = Recipe(Path("tacit eval"), settings).validate(EvalConfig)
    name = "-".join([Path(source).name if source else asked["model"], *(task.name for task in config.tasks)])
    return Plan(config, Path(asked.get("output") or f"runs/eval-{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}"), saved)


def run(plan: Plan, asked: Mapping[str, Any], *, resume: bool, retry_failed: bool, reporter: Reporter) -> dict[str, Any]:
    runtime = Runtime(device=asked["device"])
    answerer: Answerer
    if plan.saved is None:
        key_env = asked.get("key_env", KEY_ENV)
        if "key_env" in asked and not os.environ.get(key_env):
            raise ValueError(f"the environment variable {key_env}, which --key-env names, is not set")
        prices = {plan.config.model or "": tuple(numbers(asked["price"], float, "--price", "0.15,0.6", 2))} if "price" in asked else None
        how = {name: asked.get(name) for name in ("retries", "timeout", "cache")}
        answerer = RemoteModel(plan.config, asked["concurrency"], key=os.environ.get(key_env), prices=prices, **how)
    else:
        if plan.saved.step is not None:
            reporter.message(f"{plan.saved.source} is not finished: its checkpoint of step {plan.saved.step} is evaluated")
        answerer = LocalPolicy(opened(plan.saved, plan.config.model_dump(), runtime.device), plan.config)
    return job.run(plan.config, answerer, plan.output, runtime=runtime, resume=resume, retry_failed=retry_failed, reporter=reporter)


def samples(
    source: str,
    prompts: Sequence[str],
    count: int,
    asked: Mapping[str, Any],
    *,
    temperature: float,
    top_p: float,
    seed: int,
    device: str,
    as_json: bool,
) -> Iterator[str]:
    """Completions as lines to print. Log-probs are those of the whole distribution at this temperature, also where top-p cuts it."""
    saved = find(source)
    settings = defaults(saved) | dict(asked)
    policy = opened(saved, settings, Runtime(device=device).device)
    draw = sampler(policy, max_new_tokens=settings["max_new_tokens"], top_p=top_p, stop=settings["stop"])
    asked_of = [Prompt(f"prompt {number}", text) for number, text in enumerate(prompts, start=1)]
    batch = draw.sample(asked_of, count, seed=seed, step=0, groups=range(len(prompts)), temperature=temperature, role=Role.PROBE)
    for row, text in enumerate(batch.texts):
        first, end = int(batch.offsets[row]), int(batch.offsets[row + 1])
        logp, finished = batch.tokens["behaviour_logp"][first:end].double().tolist(), bool(batch.finished[row])
        if as_json:
            yield json.dumps({"prompt": batch.prompts[row].text, "completion": text, "finished": finished, "logp": sum(logp), "token_logps": logp})
        else:
            ended = "" if finished else ", cut off by the limit"
            yield f"{batch.prompts[row].text}{text}\n  [log-prob {sum(logp):.3f}, {len(logp)} tokens, {sum(logp) / len(logp):.3f} a token{ended}]"


def defaults(saved: Saved | None) -> dict[str, Any]:
    """The settings that an evaluation takes over from the run, so that it measures what training measured."""
    recipe = saved.recipe if saved else None
    if recipe is None:
        return {"max_new_tokens": MAX_NEW_TOKENS, "stop": [], "chat": saved is None}  # most endpoints serve models tuned for chat
    limit, stop = (recipe.sampling.max_new_tokens, recipe.sampling.stop) if isinstance(recipe, RLConfig) else (recipe.max_new_tokens, [])
    return {
        "max_new_tokens": limit,
        "stop": list(stop),
        "dtype": recipe.model.dtype,
        "chat": recipe.model.chat,
        "system": recipe.model.system,
        "tasks": [recipe.task.model_dump(mode="json")],
        "reward": recipe.reward,
        "sandbox": recipe.sandbox,
    }


def opened(saved: Saved, settings: Mapping[str, Any], device: torch.device) -> Policy:
    model = saved.recipe.model if saved.recipe else ModelConfig()
    changed = {name: settings[name] for name in ("dtype", "chat", "system") if name in settings}
    policy = saved.open(device, Recipe(Path("tacit"), model.model_dump() | changed).validate(ModelConfig))
    suit_threads(policy)
    return policy


def a_task(text: str) -> dict[str, Any]:
    """A name, or a section as in a recipe."""
    return mapping(text, "--task") if text.lstrip().startswith("{") else {"name": text}


def mapping(text: str, option: str) -> dict[str, Any]:
    try:
        found = yaml.load(text, Loader)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{option} {text!r}: write it like a section of a recipe, for example '{{name: sorting, options: {{max_length: 9}}}}'")
    return found


def numbers(text: str, kind: type[int] | type[float], option: str, example: str, count: int | None = None) -> list[Any]:
    """Numbers with commas between them."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or count not in (None, len(found)):
        raise ConfigError(f"{option} {text!r}: write numbers with commas between them, for example {option} {example}")
    return found
