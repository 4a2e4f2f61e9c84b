"""Options that a recipe gives to a task or a component, checked against the signature of what takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

PLAIN = (int, float, str, bool)


def checked(taker: Any, what: str, options: Mapping[str, Any], hidden: Sequence[str] = ()) -> dict[str, Any]:
    """The options as the types that `taker`, a class or a function, asks for. `what`: how messages call it; `hidden`: parameters that they leave out.

    Raises ValueError for an option that is unknown, missing or of another type.
    """
    parameters = inspect.signature(taker).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints, found = _hints(taker), dict(options)
    for option, value in options.items():
        if option not in parameters and not open_ended:
            known = [p for p in parameters if p not in hidden]
            near = get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; its options are {', '.join(known)}" if known else ""
            raise ValueError(f"{what} has no option {option!r}{hint}")
        if option in hints:
            try:
                found[option] = TypeAdapter(hints[option]).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{what}, option {option!r}: {error.errors()[0]['msg']}, not {value!r}") from None
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if lacking := [p for p in missing if p not in options]:
        raise ValueError(f"{what} needs the option {lacking[0]!r}; set it among its options")
    return found


def _hints(taker: Any) -> dict[str, Any]:
    """Annotated types that pydantic can check; a class of the user's may use others, and checks those itself."""
    try:
        hints = get_type_hints(taker.__init__ if inspect.isclass(taker) else taker)
    except NameError:  # names imported for type checkers only
        return {}
    return {name: t for name, t in hints.items() if t in PLAIN or all(a in (*PLAIN, type(None)) for a in get_args(t) or (t,))}
