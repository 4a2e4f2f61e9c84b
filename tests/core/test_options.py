"""Options checked against the signature of what takes them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tacit.core.options import checked


class Taker:
    def __init__(self, path: str, window: int = 2, share: float = 0.5, rule: str | None = None, parts: list[int] = []):  # noqa: B006
        pass


def test_options_come_as_the_types_that_are_asked_for() -> None:
    found = checked(Taker, "it", {"path": "a", "window": 3.0, "share": 1, "rule": None, "parts": ["3"]})
    assert found == {"path": "a", "window": 3, "share": 1.0, "rule": None, "parts": [3]}
    assert isinstance(found["window"], int) and isinstance(found["share"], float)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "a", "windw": 3}, "it has no option 'windw'; did you mean 'window'?"),
        ({"path": "a", "zz": 3}, "it has no option 'zz'; its options are window, share, rule, parts"),
        ({"path": "a", "window": "x"}, "it, option 'window': Input should be a valid integer, unable to parse string as an integer, not 'x'"),
        ({"window": 3}, "it needs the option 'path'; set it among its options"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        checked(Taker, "it", options, hidden=("path",))


def test_who_takes_anything_is_asked_for_nothing() -> None:
    def open_ended(size: int, **more: Any) -> None:
        pass

    assert checked(open_ended, "it", {"size": "4", "luck": 1}) == {"size": 4, "luck": 1}
