"""The page in a real browser: nothing on its console, drawn, filtered and reached by keyboard, on a laptop, a phone and in the dark."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tacit.report import write_report

pytest.importorskip("plotly", reason="the page needs plotly: pip install 'tacit[report]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install 'tacit[browser]'")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")]

Make = Callable[..., Path]
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
PAINTED = "performance.getEntriesByType('paint').find(entry => entry.name === 'first-contentful-paint')?.startTime"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """visit(path, width=..., scheme=...): the page, opened. At the end its console must be empty."""
    told: list[str] = []
    pages = []

    def opened(path: Path, *, width: int = 1280, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert told == []


def shaded(sample: dict[str, Any]) -> dict[str, Any]:
    """With a token a character, of ever lower probability."""
    tokens = [*sample["completion"], ""]
    return sample | {"tokens": tokens, "logps": [-n / 2 for n in range(len(tokens))]}


@pytest.fixture
def report(make_run: Make, reports: Any, tmp_path: Path) -> Callable[[int], Path]:
    def write(number: int) -> Path:
        evil = reports.sample(0, 9, 0) | {"prompt": EVIL}
        runs = [
            make_run(name, metrics=reports.rl_metrics(60, seed), samples=[*map(shaded, reports.rl_samples(60)), evil], result=reports.rl_result())
            for seed, name in enumerate("ab"[:number])
        ]
        return write_report(runs, tmp_path / "page.html")

    return write


@pytest.mark.parametrize("number", [1, 2])
def test_every_chart_is_drawn_when_it_is_seen(report: Callable[[int], Path], visit: Any, number: int) -> None:
    page = visit(report(number))
    assert page.locator(".js-plotly-plot").count() < page.locator(".chart").count(), "what cannot be seen is not drawn yet"
    page.evaluate("document.getElementById('others').open = true")
    charts = page.locator(".chart")
    for n in range(charts.count()):
        charts.nth(n).scroll_into_view_if_needed()
        page.wait_for_function("n => document.querySelectorAll('.chart')[n].classList.contains('js-plotly-plot')", arg=n)
    assert page.title() != "owned"
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_screen(report: Callable[[int], Path], visit: Any, number: int, width: int, scheme: str) -> None:
    page = visit(report(number), width=width, scheme=scheme)
    page.locator(".sample > summary").first.click()
    assert page.evaluate(OVERFLOW) <= 0
    red, *_ = map(int, page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").removesuffix(")").split(","))
    assert (red < 60) == (scheme == "dark")


def test_samples_are_filtered_sorted_and_searched(report: Callable[[int], Path], visit: Any) -> None:
    page = visit(report(2))
    pills = page.locator(".sample .pill")
    for verdict in ("right", "wrong", "unscored"):
        page.locator(f"input[value={verdict}]").check()
        assert set(pills.all_text_contents()) == {verdict}
    page.locator("input[value=all]").check()
    for order, verdict in (("highest reward", "right"), ("lowest reward", "wrong")):
        page.locator("select[name=order]").select_option(order)
        assert pills.first.text_content() == verdict
    page.locator("select[name=run]").select_option("b")
    assert all(meta.startswith("b · ") for meta in page.locator(".sample .meta").all_text_contents())
    page.locator("input[name=words]").fill("onerror")
    assert page.locator(".count").text_content().startswith("1 of ")
    page.locator("input[name=words]").fill("nobody wrote this")
    assert page.locator(".list").text_content() == "No sample is like that."


def test_tokens_are_shaded_by_their_log_probs(report: Callable[[int], Path], visit: Any) -> None:
    page = visit(report(1))
    page.locator("select[name=order]").select_option("least likely")
    page.locator(".sample > summary").first.click()
    tokens = page.locator(".tokens").first.locator("span")
    assert [tokens.nth(n).get_attribute("class") for n in range(8)] == ["p0", "p1", "p2", "p2", "p3", "p3", "p4", "silent p4"]
    assert tokens.nth(2).get_attribute("title") == "token 3: p = 0.37, log-prob -1"
    assert tokens.last.text_content() == "∎"


def test_the_keyboard_reaches_filters_and_samples(report: Callable[[int], Path], visit: Any) -> None:
    page = visit(report(2))
    focused = "document.activeElement.tagName + '.' + (document.activeElement.name || document.activeElement.className)"
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
        if reached[-1].startswith("SUMMARY") and page.evaluate("document.activeElement.parentElement.className") == "sample":
            break
    assert reached[0] == "A.skip", "the first stop skips the navigation"
    assert {"INPUT.verdict", "SELECT.run", "SELECT.order", "INPUT.words"} <= set(reached)
    page.keyboard.press("Enter")
    assert page.locator("details.sample[open]").count() == 1
    page.keyboard.press("ArrowDown")
    assert page.evaluate("[...document.querySelectorAll('.sample')].indexOf(document.activeElement.parentElement)") == 1


def test_five_runs_of_300_steps_and_2000_samples(make_run: Make, reports: Any, tmp_path: Path, visit: Any) -> None:
    """Built in 5 s, at most 8 MB, painted within 2 s, and filtered without a wait that anybody would notice."""
    chance = random.Random(0)

    def samples() -> Iterator[dict[str, Any]]:
        for n in range(2000):
            sample = reports.sample(n * 300 // 2000, n // 8, n % 8, [True, False, True, None][n % 4])
            words = " ".join(chance.choice(("first", "then", "so", "the digits", "are", "sorted")) for _ in range(40))
            tokens = [f"{word} " for word in words.split(" ")]
            yield sample | {"completion": "".join(tokens), "tokens": [*tokens, ""], "logps": [-chance.expovariate(1) for _ in range(len(tokens) + 1)]}

    runs = []
    for n, (arm, lr, seed) in enumerate([("a", 1e-4, 0), ("a", 1e-4, 1), ("a", 1e-4, 2), ("b", 1e-3, 0), ("b", 1e-3, 1)]):
        config = reports.CONFIG.format(kind="rl", output=f"runs/{arm}-{seed}", steps=300, lr=lr).replace("seed: 0", f"seed: {seed}")
        runs.append(make_run(f"{arm}-{seed}", config=config, metrics=reports.rl_metrics(300, n), samples=samples(), result=reports.rl_result()))
    start = time.monotonic()
    path = write_report(runs, tmp_path / "page.html")
    assert time.monotonic() - start <= 5
    assert path.stat().st_size <= 8e6
    page = visit(path)
    assert page.evaluate(PAINTED) <= 2000
    took = page.evaluate(
        """() => { const start = performance.now(); const words = document.querySelector("input[name=words]");
        words.value = "sorted the digits"; words.form.dispatchEvent(new Event("input")); return performance.now() - start; }"""
    )
    assert took <= 200, f"a key press in the search took {took:.0f} ms"
