"""The page, as a parser sees it; test_browser.py draws it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import tacit.report.page
from tacit.report import ReportError, verdicts, write_report
from tacit.report.html import fill, in_script
from tacit.report.page import plotly_source
from tacit.report.runs import MOST_TEXT

pytest.importorskip("plotly", reason="the page needs plotly: pip install 'tacit[report]'")

Make = Callable[..., Path]
INLINE = {"span", "b", "i", "small", "a"}
VOID = {"meta", "link", "input", "br", "img", "hr"}
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \u2028 ]]> <!--"


class Page(HTMLParser):
    """Checks that elements nest, and keeps tags, links, and the text inside each id."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")]
        if tag not in INLINE:
            self.handle_data(" ")
        if "id" in found:
            assert found["id"] not in self.texts, f"the id {found['id']} is there twice"
            self.texts[str(found["id"])] = ""
        if tag not in VOID:
            self.open.append((tag, str(found.get("id") or "")))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            if name:
                self.texts[name] += data

    @property
    def data(self) -> Any:
        return json.loads(self.texts["data"])

    def words(self, name: str) -> str:
        return " ".join(self.texts[name].split())


@pytest.fixture(autouse=True)
def _short_plotly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing megabytes of plotly.js shows nothing: only the browser gets it."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(tacit.report.page, "plotly_source", lambda: "/* plotly.js */")


def page(folders: list[Path], tmp_path: Path) -> Page:
    return Page(write_report(folders, tmp_path / "page.html"))


def test_one_run_in_full(rl_run: Path, tmp_path: Path) -> None:
    made = page([rl_run], tmp_path)
    assert {"result", "curves", "time", "health", "samples", "setup", "browser"} <= set(made.texts)
    assert made.outside == []
    for words in ("improved", "+32.6 points", "rose from 44.6% to 77.2%", "lookup baseline", "200 of 200", "1 needs attention"):
        assert words in made.words("result")
    for title in ("Reward and accuracy", "Completion length", "Entropy", "Divergence from the reference", "Gradient norm", "|Δ log-prob|"):
        assert title in made.words("curves")
    assert "Beyond at 5 of 200 steps, last at step 160." in made.words("health")
    assert "322 samples. Right is what the verifier rewarded with more than 0.5." in made.words("samples")
    assert "hidden: 64" in made.words("setup")
    assert "versions.torch" in made.words("setup")
    assert [run["name"] for run in made.data["runs"]] == ["sorting-grpo"]
    assert len(made.data["runs"][0]["samples"]) == 322
    assert set(made.data["charts"]) == {name.removeprefix("chart-") for name in made.texts if name.startswith("chart-main")}


def test_several_runs_are_compared(make_run: Make, reports: Any, tmp_path: Path) -> None:
    a = make_run("a", metrics=reports.rl_metrics(60), samples=reports.rl_samples(60), result=reports.rl_result())
    b = make_run("b", metrics=reports.rl_metrics(40, seed=2), result=reports.rl_result(0.446, 0.43), lr=1e-3)
    made = page([a, b], tmp_path)
    for words in ("+32.6 points", "−1.6 points", "a, before", "b, after", "lookup baseline"):
        assert words in made.words("result")
    assert "optimiser.lr 0.0002 0.001" in made.words("setup")
    assert "a, recipe" in made.words("setup")
    assert made.data["time"]["horizontal"]
    keys = {line["key"] for line in made.data["charts"]["main-0"]["lines"]}
    assert keys == {"a", "b"}


def test_runs_with_the_same_settings_say_so(make_run: Make, tmp_path: Path) -> None:
    config = "kind: rl\nseed: 0\n"
    assert "The settings are equal." in page([make_run("a", config=config), make_run("b", config=config)], tmp_path).words("setup")


def test_supervised_fine_tuning(make_run: Make, reports: Any, tmp_path: Path) -> None:
    config = reports.CONFIG.format(kind="sft", output="o", steps=100, lr=2e-3)
    made = page([make_run("warm", config=config, metrics=reports.sft_metrics(100), result={"metric": "pass@1", "after": 0.45})], tmp_path)
    assert "45.0%" in made.words("result")
    assert "Last loss" in made.words("result")
    assert [chart["title"] for chart in made.data["charts"].values()] == ["Loss", "Gradient norm", "Learning rate"]
    assert "No metric with a threshold was recorded." in made.words("health")


