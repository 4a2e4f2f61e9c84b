"""An evaluation as a table on the terminal, and as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from tacit.report.html import absent, document, table, text
from tacit.report.runs import ReportError

MOST_TOLD = 10  # failures listed on the terminal
EXAMPLES = 60  # completions on the page
NOTE = (
    "Means over problems with 95 % intervals that resample problems; what could not be answered or judged is left out and counted. "
    "pass@k: at least one of k is right; maj@k: the majority of k is right, ties shared; avg@n: mean reward."
)


def terminal(result: Mapping[str, Any]) -> Table:
    """A row for each metric of a task; of its difficulties the mean reward, which stands first."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    grid.add_column("task", overflow="fold")
    for column in ("metric", "mean", "95 % interval", "problems"):
        grid.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for name, task in result["tasks"].items():
        for place, (metric, estimate) in enumerate(task["metrics"].items()):
            grid.add_row("" if place else name, metric, *cells(estimate))
        for difficulty, metrics in task["by_difficulty"].items():
            metric, estimate = next(iter(metrics.items()))
            grid.add_row(f"  {difficulty}", metric, *cells(estimate), style="dim")
    return grid


def cells(estimate: Mapping[str, Any]) -> tuple[str, str, str]:
    """Mean, interval and number of problems; – where nothing can be said."""
    if not estimate["problems"]:
        return "–", "", "0"
    return f"{estimate['mean']:.3f}", f"[{estimate['low']:.3f}, {estimate['high']:.3f}]", str(estimate["problems"])


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What the table does not say: what was left out, baselines, cost, and which items failed and why."""
    for name, task in result["tasks"].items():
        if left_out := [f"{task[what]} {what}" for what in ("failed", "unscored") if task[what]]:
            yield f"{name}, left out of {task['problems'] * task['samples']} completions: {', '.join(left_out)}"
        if task["baselines"]:
            yield f"{name}, baselines: " + ", ".join(f"{rule} {value:.3f}" for rule, value in task["baselines"].items())
    if result["model"]:
        yield money(result["spent"])
    for failure in result["failures"][:MOST_TOLD]:
        yield f"{failure['what']}: {failure['task']}, prompt {failure['prompt']}, sample {failure['sample']}: {failure['why']}"
    if (more := len(result["failures"]) - MOST_TOLD) > 0:
        yield f"... and {more} more, all in result.json"


def money(spent: Mapping[str, Any]) -> str:
    cost = "cost unknown: give --price, and the endpoint must tell tokens" if spent["cost"] is None else f"cost {spent['cost']:.4g}"
    return f"{spent['prompt_tokens']:,} prompt and {spent['completion_tokens']:,} completion tokens, {cost}"


def result_in(folder: Path) -> dict[str, Any] | None:
    """The result of the evaluation in `folder`; None when it holds something else. Raises ReportError when it is not finished."""
    settings = folder / "config.yaml"
    if not settings.is_file() or "kind: eval" not in settings.read_text(encoding="utf-8").splitlines():
        return None
    try:
        return json.loads((folder / "result.json").read_bytes())
    except FileNotFoundError:
        raise ReportError(f"{folder} holds an evaluation that is not finished; continue it with tacit eval ... --resume") from None


def write_page(result: Mapping[str, Any], items: Path, output: Path) -> Path:
    """Writes the page, with completions from the log of the evaluation, and returns its path."""
    output.write_text(page(result, examples(items)), encoding="utf-8", errors="replace")
    return output


def examples(items: Path) -> list[dict[str, Any]]:
    """Completions spread evenly over the log."""
    found = items.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in found[:: max(1, -(-len(found) // EXAMPLES))]]


def page(result: Mapping[str, Any], completions: list[dict[str, Any]]) -> str:
    tasks = "".join(f"<h3>{escape(name)}</h3>{task_table(task)}" for name, task in result["tasks"].items())
    sections = [
        ("result", "Result", f"{tasks}<p class='soft'>{escape(NOTE)}</p><p class='soft'>{escape(money(result['spent']))}</p>"),
        ("failures", "Failures", failure_table(result) if result["failures"] else absent("Every item was answered and judged.")),
        ("samples", "Samples", f"<div class='card list'>{''.join(map(sample, completions))}</div>" if completions else absent("There are none.")),
        ("setup", "Setup", "".join(f"<details class='card'><summary>{name.capitalize()}</summary>{facts(result[name])}</details>" for name in SETUP)),
    ]
    title = str(result["model"] or result["policy"])
    return document(title, f"<h1>{escape(title)}</h1><p class='about'>{escape(about(result))}</p>", sections)


SETUP = ("settings", "environment")


def about(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    how = f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, seed {settings['seed']}"
    return f"evaluation on {', '.join(result['tasks'])} · {settings['samples']} samples · {how} · {result['policy']}"


def task_table(task: Mapping[str, Any]) -> str:
    names = list(task["metrics"])
    counts = [(name, task[name]) for name in ("failed", "unscored", "truncated")]
    remarks = [f"{count} {name}" for name, count in counts if count]
    remarks += [f"{task['length']:.1f} tokens on average"] if task["length"] is not None else []
    remarks += [f"baseline {rule} {value:.3f}" for rule, value in task["baselines"].items()]
    rows = [row("all", task["problems"], task["metrics"], names)]
    rows += [row(name, of_problems(metrics), metrics, names) for name, metrics in task["by_difficulty"].items()]
    return table(["Difficulty", "Problems", *map(escape, names)], rows) + f"<p class='soft'>{escape(' · '.join(remarks))}</p>"


def row(name: str, problems: int, metrics: Mapping[str, Any], names: list[str]) -> str:
    columns = "".join(f"<td>{mean}<br><small>{interval}</small></td>" for mean, interval, _ in (cells(metrics[n]) for n in names))
    return f"<tr><th scope='row'>{escape(name)}</th><td>{problems}</td>{columns}</tr>"


def failure_table(result: Mapping[str, Any]) -> str:
    columns = ("task", "prompt", "sample", "what", "why")
    rows = ["<tr>" + "".join(f"<td class='text'>{text(failure[name])}</td>" for name in columns) + "</tr>" for failure in result["failures"]]
    return table([name.capitalize() for name in columns], rows)


def sample(record: Mapping[str, Any]) -> str:
    reward = record["reward"]
    tone, word = ("unscored", "unscored") if reward is None else ("right" if reward > 0.5 else "wrong", f"reward {reward:g}")
    pill = {"right": "good", "wrong": "bad", "unscored": "open"}[tone]
    line, why = " ".join(record["completion"].split())[:200] or record["error"] or "empty", record["error"] or record["failure"]
    return (
        f"<details class='sample'><summary><span class='pill {pill}'>{tone}</span><span class='line'>{escape(line)}</span>"
        f"<span class='meta'>{escape(record['prompt'])} · {record['sample']}</span></summary><div class='inside'>"
        f"<h4>{escape(word)} {escape(why)}</h4><pre class='{tone}'>{escape(record['completion'])}</pre></div></details>"
    )


def facts(entries: Mapping[str, Any]) -> str:
    return "<dl class='facts'>" + "".join(f"<dt>{escape(name)}</dt><dd>{text(value)}</dd>" for name, value in entries.items()) + "</dl>"


def of_problems(metrics: Mapping[str, Any]) -> int:
    return max(estimate["problems"] for estimate in metrics.values())
