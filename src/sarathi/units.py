"""Durations and sizes as people write them: 100ms, 1.5s, 2m, 2GiB, or plain numbers."""

from __future__ import annotations

import re

MAX_DURATION = 86_400.0  # seconds; more than a day is taken for a mistake
FORMS = "seconds as a number, or a text with a unit such as 100ms, 1.5s or 2m"
MAX_SIZE = 2**62  # bytes

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PATTERN = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", re.ASCII)
_MAX_TEXT = 32  # characters
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_duration(duration: float | str) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: it is no duration, not above 0, or more than a day. The message continues the
            name of the option or field.
    """
    if isinstance(duration, str):
        text = duration.strip().lower() if len(duration) <= _MAX_TEXT else ""
        match = _PATTERN.fullmatch(text)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"is {_shown(duration)}, expected {FORMS}")
        seconds = float(match[1]) * _UNITS[match[2]]
    else:
        seconds = float(duration)
    if not 0 < seconds <= MAX_DURATION:
        raise ValueError(f"is {_shown(duration)}, expected a time above 0 and of at most a day")
    return seconds


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 2GiB, 512MB, 1.5g or 4096.

    Raises:
        ValueError: the text is no size, or out of range; the message is complete.
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None or (unit := match[2].removesuffix("b")) not in _SIZES:
        raise ValueError(f"{text!r} is not a size such as 2GiB, 512MB or 4096")
    size = float(match[1]) * _SIZES[unit]
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"{text!r} is out of range, expected 1 to {MAX_SIZE} bytes")
    return int(size)


def format_duration(seconds: float) -> str:
    """Return a duration for display, in milliseconds below a second."""
    milliseconds = 1000 * seconds
    if milliseconds >= 1000:
        return f"{round(seconds, 2):g} s"
    return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def _shown(duration: float | str) -> str:
    shown = repr(duration)
    return shown if len(shown) <= _MAX_TEXT + 2 else shown[:_MAX_TEXT] + "..."
