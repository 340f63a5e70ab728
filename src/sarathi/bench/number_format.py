"""Formats numbers for people: three significant digits, and a unit."""

from __future__ import annotations

import math
from collections.abc import Callable

MISSING = "-"  # an unknown value


def number(value: float | None) -> str:
    """Format a number such as 1,234 or 12.3 or 0.00123."""
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = float(f"{value:.2e}")
    if not rounded:
        return "0"
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:g}" if magnitude < -4 else f"{value:,.{max(0, 2 - magnitude)}f}"


def plain(value: float | None) -> str:
    """Format a number without zeros at the end."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def milliseconds(value: float | None) -> str:
    """Format a time in seconds as milliseconds."""
    return _with_unit(number(None if value is None else 1000 * value), " ms")


def seconds(value: float | None) -> str:
    """Format a time in seconds, as milliseconds below a tenth."""
    if value is not None and 0 < value < 0.1:
        return milliseconds(value)
    return _with_unit(number(value), " s")


def rate(value: float | None) -> str:
    """Format a rate per second."""
    return _with_unit(plain(value), "/s")


def percent(share: float | None) -> str:
    """Format a share as a percentage."""
    return _with_unit(plain(None if share is None else 100 * share), " %")


def interval(bounds: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    """Format both ends of an interval, with one unit where they have the same.

    Args:
        shown: one of the functions above.
    """
    if bounds is None:
        return MISSING
    low, high = map(shown, bounds)
    unit = high.lstrip("0123456789.,")
    return f"{low.removesuffix(unit)} to {high}"


def _with_unit(text: str, unit: str) -> str:
    return text if text == MISSING else text + unit
