"""`tacit route`: decide about a document, evaluate routers on a recorded table, calibrate one. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ContextDecorator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.routing.decision import Decision, Metadata, Router
    from tacit.routing.evaluation import Policy
    from tacit.routing.fitting import Fit
    from tacit.routing.table import Record

app = typer.Typer(help="Decide between retrieval (RAG) and long context before anything is retrieved.", no_args_is_help=True)
LARA = "lara"  # the name of a table that is read from LaRA's recorded answers
FITTED = ("learned", "tree", "forest")  # fitted by evaluate itself, on the other documents of each fold
ROUTERS = "bundled, rules, keywords, or the .json file that calibrate wrote"
Key = Annotated[str, typer.Option("--key-env", metavar="NAME", help="Environment variable with the API key of the endpoint.")]


def add_to(parent: typer.Typer, guard: Callable[[], ContextDecorator]) -> None:
    """Puts `route` below `parent`; `guard` turns mistakes of the user into sentences, as everywhere on this command line."""

    for command in (decide, evaluate, calibrate, elicit):
        app.command(command.__name__)(guard()(command))
    parent.add_typer(app, name="route")


def decide(
    document: Annotated[Path, typer.Argument(metavar="DOCUMENT", help="Text, Markdown, HTML or PDF.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What will be asked about it.", show_default=False)],
    router: Annotated[str, typer.Option(help=f"{ROUTERS}; with --endpoint: the model there.")] = "bundled",
    answerer: Annotated[str, typer.Option(metavar="NAME", help="Model that will answer, such as gpt-4o.")] = "unknown",
    strength: Annotated[str, typer.Option(help="How well it uses a long input: weak, medium, strong, unknown.")] = "unknown",
    window: Annotated[int | None, typer.Option(min=1, help="Its context window in tokens.", show_default="taken to suffice")] = None,
    chunk_size: Annotated[int, typer.Option(min=1, help="Tokens of a passage.")] = 600,
    chunks: Annotated[int, typer.Option(min=1, help="Passages that retrieval hands over.")] = 5,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="OpenAI-compatible endpoint: an LLM decides, in one call.")] = None,
    key_env: Key = "OPENAI_API_KEY",
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="Price of a million prompt and completion tokens.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps replies of the endpoint.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The decision with its trace, as one JSON object.")] = False,
) -> None:
    """Say how a question about a document should be answered, and why. Reads the document's length, title, type and first 200 tokens."""
    from tacit.routing.decision import Setting
    from tacit.routing.documents import describe, outline

    if strength not in ("weak", "medium", "strong", "unknown"):
        raise ValueError(f"--strength is weak, medium, strong or unknown, not {strength!r}")
    setting = Setting(answerer, strength, window, chunk_size=chunk_size, chunks=chunks)
    metadata = describe(question, outline(document), setting=setting)
    if endpoint is not None:
        found = _ask(metadata, endpoint, router, os.environ.get(key_env), _price(price), cache)
    else:
        found = router_named(router).decide(metadata)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
        return
    for line in told(metadata, found):
        print(line)


def told(metadata: Metadata, found: Decision) -> list[str]:
    """A decision for people."""
    rag, lc = metadata.costs()
    return [
        f"{found.route.value}  (by {found.by}, confidence {found.confidence:.2f})",
        f"Document: {metadata.doc_title!r}, {metadata.doc_tokens:,} tokens, type {metadata.doc_type}.",
        *(f"- {reason}" for reason in found.reasons),
        *_account(found),
        f"Expected cost: {found.expected_cost:,.0f} input tokens; RAG would take {rag:,.0f}, long context {lc:,.0f}.",
    ]


def _account(found: Decision) -> list[str]:
    """What an LLM's decision took, as far as the endpoint tells."""
    if found.trace.get("prompt_tokens") is None:
        return []
    cost = "" if found.trace["cost"] is None else f", cost {found.trace['cost']:.4g}"
    saved = " (from the cache)" if found.trace["cached"] else ""
    return [f"The decision took {found.trace['prompt_tokens']:,} + {found.trace['completion_tokens'] or 0:,} tokens{cost}{saved}."]


def evaluate(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"JSON lines with both routes' scores, or {LARA}.", show_default=False)],
    router: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FITTED)}, {ROUTERS}; repeat it for several.", show_default="rules and learned")
    ] = None,
    answerer: Annotated[list[str] | None, typer.Option(help="Only this answerer; repeat it for several.", show_default="all")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for result.json and report.html.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of folds and bootstrap.")] = 0,
) -> None:
    """Compare routers on recorded answers: quality, cost, regret, with intervals by document. learned, tree and forest are fitted on the other
    documents of each fold."""
    from tacit.routing.evaluation import NOTE
    from tacit.routing.evaluation import evaluate as measured
    from tacit.routing.fitting import fit

    records = _records(table, answerer)
    names = router or ["rules", "learned"]
    refuse_fitted_on(table, names)
    held = held_out(records, fit, seed) if "learned" in names else {}
    result = measured(records, lambda mine: policies(names, mine, held, seed), seed=seed)
    for line in summary(result):
        print(line)
    print(NOTE)
    if output is not None:
        from tacit.routing.page import write_page

        output.mkdir(parents=True, exist_ok=True)
        (output / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"Report: {write_page(result, output / 'report.html')}")


