"""Numbers with units, as pure functions: "5 km" is "5000 m", and "5 kg" is neither."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from tacit.core.answers import answer_part
from tacit.core.numbers import NUMBER, parse_number
from tacit.rewards.verifiers import close

SPACE = r"(?:[ \t~]|\\[ ,;!]|\\(?:text|mathrm)\{){0,8}"
UNIT = rf"{SPACE}(%|°\s?[CF]?|¢|[A-Za-zµ]+(?:[/^][A-Za-z0-9]+){{0,2}})?"
QUANTITY = re.compile(rf"((?<![\w)])-)?([$€£])?({NUMBER}){UNIT}")  # a minus behind a number or a bracket is an operator


class Quantity(NamedTuple):
    """A number, and the unit that stands in front of it or behind it, singular; "" without any."""

    number: Fraction
    unit: str

    @property
    def kind(self) -> str:
        """What is measured: "length", "money/$"; a unit that is not in the table is a kind of its own."""
        return UNITS[self.unit][0] if self.unit in UNITS else self.unit.lower()

    @property
    def value(self) -> Fraction:
        """The number in the base unit of its kind (m, g, s, l, ...)."""
        return self.number * UNITS[self.unit][1] if self.unit in UNITS else self.number


def _table() -> dict[str, tuple[str, Fraction]]:
    """Unit as written -> (kind, size in the base unit of the kind). Sizes are exact by definition."""
    written = {
        "length": "1: m meter metre; 1000: km kilometer kilometre; 1/100: cm centimeter centimetre; 1/1000: mm millimeter millimetre; "
        "0.0254: inch inches; 0.3048: ft foot feet; 0.9144: yd yard; 1609.344: mi mile",
        "mass": "1: g gram; 1000: kg kilogram; 1/1000: mg milligram; 1000000: t tonne; 453.59237: lb lbs pound; 28.349523125: oz ounce",
        "time": "1: s sec second; 60: min minute; 3600: h hr hour; 86400: day; 604800: week; 1/1000: ms millisecond",
        "volume": "1: l L liter litre; 1/1000: ml mL milliliter millilitre; 3.785411784: gal gallon",
        "money/$": "1: $ dollar USD; 1/100: cent ¢",
        "money/€": "1: € euro EUR",
        "money/£": "1: £ GBP",
        "share": "1: % percent",
        "speed": "1: m/s; 5/18: km/h kph kmh; 0.44704: mph mi/h",
        "angle": "1: ° degree deg",
        "area": "1: m^2 sqm; 1000000: km^2; 1/10000: cm^2; 0.09290304: ft^2",
        "cubic": "1: m^3; 1/1000000: cm^3",
        "temperature/C": "1: °C",
        "temperature/F": "1: °F",
    }
    return {
        unit: (kind, Fraction(size.strip()))
        for kind, entries in written.items()
        for size, units in (entry.split(":") for entry in entries.split(";"))
        for unit in units.split()
    }


UNITS = _table()


def parse_quantity(text: str) -> Quantity | None:
    """The quantity that `text` is, or None: "5 km" "$2.50" "-3 m/s" "12" "40 %" "7 apples"."""
    match = QUANTITY.fullmatch(text.strip().rstrip("}.").rstrip())
    return _read(match) if match else None


def final_quantity(text: str) -> Quantity | None:
    """The quantity a worked solution ends on: the last of the part for the answer (see answers.answer_part); None without any."""
    found = None
    for match in QUANTITY.finditer(answer_part(text)):
        found = match
    return _read(found) if found else None


def quantity(completion: str, answer: str, *, absolute: float = 0.0, relative: float = 0.0, unit_required: bool = True) -> float | None:
    """1 when the quantity that the completion ends on equals the answer, converted where it is given in another unit of the kind.

    It may be off by `absolute` (in the base unit of the kind: m, g, s, l, ...), or by `relative` times the answer. An answer without a unit is
    compared by number alone; with `unit_required` off, so is a completion whose number has no unit that is known. None when the answer is no
    quantity.
    """
    expected, found = parse_quantity(answer), final_quantity(completion)
    if expected is None:
        return None
    if found is None:
        return 0.0
    bare = not expected.unit or (not unit_required and found.unit not in UNITS)
    if not bare and found.kind != expected.kind:
        return 0.0
    said, wanted = (found.number, expected.number) if bare else (found.value, expected.value)
    return float(close(said, wanted, absolute, relative))


def _read(match: re.Match[str]) -> Quantity | None:
    minus, currency, number, unit = match.groups()
    value, unit = parse_number((minus or "") + number), (currency or unit or "").replace(" ", "")
    return None if value is None else Quantity(value, unit if unit in UNITS else unit.removesuffix("s"))
