"""Lengths of prompts and answers, in tokens, as distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sarathi.errors import BenchmarkError

Tokens = npt.NDArray[np.int64]

MAX_LENGTH = 10**6  # tokens
FORMS = "N, fixed:N, uniform:LOW,HIGH, lognormal:MEDIAN,P90 and zipf:EXPONENT,MAX"

# How many standard deviations the 90th percentile of a normal distribution is above its mean.
_P90_DEVIATIONS = 1.2815515655446004
_MAX_EXPONENT = 20.0


class Lengths(Protocol):
    """A distribution of lengths."""

    def draw(self, count: int, rng: np.random.Generator) -> Tokens:
        """`count` lengths from 1 to `MAX_LENGTH`, the first of them the same however many."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same length always."""

    tokens: int

    def draw(self, count: int, rng: np.random.Generator) -> Tokens:
        return np.full(count, self.tokens, np.int64)


@dataclass(frozen=True)
class Uniform:
    """From `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, count: int, rng: np.random.Generator) -> Tokens:
        return rng.integers(self.low, self.high, size=count, endpoint=True)


@dataclass(frozen=True)
class LogNormal:
    """The log-normal distribution with this median and 90th percentile."""

    median: float
    p90: float

    def draw(self, count: int, rng: np.random.Generator) -> Tokens:
        deviation = math.log(self.p90 / self.median) / _P90_DEVIATIONS
        return whole(rng.lognormal(math.log(self.median), deviation, count))


@dataclass(frozen=True)
class Zipf:
    """A length of k tokens, up to `longest`, is as likely as k to the power of `-exponent`."""

    exponent: float
    longest: int

    def draw(self, count: int, rng: np.random.Generator) -> Tokens:
        found: Tokens = np.searchsorted(self._cumulative, rng.random(count), side="right") + 1
        return np.minimum(found, self.longest)

    @cached_property
    def _cumulative(self) -> npt.NDArray[np.float64]:
        weights = np.arange(1, self.longest + 1, dtype=np.float64) ** -self.exponent
        sums = np.cumsum(weights)
        cumulative: npt.NDArray[np.float64] = sums / sums[-1]
        return cumulative


def whole(lengths: npt.NDArray[np.float64]) -> Tokens:
    """Rounded, and within the bounds of a length."""
    return np.rint(np.clip(lengths, 1, MAX_LENGTH)).astype(np.int64)


def lengths_from(text: str, option: str) -> Lengths:
    """
    Args:
        option: its name, for messages.

    Raises:
        BenchmarkError: the text has none of the forms, or a number is out of range.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        name, rest = "fixed", text
    build = _FORMS.get(name)
    if build is None:
        raise BenchmarkError(f"{option} {text!r} is unknown; accepted are {FORMS}")
    try:
        return build(*rest.split(","))
    except TypeError:
        raise BenchmarkError(f"{option} {text!r} has not the form of any of {FORMS}") from None
    except ValueError as error:
        raise BenchmarkError(f"{option} {text!r}: {error}") from None


def _fixed(tokens: str) -> Fixed:
    return Fixed(_length("N", tokens))


def _uniform(low: str, high: str) -> Uniform:
    bounds = Uniform(_length("LOW", low), _length("HIGH", high))
    if bounds.low > bounds.high:
        raise ValueError("LOW is above HIGH")
    return bounds


def _log_normal(median: str, p90: str) -> LogNormal:
    lengths = LogNormal(
        _number("MEDIAN", median, 1, MAX_LENGTH), _number("P90", p90, 1, MAX_LENGTH)
    )
    if lengths.p90 < lengths.median:
        raise ValueError("P90 is below MEDIAN")
    return lengths


def _zipf(exponent: str, longest: str) -> Zipf:
    power = _number("EXPONENT", exponent, 0, _MAX_EXPONENT)
    if not power:
        raise ValueError("EXPONENT must be above 0")
    return Zipf(power, _length("MAX", longest))


_FORMS: dict[str, Callable[..., Lengths]] = {
    "fixed": _fixed,
    "uniform": _uniform,
    "lognormal": _log_normal,
    "zipf": _zipf,
}


def _length(name: str, text: str) -> int:
    number = _number(name, text, 1, MAX_LENGTH)
    if not number.is_integer():
        raise ValueError(f"{name} must be a whole number")
    return int(number)


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:,.0f}")
    return number