def policies(names: Sequence[str], mine: Sequence[Record], held: Mapping[tuple[str, str], Decision], seed: int) -> list[Policy]:
    """What each router does with the records of one answerer. What is fitted here decides out of fold: "learned", which serves all answerers and
    whose decisions are `held`, and tree and forest, which serve this one."""
    from tacit.routing.evaluation import play, policy_of
    from tacit.routing.fitting import fit_forest, fit_tree

    found = []
    for name in names:
        if name in FITTED:
            decisions = held if name == "learned" else held_out(mine, fit_tree if name == "tree" else fit_forest, seed)
            found.append(policy_of(name, [decisions[r.answer_model, r.qid] for r in mine]))
        else:
            found.append(play(router_named(name), mine))
    return found


def refuse_fitted_on(table: str, names: Sequence[str]) -> None:
    """A router is not shown the table it was fitted on: raises ValueError."""
    from tacit.routing.learned import LearnedRouter

    for name in names:
        router = None if name in FITTED else router_named(name)
        if isinstance(router, LearnedRouter) and router.coefficients.fitted_on.partition(",")[0].lower() == table.lower():
            raise ValueError(f"the router {name!r} was fitted on {table}: evaluate 'learned', which is fitted on the other documents of each fold")


def held_out(records: Sequence[Record], fitter: Fit, seed: int) -> dict[tuple[str, str], Decision]:
    """Decisions by answerer and question, of routers fitted on the other documents."""
    from tacit.routing.fitting import out_of_fold

    return {(r.answer_model, r.qid): d for r, d in zip(records, out_of_fold(records, fitter, seed=seed))}


def calibrate(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"JSON lines with both routes' scores, or {LARA}.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the router, for --router of the other commands.")] = Path("router.json"),
    price: Annotated[float, typer.Option(min=0, help="Score that long context must gain to be worth its cost.")] = 0.03,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
) -> None:
    """Fit weights and thresholds on recorded answers, and say what they achieve on documents that were held out."""
    from functools import partial

    from tacit.routing.evaluation import evaluate as measured
    from tacit.routing.fitting import fit

    records = _records(table, None)
    fitter = partial(fit, told=table, price=price)
    router = fitter(records)
    held = held_out(records, fitter, seed)
    result = measured(records, lambda mine: policies(["learned"], mine, held, seed), seed=seed)
    for line in summary(result):
        print(line)
    router.save(output)
    print(f"Router: {output}, fitted on all {len(records)} records; the line 'learned' above is of routers fitted on other documents.")


