"""Program tests: does the code that a completion holds do what its tests say?"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tacit.rewards.base import Score
from tacit.rewards.pool import Answer
from tacit.rewards.sandbox import Limits, Sandbox

if TYPE_CHECKING:
    from tacit.core.rollouts import Prompt

FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*(?:```|~~~)[ \t]*$", re.MULTILINE | re.DOTALL)
OPEN_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*(?:python|py)?[ \t]*\n", re.MULTILINE)
CODE = re.compile(r"^(?:(?:from|import|def|async def|class) |@)", re.MULTILINE)  # where the code of a prompt begins
ENDINGS = ("timed_out", "crashed", "refused")  # parts that say how a program failed, apart from giving a wrong answer


class ProgramTests:
    """1 for a completion whose program passes every test of its prompt, 0 for any other; `passed` is the share of tests.

    Reads `info`: `tests`, texts of Python that raise where the program is wrong; `setup`, run before them, on their side; `entry_point`, the
    function under test, needed where it is called like a built-in one or where a test only defines `check(candidate)`.

    Tests run in a process of their own and see the program's results as data (see rewards/box/peer.py). A test that needs the very object, such as
    one that subclasses the program's class or compares instances of it, fails: a mistake on the safe side.

    A program that hangs, dies or prints too much is wrong: 0, with `timed_out`, `crashed` or `refused` set and `failure` telling what happened.
    Unscored is only what is no fault of the program's. Raises ValueError where programs cannot be isolated (see sandbox.py).
    """

    def __init__(self, *, sandbox: Literal["required", "unsafe"] = "required", limits: Limits | None = None, workers: int | None = None):
        self.mode: Literal["required", "unsafe"] = sandbox
        self.limits, self.workers = limits or Limits(), workers
        self.sandbox  # noqa: B018 - refuse now rather than in the middle of a run

    @cached_property
    def sandbox(self) -> Sandbox:
        return Sandbox(self.limits, workers=self.workers, mode=self.mode)

    def begin(self, prompts: list[Prompt], completions: list[str]) -> Callable[[], list[Score]]:
        """Starts testing; what it returns waits for the scores."""
        waiting = [self._submit(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return lambda: [score if isinstance(score, Score) else score() for score in waiting]

    def __call__(self, prompts: list[Prompt], completions: list[str]) -> list[Score]:
        return self.begin(prompts, completions)()

    def close(self) -> None:
        self.sandbox.close()

    def _submit(self, prompt: Prompt, completion: str) -> Score | Callable[[], Score]:
        tests = prompt.info.get("tests")
        if not tests or not all(isinstance(t, str) for t in tests):
            return Score(None, failure=f"prompt {prompt.id!r} has no tests: its info needs 'tests', a list of texts")
        entry = prompt.info.get("entry_point")
        program = program_of(completion, prompt.text, entry)
        future = self.sandbox.submit(program, [complete(t, entry) for t in tests], setup=prompt.info.get("setup") or "", entry_point=entry)
        return lambda: score_of(future.result(), len(tests))


def score_of(answer: Answer, tests: int) -> Score:
    """Reward and parts from what the sandbox found."""
    if answer.failure:
        return Score(None, failure=f"the sandbox failed: {answer.failure}")
    found: Mapping[str, Any] = answer.value
    verdicts, ending = found["verdicts"], found["ending"]
    passed = sum(verdict == "" for verdict in verdicts)
    why = ending or next((verdict for verdict in verdicts if verdict), "")
    flags = {"timed_out": ending.startswith("timed out"), "crashed": why.startswith("the program"), "refused": ending.startswith("printed")}
    parts = {"passed": passed / tests, **{name: float(flags[name]) for name in ENDINGS}}
    if passed == tests and not ending:
        return Score(1.0, parts)
    return Score(0.0, parts, failure=why or f"only {len(verdicts)} of {tests} tests were run")


def program_of(completion: str, prompt: str = "", entry_point: str | None = None) -> str:
    """The code: what the last closed fence that parses holds, or an open one, or else all of it. Where that does not define `entry_point`, the
    completion may be what follows the prompt's code, as base models write it.
    """
    fenced = [text for language, text in FENCE.findall(completion) if language.lower() in ("", "python", "py", "python3")]
    if not fenced and (opened := OPEN_FENCE.search(completion)):
        fenced = [completion[opened.end() :]]
    codes = [code for code in reversed(fenced) if parses(code)] or fenced[-1:] or [completion]
    if entry_point is None:
        return codes[0]
    defining = next((code for code in codes if defines(code, entry_point)), None)
    head = CODE.search(prompt)
    if defining is None and head and defines(joined := prompt[head.start() :] + completion, entry_point):
        return joined
    return defining or codes[0]


def parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what the parser raises for deep nesting and null bytes
        return False
    return True


def defines(code: str, name: str) -> bool:
    """Whether it parses and mentions a definition of `name`."""
    return re.search(rf"^(?:async def|def|class) +{re.escape(name)}\b|^{re.escape(name)} *[:=]", code, re.MULTILINE) is not None and parses(code)


def complete(test: str, entry_point: str | None) -> str:
    """A test that only defines `check(candidate)`, as HumanEval's do, with the call that runs it."""
    if entry_point and re.search(r"^def check\(", test, re.MULTILINE) and not re.search(r"^check\(", test, re.MULTILINE):
        return f"{test}\ncheck({entry_point})\n"
    return test
