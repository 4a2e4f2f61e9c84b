"""The page: HTML around what the other files of this room say. Every text from a run is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from tacit.recipe import flat
from tacit.report import curves, health
from tacit.report.arms import Arm, arms, settings_that_differ
from tacit.report.comparison import comparison
from tacit.report.html import absent, asset, document, in_script, table, text
from tacit.report.instruments import instruments
from tacit.report.runs import ReportError, Run, examples, read_runs
from tacit.report.summary import header, intervals, tiles, verdict_card
from tacit.report.verdict import verdict


def write_report(run_dirs: Sequence[Path], output: Path) -> Path:
    """Writes one self-contained HTML file about the runs and returns its path. Raises ReportError."""
    runs = read_runs([Path(path) for path in run_dirs])
    document = page(runs, plotly_source())
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(document, encoding="utf-8", errors="replace")
    return output


def verdicts(run_dirs: Sequence[Path]) -> list[str]:
    """One line a run: what it achieved."""
    return [f"{run.name}: {said.headline}. {said.sentence}" for run in read_runs([Path(p) for p in run_dirs], most_text=0) for said in [verdict(run)]]


def plotly_source() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ReportError("a report needs plotly, which is not installed; install it with: pip install 'tacit[report]'") from None
    return get_plotlyjs()


def page(runs: Sequence[Run], plotly: str) -> str:
    """The whole document. `plotly` is the source of plotly.js."""
    compared = arms(runs)
    charts, (others, left_out) = curves.charts(compared, health.thresholds()), curves.other_charts(compared)
    time = curves.time_bars(compared)
    sections = [
        ("result", "Result", result(runs, compared)),
        ("curves", "Curves", curve_cards(charts, others, left_out, compared)),
        ("time", "Time", chart_card("time", curves.Chart("Seconds of a step, by stage")) if time else absent("No stage times were recorded.")),
        ("health", "Health", health_tables(runs)),
        *([("measured", "Measured", found)] if (found := instruments(compared)) else []),
        ("samples", "Samples", samples(runs)),
        ("setup", "Setup", setup(runs, compared)),
    ]
    if all(run.setting("kind") == "retrieval" for run in runs):  # encoders have no stages, rollouts or completions
        sections = [section for section in sections if section[0] not in ("time", "health", "samples")]
    data = {
        "charts": {f"main-{n}": asdict(chart) for n, chart in enumerate(charts)},
        "others": {f"other-{n}": asdict(chart) for n, chart in enumerate(others)},
        "time": time,
        "runs": [{"name": run.name, "samples": run.samples} for run in runs],
    }
    scripts = (
        f'<script id="data" type="application/json">{in_script(data)}</script>\n<script>{plotly}</script>\n<script>{asset("script.js")}</script>\n'
    )
    return document(", ".join(run.name for run in runs), header(runs), sections, scripts)


# --- result ---


def result(runs: Sequence[Run], compared: Sequence[Arm]) -> str:
    """What could not be read, then the verdict on one run or the comparison of the arms of several."""
    notes = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    top = f"<ul class='notes' aria-label='What could not be read'>{items}</ul>" if items else ""
    return top + (comparison(compared) + intervals(compared) if len(runs) > 1 else verdict_card(runs[0]) + tiles(runs[0]))


# --- charts: the script draws into these cards ---

NO_METRICS = "No metrics were recorded: metrics.jsonl is missing or empty."


def curve_cards(charts: Sequence[curves.Chart], others: Sequence[curves.Chart], left_out: int, compared: Sequence[Arm]) -> str:
    if not charts and not others:
        return absent(NO_METRICS)
    about = "Lines are means over seeds, and their bands reach from the lowest seed to the highest."
    several = any(len(arm.runs) > 1 for arm in compared)
    return f"<p class='soft'>{about}</p>" * several + chart_cards(charts, "main") + other_cards(others, left_out)


def chart_cards(charts: Sequence[curves.Chart], prefix: str) -> str:
    cards = "".join(chart_card(f"{prefix}-{n}", chart) for n, chart in enumerate(charts))
    return f"<div class='grid'>{cards}</div>" if cards else ""


def other_cards(charts: Sequence[curves.Chart], left_out: int) -> str:
    if not charts:
        return ""
    more = f"<p class='soft'>{left_out} more are left out.</p>" if left_out else ""
    return f"<details id='others' class='fold'><summary>{len(charts)} other metrics</summary>{chart_cards(charts, 'other')}{more}</details>"


def chart_card(name: str, chart: curves.Chart) -> str:
    label = f"<small>{escape(chart.main)}</small> " if chart.main else ""
    return (
        f"<figure class='card'><figcaption><span class='name'>{escape(chart.title)}</span><span class='value'>{label}{escape(chart.value)}</span>"
        f"<span class='note'>{escape(chart.note)}</span></figcaption>"
        f"<div class='chart' id='chart-{name}' role='img' aria-label='{escape(chart.described or chart.title)}'></div></figure>"
    )


# --- health ---


def health_tables(runs: Sequence[Run]) -> str:
    names = health.not_recorded(runs)
    unwatched = f"<p class='soft'>Not recorded: {escape(', '.join(names))}.</p>" if names and any(map(health.findings, runs)) else ""
    return "".join(health_table(run, several=len(runs) > 1) for run in runs) + unwatched


def health_table(run: Run, *, several: bool) -> str:
    found = health.findings(run)
    if not found:
        return absent(f"{run.name}: no metric with a threshold was recorded." if several else "No metric with a threshold was recorded.")
    rows = []
    for f in found:
        status = f"<span class='pill {'open' if f.beyond else 'good'}'>{'attention' if f.beyond else 'ok'}</span>"
        remark = f"Beyond at {f.beyond:,} of {f.steps:,} steps, last at step {f.latest:,}. {f.advice[0].upper()}{f.advice[1:]}." if f.beyond else ""
        rows.append(
            f"<tr><th scope='row'>{escape(f.name)}<small>{escape(f.metric)}</small></th><td data-label='last'>{f.last:.3g}</td>"
            f"<td data-label='worst'>{f.worst:.3g}</td><td data-label='expected'>{f.expected}</td><td class='status'>{status}</td>"
            f"<td class='text'>{escape(remark)}</td></tr>"
        )
    made = table(["Metric", "Last", "Worst", "Expected", "Status", ""], rows, "health")
    if not several:
        return made
    return f"<details class='fold'><summary>{escape(run.name)} {attention(found)}</summary>{made}</details>"


def attention(found: Sequence[health.Finding]) -> str:
    troubled = sum(f.beyond > 0 for f in found)
    return f"<span class='pill open'>{troubled} of {len(found)} need attention</span>" if troubled else "<span class='pill good'>in order</span>"


# --- samples ---


def samples(runs: Sequence[Run]) -> str:
    recorded, kept = sum(run.samples_recorded for run in runs), sum(len(run.samples) for run in runs)
    recorded += sum(len(examples(run)) for run in runs)
    if not kept:
        return absent("No samples were recorded: samples.jsonl is missing or empty.")
    left = f" of {recorded:,} recorded; {recorded - kept:,} were left out, whole groups evenly over the run" if recorded > kept else ""
    about = f"<p class='soft'>{kept:,} samples{left}. Right is what the verifier rewarded with more than 0.5.</p>"
    return f"{about}<div id='browser'></div><noscript>{absent('The samples need JavaScript.')}</noscript>"


# --- setup ---


def setup(runs: Sequence[Run], compared: Sequence[Arm]) -> str:
    """Recipe and environment of each run; open when there is only one."""
    several = len(runs) > 1
    parts = [differences(compared)] if several else []
    for run in runs:
        recipe = f"<pre tabindex='0'>{escape(run.config_text)}</pre>" if run.config_text else "<p class='faint'>config.yaml is missing.</p>"
        for title, content in (("Recipe", recipe), ("Environment", environment(run))):
            name = f"{escape(run.name)}, {title.lower()}" if several else title
            parts.append(f"<details class='card'{'' if several else ' open'}><summary>{name}</summary>{content}</details>")
    return f"<div class='setup'>{''.join(parts)}</div>"


def environment(run: Run) -> str:
    entry = (run.result or {}).get("environment")
    if not isinstance(entry, Mapping) or not entry:
        return "<p class='faint'>result.json names no environment.</p>"
    return "<dl class='facts'>" + "".join(f"<dt>{escape(name)}</dt><dd>{text(value)}</dd>" for name, value in flat(entry).items()) + "</dl>"


def differences(compared: Sequence[Arm]) -> str:
    """The settings in which the arms differ."""
    found = settings_that_differ(compared)
    if not found:
        return absent("The settings are equal, seeds aside." if any(len(arm.runs) > 1 for arm in compared) else "The settings are equal.")
    rows = [f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td class=text>{text(value)}</td>' for value in found[name])}</tr>" for name in found]
    return "<h3>Settings that differ</h3>" + table(["Setting", *(escape(arm.name) for arm in compared)], rows)
