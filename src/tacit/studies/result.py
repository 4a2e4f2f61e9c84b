"""result.json: claims with verdicts, properties, what was measured, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tacit.studies.records import Cell, Record, cells
from tacit.studies.runner import environments
from tacit.studies.study import Measured, Plan, Study
from tacit.studies.verdicts import judged

Values = dict[str, dict[int, Measured]]


def result(study: Study, preset: str, plan: Plan, records: Mapping[Cell, Record], failed: Mapping[Cell, str]) -> dict[str, Any]:
    """The content of result.json. It depends on the records alone: how often the study was stopped leaves no trace."""
    values = by_arm(plan, records)
    numbers = {arm: {seed: found.numbers for seed, found in seeds.items()} for arm, seeds in values.items()}
    properties = []
    for p in plan.properties:
        value, holds = p.test(numbers) or (None, None)
        properties.append({"id": p.id, "statement": p.statement, "holds": holds, "value": value, "tolerance": p.tolerance})
    environment = environments(records)
    return {
        "study": study.name,
        "preset": preset,
        "title": study.title,
        "environment": environment,
        "flags": flags(environment),
        "claims": judged(plan.claims, values),
        "properties": properties,
        "measurements": {arm: summary(seeds, study.tells) for arm, seeds in values.items()},
        "settings": {arm.name: {"after": arm.after, **arm.settings} for arm in plan.arms},
        "missing": [{"arm": c.arm, "seed": c.seed, "why": failed.get(c, "not measured yet")} for c in cells(plan) if c not in records],
        "seconds": sum(record.seconds for record in records.values()),
    }


def by_arm(plan: Plan, records: Mapping[Cell, Record]) -> Values:
    found: Values = {arm.name: {} for arm in plan.arms}
    for cell, record in records.items():
        found[cell.arm][cell.seed] = record.measured
    return found


def summary(seeds: Mapping[int, Measured], tells: Callable[[str], bool]) -> dict[str, Any]:
    """By metric its value for every seed; lists over items by their mean."""
    metrics = dict.fromkeys(name for found in seeds.values() for name in found.numbers if tells(name))
    return {"seeds": list(seeds)} | {m: [mean(found.numbers.get(m)) for found in seeds.values()] for m in metrics}


def mean(value: float | list[float] | list[float | None] | None) -> float | None:
    """Of items that count the mean, to six digits: a study of many arms has ten thousands of them."""
    if not isinstance(value, list):
        return value
    counted = [one for one in value if one is not None]
    return round(sum(counted) / len(counted), 6) if counted else None


def flags(environment: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the numbers: records of different code or machines, or of code that nobody can check out."""
    said = []
    commits = environment.get("commit")
    if isinstance(commits, Mapping):
        said.append("records come from different commits: " + ", ".join(f"{n} of {c}" for c, n in commits.items()))
    if any(str(c).endswith("+") for c in (commits if isinstance(commits, Mapping) else [commits])):
        said.append("the working copy had changes that were not committed")
    said += [f"records differ in {key}" for key in ("torch", "transformers", "device") if isinstance(environment.get(key), Mapping)]
    return said


def lines(result: Mapping[str, Any]) -> list[str]:
    """What the terminal says: a line for every claim and property, whatever the verdict."""
    said = [f"flag: {flag}" for flag in result["flags"]]
    for claim in result["claims"]:
        found = claim["contrast"]
        numbers = "no pair measured"
        if "ci95" in found:
            low, high = found["ci95"]
            numbers = f"{found['mean_diff']:+.4g} (95 % {low:+.4g} to {high:+.4g}, p {found['p']:.2g}, Holm {found['p_holm']:.2g}, n {found['n']})"
        numbers += "".join(f"; {told}" for told in beside(claim))
        said.append(f"{claim['verdict']:>12}  {claim['id']}: {claim['statement']}. {claim['metric']}, {found['a']} - {found['b']}: {numbers}")
    for p in result["properties"]:
        word = "not measured" if p["holds"] is None else "holds" if p["holds"] else "fails"
        said.append(f"{word:>12}  {p['id']}: {p['statement']}" + ("" if p["value"] is None else f": {p['value']:.4g}"))
    if result["missing"]:
        said.append(f"missing: {len(result['missing'])} cells")
    return said


def beside(claim: Mapping[str, Any]) -> list[str]:
    """What is told with a claim: "snr of clean/cbs 0.0276"."""
    return [f"{metric} of {arm} {value:.3g}" for metric, arms in claim.get("beside", {}).items() for arm, value in arms.items()]
