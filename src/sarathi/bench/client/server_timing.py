"""What a server tells about its own times in the `Server-Timing` header."""

from __future__ import annotations

import math
import re

_QUOTED = r'"(?:\\.|[^"\\])*"?'
_METRIC = re.compile(rf'(?:[^",]|{_QUOTED})+')
_PARAMETER = re.compile(rf'(?:[^";]|{_QUOTED})+')


def duration(header: str, metric: str) -> float | None:
    """The duration of a metric in seconds; None where the header does not tell it.

    After W3C Server Timing: metrics are separated by commas, parameters by semicolons, names do
    not depend on case, and the first of several metrics or parameters counts.
    """
    for part in _METRIC.findall(header):
        texts = [text.strip() for text in _PARAMETER.findall(part)]
        if texts and texts[0].lower() == metric:
            return _duration(texts[1:])
    return None


def _duration(parameters: list[str]) -> float | None:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "dur":
            try:
                milliseconds = float(value.strip().strip('"'))
            except ValueError:
                return None
            usable = math.isfinite(milliseconds) and milliseconds >= 0
            return milliseconds / 1000 if usable else None
    return None
