"""Numbers in text, exactly: reading them as fractions, writing them in one way, and finding the one a completion ends on."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
SIGNED = re.compile(rf"-?(?:{NUMBER})")
WHOLE = re.compile(rf"([-+]?)\s*[$€£]?\s*([-+]?)({NUMBER})\.?\s*%?")
LONGEST = 400  # characters; what is longer is no answer, and could take long to read
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, or None: "1,234" "$24.0" "-.5" "50 %" (which is 50) "24." are numbers, "3 apples" and "1/2" are not."""
    text = text.strip()
    match = WHOLE.fullmatch(text) if len(text) <= LONGEST else None
    if match is None or (match[1] and match[2]):
        return None
    digits = match[3].replace(",", "")
    value = Fraction(digits if "." in digits else int(digits))  # from an int it is three times as fast
    return -value if "-" in (match[1], match[2]) else value


def write_number(value: Fraction) -> str | None:
    """The one way a value is written: "24", "0.5", "-1.25"; None when no finite decimal is equal to it."""
    places = next((k for k in range(value.denominator.bit_length()) if 10**k % value.denominator == 0), None)
    if places is None:
        return None
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{text}" if value < 0 else text


def final_number(text: str) -> Fraction | None:
    """The number a worked solution ends on: the first after the last "####", else the last in \\boxed{}, else the last of all; None without any."""
    if "####" in text:
        return _first(text.rsplit("####", 1)[1])
    if boxed := BOXED.findall(text):
        return _last(boxed[-1])
    return _last(text)


def _first(text: str) -> Fraction | None:
    match = SIGNED.search(text)
    return parse_number(match[0]) if match else None


def _last(text: str) -> Fraction | None:
    """A minus directly after a digit or a bracket is an operator: "12-5" ends on 5."""
    found = None
    for match in SIGNED.finditer(text):
        found = match
    if found is None:
        return None
    operator = found[0].startswith("-") and re.search(r"[\d)]\s*$", text[: found.start()])
    return parse_number(found[0].removeprefix("-") if operator else found[0])
