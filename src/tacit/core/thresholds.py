"""The thresholds beyond which a metric deserves attention. Plain data, so that a report reads them without loading a tensor library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Threshold:
    """A metric is in order while low <= value <= high; `advice` says what to look at when it is not."""

    low: float
    high: float
    advice: str


INF = float("inf")
THRESHOLDS: dict[str, Threshold] = {
    "health/logp_gap": Threshold(0, 0.01, "trainer and sampler disagree right after a sync: check precision, temperature and weight sync"),
    "health/constant_groups": Threshold(0, 0.9, "almost no group has both right and wrong answers: the task is too easy or too hard for this policy"),
    "health/truncated": Threshold(0, 0.3, "many completions hit the length limit: raise sampling.max_new_tokens, or check that EOS is ever emitted"),
    "health/unscored": Threshold(0, 0.02, "the reward function failed on some completions: their reasons are in samples.jsonl"),
    "health/nonfinite": Threshold(0, 0, "some log-probs are not finite: lower the learning rate or use fp32"),
    "health/skipped_steps": Threshold(0, 0, "a gradient was not finite and its step was skipped: lower the learning rate or use fp32"),
    "health/clip_fraction": Threshold(0, 0.3, "the clip range stops many tokens: fewer epochs or a lower learning rate"),
    "health/entropy": Threshold(0.005, INF, "the policy hardly explores any more: its groups will soon be constant"),
    "health/effective_sample_size": Threshold(0.5, 1.001, "importance weights rest on few tokens: stale data, or a sampler unlike the trainer"),
}


def alarms(metrics: dict[str, float]) -> dict[str, str]:
    """Metric -> sentence, for every metric beyond its threshold, whichever agent or update it belongs to."""
    found = {}
    for name, value in metrics.items():
        limit = THRESHOLDS.get(name[max(0, name.find("health/")) :])
        if limit is not None and not limit.low <= value <= limit.high:
            bound = f"at most {limit.high:g}" if value > limit.high else f"at least {limit.low:g}"
            found[name] = f"{name} is {value:.4g}, expected {bound}: {limit.advice}"
    return found