def test_an_encoder_shows_its_ranking_and_no_sections_of_rollouts(make_run: Make, tmp_path: Path) -> None:
    metrics = [{"step": 0, "eval/map": 0.4, "eval/documents_map": 0.3, "eval/questions_map": 0.5}, {"step": 1, "loss/train": 2.0, "eval/map": 0.6}]
    result = {"kind": "retrieval", "metric": "MAP", "after": 0.6, "measured": {"map": 0.6}}
    made = page([make_run(config="kind: retrieval\nseed: 0\n", metrics=metrics, result=result)], tmp_path)
    assert [chart["title"] for chart in made.data["charts"].values()] == ["Held-out MAP", "Loss"]
    assert "map 0.6" in made.words("measured") and not {"time", "health", "samples"} & set(made.texts)


@pytest.mark.parametrize("missing", ["config", "metrics", "samples", "all but the result"])
def test_what_is_missing_is_shown_as_absent(make_run: Make, reports: Any, tmp_path: Path, missing: str) -> None:
    files = {"config": "", "metrics": reports.rl_metrics(5), "samples": reports.rl_samples(5), "result": reports.rl_result() | {"examples": []}}
    files |= {"config": None, "metrics": None, "samples": None} if missing == "all but the result" else {missing: None}
    made = page([make_run(**files)], tmp_path)
    said = {
        "config": ("setup", "config.yaml is missing."),
        "metrics": ("curves", "No metrics were recorded: metrics.jsonl is missing or empty."),
        "samples": ("samples", "No samples were recorded: samples.jsonl is missing or empty."),
        "all but the result": ("time", "No stage times were recorded."),
    }[missing]
    assert said[1] in made.words(said[0])
    assert "+32.6 points" in made.words("result")


def test_a_run_without_a_step(make_run: Make, tmp_path: Path) -> None:
    made = page([make_run(metrics=[], samples=[])], tmp_path)
    assert "No verdict yet" in made.words("result")
    assert "0 of 200" in made.words("result")
    assert made.data["time"] is None
    assert "browser" not in made.texts


def test_held_out_completions_of_the_result_come_first_among_the_samples(make_run: Make, reports: Any, tmp_path: Path) -> None:
    examples = [{"prompt": "21=", "completion": "12", "answer": "12", "reward": 1.0, "parts": {"exact": 1.0}}, "odd"]
    made = page([make_run(samples=reports.rl_samples(10), result={"after": 0.5, "examples": examples}, metrics=[{"step": 7, "a": 1.0}])], tmp_path)
    first, second = made.data["runs"][0]["samples"][:2]
    assert (first["prompt"], first["role"], first["step"], first["verdict"]) == ("21=", "held out", 7, "right")
    assert second["role"] == "train"
    assert "17 samples." in made.words("samples")


