from __future__ import annotations

from fractions import Fraction

import pytest

from tacit.rewards.quantities import UNITS, Quantity, final_quantity, parse_quantity, quantity


@pytest.mark.parametrize(
    ("completion", "answer", "options", "reward"),
    [
        ("it is 5 km.", "5000 m", {}, 1),
        ("it is 5 kilometers", "5 km", {}, 1),
        ("5 kg", "5 km", {}, 0),
        ("so $2.50", "2.50 dollars", {}, 1),
        ("250 cents", "$2.50", {}, 1),
        ("€2.50", "$2.50", {}, 0),
        (r"\boxed{5\text{ km}}", "5000 m", {}, 1),
        (r"\boxed{5\ \mathrm{km}}", "5000 m", {}, 1),
        ("5", "5 km", {}, 0),
        ("5", "5 km", {"unit_required": False}, 1),
        ("5 is what it takes", "5 km", {"unit_required": False}, 1),
        ("5 kg", "5 km", {"unit_required": False}, 0),
        ("12-5 cm", "5 cm", {}, 1),
        ("it fell to -5 °C", "-5°C", {}, 1),
        ("5 °F", "5 °C", {}, 0),
        ("72 km/h", "20 m/s", {}, 1),
        ("2 hours", "120 min", {}, 1),
        ("3.1 m", "3 m", {"relative": 0.05}, 1),
        ("3.2 m", "3 m", {"relative": 0.05}, 0),
        ("301 cm", "3 m", {"absolute": 0.01}, 1),
        ("302 cm", "3 m", {"absolute": 0.01}, 0),
        ("7 apples", "7 apple", {}, 1),
        ("7 pears", "7 apples", {}, 0),
        ("7 apples", "7", {}, 1),
        ("40%", "40 percent", {}, 1),
        ("nothing", "5 km", {}, 0),
        ("5 km", "far", {}, None),
        ("9" * 10**5, "5 km", {}, 0),
    ],
)
def test_quantities_are_compared_in_any_unit_of_their_kind(completion, answer, options, reward):
    assert quantity(completion, answer, **options) == reward


def test_reading():
    assert parse_quantity("-1,200 mm") == Quantity(Fraction(-1200), "mm")
    assert parse_quantity("-1,200 mm").value == Fraction(-6, 5)
    assert parse_quantity("1 2 km") is None and parse_quantity("") is None
    assert final_quantity("first 3 m, then 4 cm") == Quantity(Fraction(4), "cm")
    assert final_quantity("first 3 m, #### 4 then 5") == Quantity(Fraction(5), "")


def test_units_of_a_kind_are_defined_by_one_another():
    assert {size for kind, size in UNITS.values() if kind == "share"} == {1}
    assert UNITS["mile"][1] == 5280 * UNITS["ft"][1] and UNITS["yd"][1] == 3 * UNITS["foot"][1]
    assert UNITS["mph"][1] == UNITS["mi"][1] / UNITS["hour"][1] and UNITS["km/h"][1] == UNITS["km"][1] / UNITS["h"][1]
    assert UNITS["lb"][1] == 16 * UNITS["oz"][1] and UNITS["ft^2"][1] == UNITS["ft"][1] ** 2
