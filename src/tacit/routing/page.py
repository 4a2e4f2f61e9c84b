"""An evaluation of routers as one self-contained page: curves, every metric, tasks and types, and the questions on which routers differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

MOST_DIFFERING = 100  # questions listed for an answerer
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:2rem auto;padding:0 1rem;color:#1d2330;background:#fff}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #e3e6ec}th:first-child,td:first-child{text-align:left}"
    "td{white-space:nowrap}.wide{overflow-x:auto}details{margin:.5rem 0}"
)


def write_elicitation(result: Mapping[str, Any], output: Path) -> Path:
    """Writes the page of `tacit route elicit`: any of N, its coins and the majority against N. Raises ValueError where plotly is not installed."""
    script = plotly_script()
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    chart, counts = go.Figure(), list(range(1, result["draws"] + 1))
    for (style, told), colour in zip(result["styles"].items(), qualitative.Dark24):
        for key, dash, name in (("any_of", "solid", "any of N"), ("coin", "dot", "coins"), ("majority", "dash", "majority")):
            chart.add_scatter(x=counts, y=told[key], mode="lines+markers", line={"dash": dash, "color": colour}, name=f"{style}, {name}")
    base = 1 - result["ideal_lc_rate"]
    chart.add_hline(y=base, line_dash="longdash", annotation_text="always RAG")
    chart.update_layout(xaxis_title="N", yaxis_title="share of questions", template="plotly_white", height=560)
    note = f"{result['questions']} questions. Coins fall for long context as often as the samples did: any of N shows an ability only above them."
    body = chart.to_html(full_html=False, include_plotlyjs=False)
    return written(output, "What prompts elicit", note, body, script)


def plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ValueError("a report needs plotly, which is not installed; install it with: pip install 'tacit[report]'") from None
    return get_plotlyjs()


def written(output: Path, title: str, note: str, body: str, script: str) -> Path:
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style><script>{script}</script>"
        f"<h1>{title}</h1><p>{escape(note)}</p>{body}</html>"
    )
    output.write_text(page, encoding="utf-8", errors="replace")
    return output


def write_page(result: Mapping[str, Any], output: Path) -> Path:
    """Writes the page and returns its path. Raises ValueError where plotly is not installed."""
    script = plotly_script()
    body = "".join(answerer(name, found) for name, found in result["answerers"].items())
    return written(output, "RAG or long context", f"{result['note']} Intervals: 95 %, by document.", body, script)


def answerer(name: str, found: Mapping[str, Any]) -> str:
    """The section of one answerer."""
    policies = found["policies"]
    rows = [(p, span(t["score"]), span(t["over_rag"]), span(t["over_random"]), *map(number, numbers(t))) for p, t in policies.items()]
    head = ("router", "score", "over always RAG", "over chance at its LC rate", *NUMBERS.values())
    compared = [(f"{c['a']} − {c['b']}", span(c["difference"]), f"{c['p']:.4f}") for c in found["comparisons"]]
    told = (
        f"<h2>{escape(name)}</h2><p>{found['questions']} questions, {found['documents']} documents</p>{figure(policies)}"
        f"{table(head, rows)}{table(('difference', 'mean', 'sign-flip p'), compared)}"
    )
    for key, title in (("by_task", "task"), ("by_type", "type of document")):
        names = list(dict.fromkeys(n for t in policies.values() for n in t[key]))
        cells = [(p, *(f"{t[key][n]['score']:.3f} ({t[key][n]['lc_rate']:.0%} LC)" for n in names)) for p, t in policies.items()]
        told += f"<details open><summary>Score by {title}</summary>{table(('router', *names), cells)}</details>"
    return told + differing(found["differ"])


NUMBERS = {
    "lc_rate": "LC rate",
    "cost_ratio": "cost / always LC",
    "route_accuracy": "route accuracy",
    "accuracy_where_they_differ": "accuracy where routes differ",
    "auc_where_they_differ": "AUC there",
    "regret": "regret",
    "recovered": "recovered gain",
    "area": "area",
}


def numbers(told: Mapping[str, Any]) -> Iterable[float | None]:
    return (told[name] for name in NUMBERS)


def figure(policies: Mapping[str, Any]) -> str:
    """Cost against score: the curve of each router that has one, where each one stands, and what a coin gets between both constants."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    chart = go.Figure()
    ends = [policies[name] for name in ("always RAG", "always LC")]
    chance = {"x": [t["cost"] for t in ends], "y": [t["score"][0] for t in ends]}
    chart.add_scatter(**chance, mode="lines", line={"dash": "dot", "color": "grey"}, name="chance, all rates")
    for (name, told), colour in zip(policies.items(), qualitative.Dark24):
        if len(told["curve"]) > 3:
            cost, score = zip(*told["curve"])
            chart.add_scatter(x=cost, y=score, mode="lines", line_color=colour, name=f"{name}, all thresholds")
        chart.add_scatter(x=[told["cost"]], y=[told["score"][0]], mode="markers", marker={"size": 10, "color": colour}, name=name)
    chart.update_layout(xaxis_title="mean cost", yaxis_title="mean score", template="plotly_white", height=420, margin={"t": 20})
    return chart.to_html(full_html=False, include_plotlyjs=False)


def differing(questions: list[Mapping[str, Any]]) -> str:
    if not questions:
        return ""
    names = list(questions[0]["to_lc"])
    rows = [
        (q["qid"], f"{q['rag_score']:g}", f"{q['lc_score']:g}", *("LC" if q["to_lc"][n] else "RAG" for n in names))
        for q in questions[:MOST_DIFFERING]
    ]
    what = "where routers differ" if len(names) > 1 else "where the router missed the better route"
    more = f", of which {MOST_DIFFERING} are listed" if len(questions) > MOST_DIFFERING else ""
    return f"<details><summary>{len(questions)} questions {what}{more}</summary>{table(('question', 'RAG', 'LC', *names), rows)}</details>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table></div>"


def span(interval: Iterable[float]) -> str:
    mean, low, high = interval
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
