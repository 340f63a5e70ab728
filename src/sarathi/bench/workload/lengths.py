"""Lengths of prompts and answers, in tokens, as distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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

    def sample(self, count: int, rng: np.random.Generator) -> Tokens:
        """Return `count` lengths from 1 to `MAX_LENGTH`; a larger count keeps the first ones."""
        ...


class LengthPairs(Protocol):
    """A source of lengths of prompts and their answers."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return the lengths of `count` requests; a larger count keeps the first ones."""
        ...

    def options(self) -> dict[str, str]:
        """Return the options of the command line that describe it."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same length always."""

    tokens: int

    def sample(self, count: int, rng: np.random.Generator) -> Tokens:
        return np.full(count, self.tokens, np.int64)


@dataclass(frozen=True)
class Uniform:
    """From `low` to `high`, both included."""

    low: int
    high: int

    def sample(self, count: int, rng: np.random.Generator) -> Tokens:
        return rng.integers(self.low, self.high, size=count, endpoint=True)


@dataclass(frozen=True)
class LogNormal:
    """The log-normal distribution with this median and 90th percentile."""

    median: float
    p90: float

    def sample(self, count: int, rng: np.random.Generator) -> Tokens:
        deviation = math.log(self.p90 / self.median) / _P90_DEVIATIONS
        return whole(rng.lognormal(math.log(self.median), deviation, count))


@dataclass(frozen=True)
class Zipf:
    """A length of k tokens, up to `longest`, has a probability of k to the power of `-exponent`."""

    exponent: float
    longest: int

    def sample(self, count: int, rng: np.random.Generator) -> Tokens:
        sums = np.cumsum(np.arange(1, self.longest + 1, dtype=np.float64) ** -self.exponent)
        found: Tokens = np.searchsorted(sums / sums[-1], rng.random(count), side="right") + 1
        return np.minimum(found, self.longest)


@dataclass(frozen=True)
class IndependentLengths:
    """Prompts and answers without any correlation."""

    prompt_lengths: str  # as typed
    output_lengths: str

    def __post_init__(self) -> None:
        self._parsed()

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        prompts, outputs = self._parsed()
        for_prompts, for_outputs = rng.spawn(2)
        return prompts.sample(count, for_prompts), outputs.sample(count, for_outputs)

    def options(self) -> dict[str, str]:
        return {"prompt-lengths": self.prompt_lengths, "output-lengths": self.output_lengths}

    def _parsed(self) -> tuple[Lengths, Lengths]:
        return (
            parse_lengths(self.prompt_lengths, "--prompt-lengths"),
            parse_lengths(self.output_lengths, "--output-lengths"),
        )


def whole(lengths: npt.NDArray[np.float64]) -> Tokens:
    """Round lengths, and clip them to the bounds."""
    return np.rint(np.clip(lengths, 1, MAX_LENGTH)).astype(np.int64)


def parse_lengths(text: str, option: str) -> Lengths:
    """Parse a distribution.

    Args:
        option: its name, for messages.

    Raises:
        BenchmarkError: the text has none of the forms, or a number is out of range.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        name, rest = "fixed", text
    build = _BUILDERS.get(name)
    if build is None:
        raise BenchmarkError(f"{option} {text!r} is unknown; accepted are {FORMS}")
    try:
        return build(*rest.split(","))
    except TypeError:
        raise BenchmarkError(f"{option} {text!r} has not the form of any of {FORMS}") from None
    except ValueError as error:
        raise BenchmarkError(f"{option} {text!r}: {error}") from None


def _uniform(low: str, high: str) -> Uniform:
    bounds = Uniform(_length("LOW", low), _length("HIGH", high))
    if bounds.low > bounds.high:
        raise ValueError("LOW is above HIGH")
    return bounds


def _log_normal(median: str, p90: str) -> LogNormal:
    lengths = LogNormal(_number("MEDIAN", median), _number("P90", p90))
    if lengths.p90 < lengths.median:
        raise ValueError("P90 is below MEDIAN")
    return lengths


def _zipf(exponent: str, longest: str) -> Zipf:
    power = _number("EXPONENT", exponent, 0, _MAX_EXPONENT)
    if not power:
        raise ValueError("EXPONENT must be above 0")
    return Zipf(power, _length("MAX", longest))


_BUILDERS: dict[str, Callable[..., Lengths]] = {
    "fixed": lambda tokens: Fixed(_length("N", tokens)),
    "uniform": _uniform,
    "lognormal": _log_normal,
    "zipf": _zipf,
}


def _length(name: str, text: str) -> int:
    number = _number(name, text)
    if not number.is_integer():
        raise ValueError(f"{name} must be a whole number")
    return int(number)


def _number(name: str, text: str, low: float = 1, high: float = MAX_LENGTH) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:,.0f}")
    return number
