"""What a run achieved, in a number and a sentence, from its result.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from tacit.report.runs import Run, finite

Tone = Literal["good", "bad", "open", "none"]


class Estimate(NamedTuple):
    """A mean and, where known, its 95% interval (low, high)."""

    mean: float
    interval: tuple[float, float] | None = None


class Verdict(NamedTuple):
    """`tone`: the interval of the gain lies above 0, below 0, around 0; or there is no gain to speak of."""

    tone: Tone
    headline: str
    sentence: str


def verdict(run: Run) -> Verdict:
    before, after, gain = (estimate(run, name) for name in ("before", "after", "gain"))
    show, name = shower(run), metric_name(run)
    names = baselines(run)
    beside = f" Baseline{'s' * (len(names) > 1)}: {', '.join(f'{name} {show(value)}' for name, value in names.items())}." if names else ""
    if gain is None and after is not None:
        span = ", with a 95% interval from {} to {}".format(*map(show, after.interval)) if after.interval else ""
        return Verdict("none", show(after.mean), f"{name} {show(after.mean)}{span}{measured(run)}.{beside}")
    if gain is None:
        return Verdict("none", "No verdict yet", so_far(run))
    moved = "rose" if gain.mean > 0 else "fell" if gain.mean < 0 else "did not move"
    course = (f" from {show(before.mean)}" + (f" to {show(after.mean)}" if gain.mean else "")) if before and after else ""
    tone, certainty = certain(run, gain)
    return Verdict(tone, signed(run, gain.mean, unit=True), f"{name} {moved}{course}; {certainty}{measured(run)}.{beside}")


def certain(run: Run, gain: Estimate) -> tuple[Tone, str]:
    """What the interval of a gain allows to say."""
    if gain.interval is None:
        return "open", "the interval of the gain is not known"
    low, high = gain.interval
    tone: Tone = "good" if low > 0 else "bad" if high < 0 else "open"
    sentence = f"the 95% interval of the gain is {signed(run, low)} to {signed(run, high, unit=True)}"
    return tone, sentence + (", which includes no change" if tone == "open" else "")


def so_far(run: Run) -> str:
    """What to say without a result."""
    if not run.steps:
        return "No step has been recorded and there is no result.json."
    reward, loss = run.last("reward/mean"), run.last("loss/train")
    last = f" Last reward: {reward:.3f}." if reward is not None else f" Last loss: {loss:.4f}." if loss is not None else ""
    return f"There is no result.json with an evaluation yet.{last}"


def measured(run: Run) -> str:
    """' (512 prompts, 4 samples each)'."""
    prompts, samples = ((run.result or {}).get(name) for name in ("prompts", "samples"))
    if not isinstance(prompts, int):
        return ""
    return f" ({prompts:,} prompts" + (f", {samples:,} samples each)" if isinstance(samples, int) and samples > 1 else ")")


def estimate(run: Run, name: str) -> Estimate | None:
    """`before`, `after` or `gain` of the result; None when it has no number there."""
    entry = (run.result or {}).get(name)
    entry = entry if isinstance(entry, dict) else {"mean": entry}
    mean, low, high = (finite(entry.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return None
    return Estimate(mean, None if low is None or high is None else (low, high))


def baselines(run: Run) -> dict[str, float]:
    entry = (run.result or {}).get("baselines")
    entries = entry.items() if isinstance(entry, dict) else ()
    return {str(name): number for name, value in entries if (number := finite(value)) is not None}


def metric_name(run: Run) -> str:
    """The name of what was measured, which is always measured on held-out prompts."""
    name = str((run.result or {}).get("metric") or "metric")
    name = name if "held" in name.lower() else f"held-out {name}"
    return name[0].upper() + name[1:]


def is_fraction(run: Run) -> bool:
    """Whether the metric is a share, to be shown in percent."""
    found = [e.mean for e in (estimate(run, "before"), estimate(run, "after")) if e is not None]
    return bool(found) and all(0 <= x <= 1 for x in found) and "loss" not in metric_name(run).lower()


def shower(run: Run) -> Callable[[float], str]:
    """The function that shows a value of the run's metric."""
    return (lambda value: f"{100 * value:.1f}%") if is_fraction(run) else (lambda value: f"{value:.4g}")


def signed(run: Run, difference: float, *, unit: bool = False) -> str:
    """A difference with its sign, in percentage points if the metric is a share."""
    if not is_fraction(run):
        return f"{difference:+.4g}".replace("-", "−")
    return f"{100 * difference:+.1f}".replace("-", "−") + (" points" if unit else "")
