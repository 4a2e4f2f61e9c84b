"""Arithmetic expressions: their exact value, and one normal form for all that say the same thing."""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from typing import NamedTuple

from tacit.core.numbers import write_number

WRITTEN = re.compile(r"[\d.+\-*/()\s]+")
LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
# the kind of chain an operator belongs to, and whether it inverts what follows
OPERATORS = {ast.Add: ("sum", False), ast.Sub: ("sum", True), ast.Mult: ("product", False), ast.Div: ("product", True)}
SIGNS = {"sum": "+-", "product": "*/"}


class Expression(NamedTuple):
    """The exact value, and the form: equal for expressions that differ only in writing (see `parse`)."""

    value: Fraction
    form: str


class _Chain(NamedTuple):
    """A sum of terms or a product of factors, flat; parts are (inverted, form). A number is a chain of kind "" with one part."""

    value: Fraction
    kind: str
    parts: tuple[tuple[bool, str], ...]

    @property
    def form(self) -> str:
        if not self.kind:
            return self.parts[0][1]
        return "(" + "".join(SIGNS[self.kind][inverted] + form for inverted, form in sorted(self.parts)) + ")"

    def within(self, kind: str, inverted: bool) -> tuple[tuple[bool, str], ...]:
        """Its parts as they stand in a chain of that kind: a - (b - c) is a - b + c, while a - b*c keeps its product whole."""
        return tuple((inverted != own, form) for own, form in self.parts) if self.kind == kind else ((inverted, self.form),)


def parse(text: str) -> Expression:
    """Reads + - * / ( ) and decimal numbers, with the usual precedence.

    The form forgets white space, how a number is written (0.20, .2), the order of the terms of a sum and of the factors of a product,
    and brackets that change nothing: 3*(2*4), 4*2*3 and (4)*3*2.0 share one form, as do 8/2/4 and 8/(4*2); 2+2 and 2*2 do not.
    Raises ValueError when the text is no expression, ZeroDivisionError when it divides by zero.
    """
    if WRITTEN.fullmatch(text):
        try:
            chain = _read(ast.parse(LEADING_ZEROS.sub("", text.strip()), mode="eval").body)
            return Expression(chain.value, chain.form)
        except (SyntaxError, KeyError):
            pass
    raise ValueError(f"{text!r} is not an arithmetic expression")


def _read(node: ast.AST) -> _Chain:
    match node:
        case ast.Constant(value=number):
            value = Fraction(repr(number))
            return _Chain(value, "", ((False, write_number(value) or ""),))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _read(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            chain = _read(operand)
            return _Chain(-chain.value, "sum", chain.within("sum", True))
        case ast.BinOp(left=left, op=operator, right=right):
            kind, inverted = OPERATORS[type(operator)]
            a, b = _read(left), _read(right)
            parts = a.within(kind, False) + b.within(kind, inverted)
            if kind == "sum":
                return _Chain(a.value - b.value if inverted else a.value + b.value, kind, parts)
            return _Chain(a.value / b.value if inverted else a.value * b.value, kind, parts)
    raise SyntaxError
