from __future__ import annotations

import io
import json
import math
from html.parser import HTMLParser

from rich.console import Console

from tacit.report.evaluation import EXAMPLES, lines, page, terminal, write_page

HALF = {"mean": 0.5, "low": 0.25, "high": 0.75, "problems": 8}
NOTHING = {"mean": math.nan, "low": math.nan, "high": math.nan, "problems": 0}
EVIL = "</pre><script>alert(1)</script>"


def result(**changes) -> dict:
    task = {"metrics": {"avg@2": HALF, "maj@2": NOTHING}, "by_difficulty": {"<9> digits": {"avg@2": HALF, "maj@2": NOTHING}}}
    task |= {"problems": 8, "samples": 2, "failed": 1, "unscored": 2, "truncated": 3, "length": 4.25, "baselines": {"guess": 0.125}}
    return {
        "policy": "http://localhost/v1",
        "model": "m & n",
        "tasks": {"sorting": task},
        "failures": [{"task": "sorting", "prompt": EVIL, "sample": i, "what": "no answer", "why": f"status 50{i}"} for i in range(12)],
        "spent": {"completion_tokens": 1000, "prompt_tokens": 20, "cost": None},
        "settings": {"temperature": 1.0, "top_p": 0.9, "seed": 3, "samples": 2},
        "environment": {"torch": "2"},
    } | changes


def record(**changes) -> dict:
    return {"prompt": "p", "sample": 0, "completion": EVIL, "reward": 1.0, "error": "", "failure": ""} | changes


class Parsed(HTMLParser):
    def __init__(self, document: str):
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(document)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_says_it_all_and_escapes_it():
    found = Parsed(
        page(result(), [record(), record(reward=0.0), record(reward=None, failure="odd"), record(reward=None, error="late", completion="")])
    )
    assert "script" not in found.tags
    for words in ("m & n", "temperature 1, top-p 0.9, seed 3", "all 8 0.500 [0.250, 0.750] –", "<9> digits 8", "3 truncated", "baseline guess 0.125"):
        assert words in found.text
    for words in ("status 5011", EVIL, "reward 1", "unscored odd", "unscored late", "cost unknown", "torch"):
        assert words in found.text


def test_a_page_about_nothing_wrong():
    text = Parsed(page(result(failures=[]), [])).text
    assert "Every item was answered and judged." in text and "There are none." in text


def test_the_terminal_shows_all_metrics_of_a_task_and_the_first_of_a_difficulty():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal(result()))
    rows = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert rows[1:] == ["sorting avg@2 0.500 [0.250, 0.750] 8", "maj@2 – 0", "<9> digits avg@2 0.500 [0.250, 0.750] 8"]


def test_what_the_table_does_not_say():
    told = list(lines(result()))
    assert told[:3] == [
        "sorting, left out of 16 completions: 1 failed, 2 unscored",
        "sorting, baselines: guess 0.125",
        "20 prompt and 1,000 completion tokens, cost unknown: give --price, and the endpoint must tell tokens",
    ]
    assert told[3] == f"no answer: sorting, prompt {EVIL}, sample 0: status 500"
    assert len(told) == 14 and told[-1] == "... and 2 more, all in result.json"
    assert not any("tokens" in line for line in lines(result(model=None)))


def test_examples_are_spread_over_the_log(tmp_path):
    log = tmp_path / "items.jsonl"
    log.write_text("".join(json.dumps(record(completion=f"text {i}", prompt=f"p{i}")) + "\n" for i in range(1000)))
    found = Parsed(write_page(result(), log, tmp_path / "report.html").read_text())
    assert found.text.count("reward 1") == 1000 // 17 + 1 <= EXAMPLES and "text 0" in found.text and "text 986" in found.text