def elicit(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"JSON lines with both routes' scores, or {LARA}.", show_default=False)],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint.", show_default=False)],
    router: Annotated[str, typer.Option(metavar="NAME", help="Model there.", show_default=False)],
    answerer: Annotated[str | None, typer.Option(help="Whose ideal routes to compare with.", show_default="the first")] = None,
    questions: Annotated[int, typer.Option(min=1, help="How many, spread evenly over the table.")] = 50,
    draws: Annotated[int, typer.Option("--draws", "-n", min=1, help="Samples of each prompt.")] = 8,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    key_env: Key = "OPENAI_API_KEY",
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps replies of the endpoint.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for elicit.json and elicit.html.")] = None,
) -> None:
    """Sample a router model with the direct, the free and the guideline prompt: any of N right, beside coins, and the majority."""
    import asyncio

    from tacit.clients.endpoint import Endpoint
    from tacit.routing.decision import hard_rule
    from tacit.routing.elicit import STYLES
    from tacit.routing.elicit import elicit as sampled
    from tacit.routing.llm import LLMRouter

    records = _records(table, [answerer] if answerer else None)
    open_ = [r for r in records if r.answer_model == records[0].answer_model and hard_rule(r.metadata()) is None]
    if not open_:
        raise ValueError(f"hard rules decide every question of {table}; there is nothing to ask a model")
    count = min(questions, len(open_))
    asked = [open_[i * len(open_) // count] for i in range(count)]
    print(f"{len(asked)} questions x {draws} draws x {len(STYLES)} prompts: up to {len(asked) * draws * len(STYLES)} calls")

    async def run() -> dict[str, Any]:
        async with Endpoint(endpoint, router, key=os.environ.get(key_env), cache=cache) as at:
            routers = [LLMRouter(at, style) for style in STYLES]
            return await sampled(routers, [r.metadata() for r in asked], [r.lc_score > r.rag_score for r in asked], draws, temperature)

    result = asyncio.run(run())
    for line in elicited(result):
        print(line)
    if output is not None:
        from tacit.routing.page import write_elicitation

        output.mkdir(parents=True, exist_ok=True)
        (output / "elicit.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"Report: {write_elicitation(result, output / 'elicit.html')}")


def elicited(result: dict[str, Any]) -> list[str]:
    """A block for each prompt style, a column for each N."""
    shown = [n for n in range(1, result["draws"] + 1) if n & (n - 1) == 0 or n == result["draws"]]
    rate = result["ideal_lc_rate"]
    lines = [f"Long context is ideal for {rate:.0%}: always RAG is right on {1 - rate:.3f}."]
    lines.append(f"{'N':<22}" + "".join(f"{n:>8}" for n in shown))
    for style, told in result["styles"].items():
        for key, name in (("any_of", "any of N"), ("coin", "coins"), ("majority", "majority")):
            lines.append(f"{f'{style}, {name}':<22}" + "".join(f"{told[key][n - 1]:>8.3f}" for n in shown))
        if told["without_route"]:
            lines.append(f"{style}: {told['without_route']} of {told['replies']} replies named no route and count as RAG")
    return lines


def summary(result: dict[str, Any]) -> list[str]:
    """A table for each answerer. Gains are over always RAG and over chance at the same LC rate; cost is a share of that of always LC."""
    lines = []
    for name, found in result["answerers"].items():
        lines.append(f"{name}: {found['questions']} questions, {found['documents']} documents")
        heads = "".join(f"{head:>26}" for head in ("score [95 %]", "over RAG [95 %]", "over chance [95 %]"))
        lines.append(f"  {'router':<16}{heads}{'LC rate':>9}{'cost':>8}{'route acc.':>12}{'regret':>8}")
        for policy, told in found["policies"].items():
            score = told["score"]
            gains = "".join(f"{f'{mean:+.3f} [{low:+.3f}, {high:+.3f}]':>26}" for mean, low, high in (told["over_rag"], told["over_random"]))
            cost = "–" if told["cost_ratio"] is None else f"{told['cost_ratio']:.2f}"
            lines.append(
                f"  {policy:<16}{f'{score[0]:.3f} [{score[1]:.3f}, {score[2]:.3f}]':>26}{gains}"
                f"{told['lc_rate']:>9.2f}{cost:>8}{told['route_accuracy']:>12.3f}{told['regret']:>8.3f}"
            )
        for c in found["comparisons"]:
            d = c["difference"]
            lines.append(f"  {c['a']} - {c['b']}: {d[0]:+.3f} [{d[1]:+.3f}, {d[2]:+.3f}], p {c['p']:.4f}")
    return lines


def router_named(name: str) -> Router:
    """A router that needs no table. Raises ValueError for a name that is none."""
    from tacit.routing.baselines import Always, Keywords
    from tacit.routing.learned import LearnedRouter
    from tacit.routing.rules import RuleRouter

    known: dict[str, Callable[[], Router]] = {
        "bundled": LearnedRouter.load,
        "rules": RuleRouter,
        "keywords": Keywords,
        "always-rag": lambda: Always(False),
        "always-lc": lambda: Always(True),
    }
    if name in known:
        return known[name]()
    if name.endswith(".json"):
        return LearnedRouter.load(name)
    raise ValueError(
        f"no router is called {name!r}; there are {', '.join(known)}, for evaluate {', '.join(FITTED)}, and .json files of `tacit route calibrate`"
    )


def _records(table: str, answerers: Sequence[str] | None) -> list[Record]:
    from tacit.routing.lara import tables
    from tacit.routing.table import read_table

    records = [r for rows in tables().values() for r in rows] if table == LARA else read_table(table)
    known = list(dict.fromkeys(r.answer_model for r in records))
    if unknown := [name for name in answerers or () if name not in known]:
        raise ValueError(f"{table} has no answerer {unknown[0]!r}, only {', '.join(known)}")
    return [r for r in records if not answerers or r.answer_model in answerers]


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        prompt, completion = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--price is two numbers, of a million prompt and completion tokens, such as 0.15,0.6; not {text!r}") from None
    return prompt, completion


def _ask(metadata: Metadata, url: str, model: str, key: str | None, price: tuple[float, float] | None, cache: Path | None) -> Decision:
    import asyncio

    from tacit.clients.endpoint import Endpoint
    from tacit.routing.llm import LLMRouter

    async def one() -> Decision:
        async with Endpoint(url, model, key=key, prices={model: price} if price else None, cache=cache) as endpoint:
            return await LLMRouter(endpoint).ask(metadata)

    if model == "bundled":
        raise ValueError("--endpoint needs the name of the model there: add --router NAME")
    return asyncio.run(one())
