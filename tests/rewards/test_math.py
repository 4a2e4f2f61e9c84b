from __future__ import annotations

import threading

import pytest

from tacit.rewards.math import LONGEST, equivalent, math_equal, plain, score

pytest.importorskip("math_verify", reason="needs the extra 'math': pip install 'tacit[math]'")


@pytest.mark.parametrize(
    ("answer", "completion", "equal"),
    [
        ("12", r"It is \boxed{12}.", True),
        ("12", r"It is \boxed{13}.", False),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac12", r"\boxed{\dfrac{1}{2}}", True),
        (r"x+1", r"\boxed{1+x}", True),
        (r"x+1", r"\boxed{x-1}", False),
        ("(3, 4)", r"\boxed{\left( 3,4 \right)}", True),
        ("(3, 4)", r"\boxed{(4,3)}", False),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", True),
        (r"[0,1)", r"\boxed{[0,1]}", False),
        ("4", r"\boxed{4\text{ cm}}", True),
        (r"\text{Tuesday}", r"\boxed{\text{Tuesday}}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", True),
        ("5", "The answer is $5$.", True),
        ("5", "#### 5", True),
        ("5", r"First \boxed{5}, no, \boxed{6}", False),
        ("5", "", False),
        ("5", r"\boxed{}", False),
        ("", r"\boxed{5}", False),
        ("5", rf"\boxed{{{'5' * (LONGEST + 1)}}}", False),
        ("5", "x" * 10**5 + " so 5", True),
        ("5", "\ud800", False),
        ("2", "\\boxed{\u202e2}", False),
    ],
)
def test_equality(answer, completion, equal):
    assert math_equal(answer, completion) is equal


def test_what_is_written_alike_needs_no_algebra(monkeypatch):
    monkeypatch.setattr("tacit.rewards.math.equivalent", None)
    assert math_equal(r"\frac{1}{2}", r"\boxed{\dfrac{1} {2}}")
    assert plain(r"\left( \tfrac12,\!3 \right)$.") == r"(\frac12,3)"


def test_no_signal_is_used_so_it_works_in_any_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(equivalent("x+1", r"\boxed{1+x}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_as_a_reward_it_runs_in_a_worker():
    assert score("?", r"\boxed{2/4}", "0.5") == 1
    assert score("?", r"\boxed{2/4}", "0.6") == 0
