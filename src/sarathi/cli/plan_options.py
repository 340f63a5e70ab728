"""Argparse types of `sarathi plan`: lists with commas between their parts."""

from __future__ import annotations

import argparse
import math

from sarathi.cli.engine_options import positive
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.plan.candidates import DERIVED

_MOST_DOLLARS = 1e6  # an hour


def prices(text: str) -> dict[str, float]:
    """Devices, and what each costs in dollars an hour; some have a price of their own."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, given = part.strip().partition(":")
        device = DEVICES.get(name)
        if device is None:
            raise argparse.ArgumentTypeError(
                f"{part!r} names no device, expected NAME or NAME:DOLLARS_PER_HOUR with one of "
                f"{', '.join(DEVICES)}"
            )
        if name in found:
            raise argparse.ArgumentTypeError(f"{text!r} names {name} twice")
        if not colon and device.price is None:
            raise argparse.ArgumentTypeError(
                f"{part!r} has no price, and {name} has none of its own: expected "
                f"{name}:DOLLARS_PER_HOUR, such as {name}:1.5"
            )
        found[name] = _price(part, given) if colon else device.price or 0.0
    return found


def _price(part: str, given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MOST_DOLLARS:
        raise argparse.ArgumentTypeError(
            f"the price in {part!r} is {given!r}, expected dollars an hour above 0 and up to "
            f"{_MOST_DOLLARS:.0f}, as in NAME:2.21"
        )
    return value


def numbers(text: str) -> list[int]:
    """Whole numbers above 0, each once."""
    return list(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def budgets(text: str) -> list[int | None]:
    """Tokens, or None for a budget that follows from the latency target."""
    parts = [part.strip() for part in text.split(",")]
    return list(dict.fromkeys(None if part == DERIVED else positive(part) for part in parts))


def exploration(text: str) -> float:
    """How many times the lowest cost is worth a look; infinite for `all`."""
    if text.strip() == "all":
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 to 1000 nor `all`")
    return value
