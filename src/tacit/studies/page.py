"""A study as one self-contained page: verdicts, every seed as a dot, curves with bands, settings. Drawn as SVG, so it needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tacit.core.progress import duration
from tacit.report.html import absent, document, table, text
from tacit.studies.plots import bands, dots
from tacit.studies.result import beside
from tacit.studies.study import Measured

NOTE = (
    "<p class='soft'>Expectations and margins were fixed before the run. Difference of paired values with its 95 % interval; "
    "p by the paired t test, corrected by Holm over all claims, and exact by sign flips, uncorrected.</p>"
)
TONES = {"supported": "good", "refuted": "bad", "inconclusive": "open"}


def write_page(result: Mapping[str, Any], about: str, values: Mapping[str, Mapping[int, Measured]], output: Path) -> Path:
    """Writes the page and returns its path. `values`: arm -> seed -> what was measured, for the curves."""
    sections = [
        ("result", "Claims", flags(result) + claims(result)),
        ("seeds", "Every seed", seeds(result)),
        ("curves", "Curves", curves(values)),
        ("setup", "Setup", setup(result, about)),
    ]
    output.write_text(document(f"{result['study']}, {result['preset']}", header(result), sections), encoding="utf-8")
    return output


def header(result: Mapping[str, Any]) -> str:
    arms = result["measurements"].values()
    told = [f"study {result['study']}", f"preset {result['preset']}", f"{len(arms)} arms", f"{max((len(a['seeds']) for a in arms), default=0)} seeds"]
    return f"<h1>{escape(result['title'])}</h1><p class='about'>{escape(' · '.join(told))}</p>"


def flags(result: Mapping[str, Any]) -> str:
    missing = len(result["missing"])
    notes = [*result["flags"], *([f"{missing} cells are missing, listed under Setup"] if missing else [])]
    return f"<ul class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def claims(result: Mapping[str, Any]) -> str:
    rows = [claim(c) for c in result["claims"]]
    for p in result["properties"]:
        word, tone = ("not measured", "open") if p["holds"] is None else ("holds", "good") if p["holds"] else ("fails", "bad")
        rows.append(
            f"<tr><th scope='row' class='text'>{escape(p['statement'])}</th><td>{pill(word, tone)}</td><td colspan='4'>{text(p['value'])}</td></tr>"
        )
    if not rows:
        return absent("This preset makes no claims.")
    return NOTE + table(["Claim", "Verdict", "Difference", "p, Holm", "p, sign flip", "n"], rows)


def claim(c: Mapping[str, Any]) -> str:
    found = c["contrast"]
    symbol = c["expected"].split()[1]
    expected = f"{c['metric']}: {found['a']} {symbol} {found['b']}" + (f", margin {found['margin']:g}" if found["margin"] else "")
    difference = p = flip = "–"
    if "ci95" in found:
        low, high = found["ci95"]
        difference = f"{found['mean_diff']:+.3f}<br><small>{bound(low)} to {bound(high)}</small>"
        p, flip = f"{found['p_holm']:.2g}", "–" if found["p_sign_flip"] is None else f"{found['p_sign_flip']:.2g}"
    return (
        f"<tr><th scope='row' class='text' style='white-space:normal'>{escape(c['statement'])}"
        f"<small>{escape('; '.join([expected, *beside(c)]))}</small></th>"
        f"<td>{pill(c['verdict'], TONES[c['verdict']])}</td><td>{difference}</td><td>{p}</td><td>{flip}</td><td>{found['n']}</td></tr>"
    )


def bound(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:+.3f}"


def pill(word: str, tone: str) -> str:
    return f"<span class='pill {tone}'>{word}</span>"


def seeds(result: Mapping[str, Any]) -> str:
    measured = result["measurements"]
    metrics = dict.fromkeys(m for arm in measured.values() for m in arm if m != "seeds")
    metrics = [m for m in metrics if len({v for arm in measured.values() for v in arm.get(m, ())}) > 1]  # what is the same everywhere is no picture
    cards = [figure(m, "", dots({arm: found[m] for arm, found in measured.items() if m in found})) for m in metrics]
    return f"<p class='soft'>A dot for every seed, the mean, and its 95 % interval over seeds.</p><div class='grid'>{''.join(cards)}</div>"


def curves(values: Mapping[str, Mapping[int, Measured]]) -> str:
    metrics = dict.fromkeys(name for found in values.values() for one in found.values() for name in one.curves)
    cards = []
    for metric in metrics:
        arms = {arm: [one.curves[metric] for one in found.values() if metric in one.curves] for arm, found in values.items()}
        for group, members in grouped({arm: lines for arm, lines in arms.items() if any(len(x) > 1 for x, _ in lines)}).items():
            cards.append(figure(metric, group, bands(members)))
    if not cards:
        return absent("No curves were recorded.")
    return f"<p class='soft'>Mean over seeds; the band is one standard deviation of a seed.</p><div class='grid'>{''.join(cards)}</div>"


def grouped(arms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arms named task/method, by task: a chart holds what can be compared."""
    found: dict[str, dict[str, Any]] = {}
    for arm, lines in arms.items():
        task, slash, method = arm.partition("/")
        found.setdefault(task if slash else "", {})[method if slash else arm] = lines
    return found


def figure(title: str, note: str, svg: str) -> str:
    caption = f"<span class='name'>{escape(title)}</span><span class='note'>{escape(note)}</span>"
    return f"<figure class='card'><figcaption>{caption}</figcaption>{svg}</figure>"


def setup(result: Mapping[str, Any], about: str) -> str:
    facts = {**result["environment"], "time of all cells": duration(result["seconds"])}
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    parts = [f"<div class='card'><p class='sentence' style='white-space:pre-line'>{escape(about)}</p></div>"]
    parts.append(f"<details class='card'><summary>Environment</summary><dl class='facts'>{listed}</dl></details>")
    rows = [f"<tr><th scope='row'>{escape(arm)}</th><td class='text'>{escape(shown(how))}</td></tr>" for arm, how in result["settings"].items()]
    parts.append(f"<details class='card'><summary>Settings of the arms</summary>{table(['Arm', 'Settings'], rows)}</details>")
    if result["missing"]:
        rows = [
            f"<tr><th scope='row'>{escape(m['arm'])}</th><td>{m['seed']}</td><td class='text'>{escape(m['why'])}</td></tr>" for m in result["missing"]
        ]
        parts.append(f"<details class='card'><summary>Missing cells</summary>{table(['Arm', 'Seed', 'Why'], rows)}</details>")
    return f"<div class='setup'>{''.join(parts)}</div>"


def shown(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Nested settings on one line, as overrides of a recipe would say them."""
    said: Sequence[str] = [
        shown(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else f"{prefix}{name}={value}"
        for name, value in settings.items()
        if value is not None
    ]
    return " ".join(said)
