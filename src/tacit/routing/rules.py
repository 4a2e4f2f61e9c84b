"""The six steps and the decision rules of Pre-Route as plain arithmetic on metadata: no model, each step and each rule removable.

Source of the steps and of the rule that ties go to RAG: digests of 2605.10235. How a step is computed, its weights and the other rules are
[inferred]; what an ablation of this router shows is about this router, not about an LLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import exp

from tacit.routing import cues
from tacit.routing.decision import Decision, Metadata, decision, hard_rule

LONG = 65_536  # tokens from which on position begins to matter to most models
DEAR = 10  # long context is dear when it costs this many times as much as retrieval

Finding = tuple[str, float, str]  # conclusion, expected gain of long context, why


def task(m: Metadata) -> Finding:
    """Step 1, what kind of question and document."""
    if word := cues.found(cues.WHOLE, m.question):
        return "summary", 1.0, f"'{word}' asks for change or the whole"
    if word := cues.found(cues.COMPARES, m.question):
        return "comparison", 1.0, f"'{word}' compares"
    if word := cues.found(cues.EXPLAINS, m.question):
        return "reasoning", 0.0, f"'{word}' asks for reasons"
    if word := cues.found(cues.LOOKS_UP, m.question):
        return "lookup", -1.0, f"'{word}' looks something up"
    return "other", 0.0, "no wording tells"


def distribution(m: Metadata) -> Finding:
    """Step 2, where the evidence is likely to be."""
    if word := cues.found(cues.ABSENT, m.question):
        return "absent", -1.0, f"'{word}' asks for what documents seldom tell"
    if cues.found(cues.SEVERAL, m.question):
        return "dispersed", 1.0, "it names several documents"
    kind = task(m)[0]
    if kind == "summary":
        return "dispersed", 1.0, "such questions draw on the whole"
    if kind == "comparison":
        return "fragmented", 0.5, "such questions draw on two places"
    return "localised", -0.5, "nothing points to more than one place"


def window(m: Metadata) -> Finding:
    """Step 3, whether the document fits well, beyond the hard limit."""
    if m.doc_tokens > LONG:
        return "long", -0.5, f"{m.doc_tokens:,} tokens are long for any model"
    return "fits", 0.5, f"{m.doc_tokens:,} tokens fit well"


def retrieval(m: Metadata) -> Finding:
    """Step 4, whether words of the question can find the evidence."""
    if cues.NAMES.search(m.question) or cues.NUMBERED.search(m.question):
        return "high", -0.5, "names or numbers to search for"
    return "medium", 0.0, "no name or number to search for"


def capability(m: Metadata) -> Finding:
    """Step 5, how well the answerer uses a long input."""
    gain = {"weak": -1.0, "medium": 0.0, "strong": 0.5}.get(m.setting.strength, 0.0)
    return m.setting.strength, gain, f"the answerer's strength is {m.setting.strength}"


def efficiency(m: Metadata) -> Finding:
    """Step 6, what long context costs in addition."""
    rag, lc = m.costs()
    return ("dear", -0.5, f"it costs {lc / rag:.0f} times as much") if lc > DEAR * rag else ("cheap", 0.0, f"it costs {lc / rag:.1f} times as much")


STEPS: dict[str, Callable[[Metadata], Finding]] = {step.__name__: step for step in (task, distribution, window, retrieval, capability, efficiency)}
VETOES: dict[str, tuple[Callable[[Metadata], bool], str]] = {
    "weak answerer": (lambda m: m.setting.strength == "weak", "a weak answerer needs a short context"),
    "absent evidence": (lambda m: distribution(m)[0] == "absent", "where evidence is probably absent, a short context refuses more safely"),
    "lookup": (lambda m: task(m)[0] == "lookup", "what is localised is found by retrieval"),
}
TIE = "clear advantage"
RULES = (TIE, *VETOES)
MARGIN = 0.75  # what counts as a clear advantage, of about -4 to +4


class RuleRouter:
    """Adds up the expected gain of the steps, then lets the rules speak. Every rule speaks for RAG: without it, no question leaves long context.

    Raises ValueError for a step or a rule that does not exist.
    """

    def __init__(self, *, steps: Collection[str] = tuple(STEPS), rules: Collection[str] = RULES, name: str = "rules"):
        if unknown := [x for x in (*steps, *rules) if x not in STEPS and x not in RULES]:
            raise ValueError(f"no step or rule is called {unknown[0]!r}; steps: {', '.join(STEPS)}; rules: {', '.join(RULES)}")
        self.steps, self.rules, self.name = tuple(s for s in STEPS if s in steps), tuple(r for r in RULES if r in rules), name

    def decide(self, metadata: Metadata) -> Decision:
        return hard_rule(metadata) or self._weigh(metadata)

    def _weigh(self, metadata: Metadata) -> Decision:
        found = {name: STEPS[name](metadata) for name in self.steps}
        gain = sum(g for _, g, _ in found.values())
        reasons = [f"{name.capitalize()}: {conclusion}, since {why} ({g:+.1f})." for name, (conclusion, g, why) in found.items()]
        margin = MARGIN if TIE in self.rules else -1e-9  # without the rule, a tie goes to long context
        lc = 1 / (1 + exp(margin - gain))
        for rule in self.rules:
            if rule != TIE and VETOES[rule][0](metadata):
                reasons.append(f"Rule '{rule}': {VETOES[rule][1]}.")
                lc = min(lc, 0.5) * 0.5
        reasons.append(f"Expected gain {gain:+.1f}; long context needs more than {max(0.0, margin):g}.")
        return decision(metadata, lc, tuple(reasons), "rule", trace={name: conclusion for name, (conclusion, _, _) in found.items()})
