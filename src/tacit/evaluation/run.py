"""An evaluation from settings to result: which items there are, which are missing, asking, judging, logging, summing up."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from tacit.config import EvalConfig
from tacit.core.environment import environment
from tacit.core.progress import Reporter, SilentReporter
from tacit.core.rollouts import Prompt
from tacit.core.rundir import CONFIG, RunDirectory
from tacit.core.runtime import Runtime
from tacit.core.stopping import stop_after_step
from tacit.evaluation.items import Answer, Answerer, Item, ItemLog, Key
from tacit.evaluation.summary import failures, spent, summarise
from tacit.rewards.base import RewardFunction, Score, judged, load_reward
from tacit.tasks.base import Task, resolve_task

ITEMS, RESULT = "items.jsonl", "result.json"
MOST_PROMPTS = 512  # of a task, unless more are asked for


def run(
    config: EvalConfig,
    answerer: Answerer,
    output: str | Path,
    *,
    runtime: Runtime,
    resume: bool = False,
    retry_failed: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluates, writes items.jsonl and result.json into `output`, and returns the result.

    `resume` asks for what is missing; `retry_failed` also for the items that got no answer. Ctrl-C lets what is under way end, and raises
    KeyboardInterrupt. Raises ValueError when the folder holds something else, and when no item at all was answered.
    """
    reporter = reporter or SilentReporter()
    tasks = {task.name: resolve_task(task) for task in config.tasks}
    rewards = {name: load_reward(config.reward, task, sandbox=config.sandbox) for name, task in tasks.items()}
    prompts = {name: heldout(task, name, config.prompts) for name, task in tasks.items()}
    items = [
        Item(name, ordinal, sample, prompt)
        for name, of_task in prompts.items()
        for ordinal, prompt in enumerate(of_task)
        for sample in range(config.samples)
    ]
    begun = refuse_another(Path(output), config)
    with RunDirectory(output, resume=resume or not begun) as folder:
        folder.write_config(config.model_dump(mode="json"))
        log = ItemLog(folder.path / ITEMS)
        try:
            missing = [item for item in items if item.key not in log.records or (retry_failed and log.records[item.key]["error"])]
            if len(missing) < len(items):
                reporter.message(f"{len(items) - len(missing)} of {len(items)} items are there already")
            reporter.phase("evaluation", len(items))
            if missing:
                with stop_after_step(reporter, "waiting for what is under way") as stop:
                    answerer.answer(missing, Judge(rewards, log, reporter, len(items) - len(missing)).take, stop)
                    if stop.is_set() and any(item.key not in log.records for item in items):
                        raise KeyboardInterrupt
        finally:
            log.close()
        records = {item.key: log.records[item.key] for item in items}
        refuse_nothing(records)
        result = {
            "kind": config.kind,
            "policy": config.policy,
            "model": config.model,
            "tasks": {name: summarise(task, name, prompts[name], records, config.samples, config.ks) for name, task in tasks.items()},
            "failures": failures(records),
            "spent": spent(records),
            "settings": config.model_dump(mode="json"),
            "environment": environment(runtime),
        }
        folder.write_json(RESULT, result)
    return result


class Judge:
    """Takes answers, has them judged, and logs them. May be called from several threads."""

    def __init__(self, rewards: Mapping[str, RewardFunction], log: ItemLog, reporter: Reporter, done: int):
        self.rewards, self.log, self.reporter, self.done = rewards, log, reporter, done
        self.lock, self.judging = threading.Lock(), threading.Lock()
        self.total, self.scored = 0.0, 0

    def take(self, answers: list[tuple[Item, Answer]]) -> None:
        records = [record(item, answer, score) for (item, answer), score in zip(answers, self._scores(answers), strict=True)]
        with self.lock:
            self.log.append(records)
            self.done += len(records)
            self.scored += sum(r["reward"] is not None for r in records)
            self.total += sum(r["reward"] or 0.0 for r in records)
            self.reporter.step(self.done - 1, {"eval/pass@1": self.total / self.scored} if self.scored else {})

    def _scores(self, answers: list[tuple[Item, Answer]]) -> list[Score]:
        """Task by task; where there is no answer there is nothing to judge."""
        scores = [Score(None) for _ in answers]
        for name, reward in self.rewards.items():
            rows = [row for row, (item, answer) in enumerate(answers) if item.task == name and not answer.error]
            if not rows:
                continue
            with nullcontext() if hasattr(reward, "begin") else self.judging:  # workers serve any thread, the user's function need not
                found = judged(reward, [answers[row][0].prompt for row in rows], [answers[row][1].text for row in rows])
            for row, score in zip(rows, found, strict=True):
                scores[row] = score
        return scores


def record(item: Item, answer: Answer, score: Score) -> dict[str, Any]:
    """An item as a line of the log."""
    return {
        "task": item.task,
        "prompt": item.prompt.id,
        "sample": item.sample,
        "completion": answer.text,
        "finished": answer.finished,
        "reward": score.value,
        "parts": dict(score.parts),
        "failure": score.failure,
        "error": answer.error,
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "cost": answer.cost,
        "cached": answer.cached,
    }


def heldout(task: Task, name: str, asked: int | None) -> list[Prompt]:
    """The held-out prompts: as many as were asked for, else up to MOST_PROMPTS. Raises ValueError when there are fewer, or an id occurs twice."""
    try:
        prompts = task.heldout(asked or MOST_PROMPTS)
    except ValueError:
        prompts = task.heldout(there := available(task, asked or MOST_PROMPTS))
        if asked is not None:
            raise ValueError(f"task {name!r} has {there} held-out prompts, {asked} were asked for: lower --prompts to {there}") from None
    if doubled := [key for key, count in Counter(prompt.id for prompt in prompts).items() if count > 1]:
        raise ValueError(f"task {name!r} has two held-out prompts with the id {doubled[0]!r}; ids name a prompt for good")
    return prompts


def available(task: Task, too_many: int) -> int:
    """How many held-out prompts a task has, when it has fewer than `too_many`: the protocol tells only by refusing."""
    enough = 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        try:
            task.heldout(middle)
            enough = middle
        except ValueError:
            too_many = middle
    return enough


def refuse_another(output: Path, config: EvalConfig) -> bool:
    """Whether `output` holds this evaluation, with at least one item. Raises ValueError when it holds a training run, or another evaluation."""
    if not (output / CONFIG).is_file():
        return (output / ITEMS).exists()
    there, asked = yaml.safe_load((output / CONFIG).read_text(encoding="utf-8")), config.model_dump(mode="json")
    if not isinstance(there, dict) or there.get("kind") != config.kind:
        raise ValueError(f"{output} holds a run that is no evaluation; choose another --output")
    if not (output / ITEMS).exists() or not (output / ITEMS).stat().st_size:
        return False  # stopped before the first answer: nothing to mix up
    if other := next((name for name in asked if there.get(name) != asked[name]), None):
        raise ValueError(f"{output} holds another evaluation, with {other} {there.get(other)!r} and not {asked[other]!r}; choose another --output")
    return True


def refuse_nothing(records: Mapping[Key, dict[str, Any]]) -> None:
    """Raises ValueError when no item was answered."""
    errors = Counter(record["error"] for record in records.values())
    if "" not in errors:
        reason, count = errors.most_common(1)[0]
        raise ValueError(f"none of the {len(records)} items was answered; {count} times: {reason}")