def test_gaps_nan_and_odd_results_do_no_harm(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(
        metrics=[{"step": 0, "reward/mean": float("nan")}, {"step": 1, "reward/mean": 0.5, "x/y": None}, {"step": 2}],
        samples=[{"step": 0, "group": float("nan"), "prompt": "lone \ud800 surrogate", "reward": float("inf")}],
        result={"gain": "big", "examples": 3, "environment": [], "baselines": None, "seconds": "long", "metric": 7, "after": None},
    )
    made = page([folder], tmp_path)
    [chart] = made.data["charts"].values()
    assert chart["lines"][0]["y"] == [None, 0.5, None]
    assert "No verdict yet" in made.words("result")


def test_texts_of_a_run_cannot_become_markup(make_run: Make, reports: Any, tmp_path: Path) -> None:
    folder = make_run(
        "evil",
        config=f"kind: rl\noutput: {json.dumps(EVIL)}\ntask: {{name: {json.dumps(EVIL)}}}\nmodel: {{path: {json.dumps(EVIL)}}}\n",
        metrics=[{"step": 0, EVIL: 1.0, "reward/mean": 0.1, f"time/{EVIL}": 1.0}],
        samples=[{"step": 0, "prompt": EVIL, "completion": EVIL, "failure": EVIL, "role": EVIL, "reward": None, "parts": {EVIL: 1.0}}],
        result=reports.rl_result()
        | {"metric": EVIL, "baselines": {EVIL: 0.1}, "examples": [{"completion": EVIL, EVIL: EVIL}], "environment": {EVIL: EVIL}},
    )
    plain = page([make_run("plain", result=reports.rl_result(), metrics=[{"step": 0, "a/b": 1.0}], samples=reports.rl_samples(5))], tmp_path)
    made = page([folder], tmp_path)
    assert made.tags.count("script") == plain.tags.count("script") == 3
    assert made.tags.count("img") == 0
    assert [sample["completion"] for sample in made.data["runs"][0]["samples"]] == [EVIL, EVIL]
    both = page([folder, make_run("other")], tmp_path)
    assert both.tags.count("script") == 3


def test_many_samples_are_capped_and_it_says_so(make_run: Make, tmp_path: Path) -> None:
    samples = [{"step": step, "group": step, "prompt": "p" * 5000, "completion": "c", "reward": 1.0} for step in range(100) for _ in range(10)]
    made = page([make_run(samples=samples)], tmp_path)
    kept = len(made.data["runs"][0]["samples"])
    assert f"{kept:,} samples of 1,000 recorded; {1000 - kept:,} were left out, whole groups evenly over the run. Right is" in made.words("samples")
    assert kept % 10 == 0 and 2_000_000 < len(json.dumps(made.data["runs"])) < MOST_TEXT


def test_seeds_of_the_same_settings_are_one_arm(make_run: Make, reports: Any, tmp_path: Path) -> None:
    runs = []
    for seed in range(3):
        for arm, lr, lift in (("low", 1e-4, 0.2), ("high", 1e-3, 0.3)):
            config = reports.CONFIG.format(kind="rl", output=f"runs/{arm}-{seed}", steps=60, lr=lr).replace("seed: 0", f"seed: {seed}")
            result = reports.rl_result(0.4, 0.4 + lift + 0.01 * seed)
            runs.append(make_run(f"{arm}-{seed}", config=config, metrics=reports.rl_metrics(60, seed), result=result))
    made = page(runs, tmp_path)
    said = made.words("result")
    assert "low sorting 3 60 61.0% 58.5% to 63.5%" in said.replace("40.0% 40.0% to 40.0% ", "")
    assert "+10.0 points +10.0 to +10.0, paired over 3 seeds" in said
    assert "Lines are means over seeds" in made.words("curves")
    assert made.words("setup").startswith("Setup Settings that differ Setting low high optimiser.lr 0.0001 0.001 low-0, recipe")
    assert {line["key"] for line in made.data["charts"]["main-0"]["lines"]} == {"low", "high"}
    assert made.data["time"]["bars"][0]["x"] == ["low", "high"]
    assert "The settings are equal, seeds aside." in page(runs[::2], tmp_path).words("setup")


def test_a_long_run_stays_small(make_run: Make, reports: Any, tmp_path: Path) -> None:
    made = write_report([make_run(metrics=reports.rl_metrics(5000))], tmp_path / "page.html")
    empty = write_report([make_run("empty")], tmp_path / "empty.html")
    assert made.stat().st_size - empty.stat().st_size < 600_000


def test_notes_tell_what_could_not_be_read(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(metrics=[{"step": 0, "reward/mean": 0.1}])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "rew')
    assert "metrics.jsonl: line 2 is not a whole JSON object" in page([folder], tmp_path).words("result")
    assert "run: metrics.jsonl: line 2" in page([folder, make_run("other")], tmp_path).words("result")


def test_verdicts_are_lines(rl_run: Path) -> None:
    [line] = verdicts([rl_run])
    assert line.startswith("sorting-grpo: +32.6 points. Held-out sampled pass@1 rose from 44.6% to 77.2%;")


def test_without_plotly_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ReportError, match=r"a report needs plotly, which is not installed; install it with: pip install 'tacit\[report\]'"):
        plotly_source()


def test_plotly_is_put_into_the_page(rl_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tacit.report.page, "plotly_source", plotly_source)
    text = write_report([rl_run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "plotly.js v" in text
    assert text.count("</script>") == 3


def test_filling_in_looks_at_nothing_twice() -> None:
    assert fill("{{a}}-{{b}}", a="{{b}}", b=r"\1 {{a}}") == r"{{b}}-\1 {{a}}"


def test_json_in_a_script_comes_back_as_it_was() -> None:
    text = in_script({"x": EVIL})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"x": EVIL}
