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

# How many standard deviations the 90th percentile of a normal distribution is above its mean.
_P90_DEVIATIONS = 1.2815515655446004
_MAX_EXPONENT = 20.0


class LengthPairs(Protocol):
    """A source of lengths of prompts and their answers."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return the lengths of `count` requests; a larger count keeps the first ones."""
        ...

    def options(self) -> dict[str, str]:
        """Return the options of the command line that describe it."""
        ...


@dataclass(frozen=True)
class LengthDistribution:
    """A distribution of single lengths: one of `_FORMS`, and its parameters."""

    form: str
    parameters: tuple[float, ...]

    def sample(self, count: int, rng: np.random.Generator) -> Tokens:
        """Return `count` lengths from 1 to `MAX_LENGTH`; a larger count keeps the first ones."""
        return _FORMS[self.form][1](count, rng, *self.parameters)


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

    def _parsed(self) -> list[LengthDistribution]:
        return [parse_lengths(text, f"--{option}") for option, text in self.options().items()]


def whole(lengths: npt.NDArray[np.float64]) -> Tokens:
    """Round lengths, and clip them to the bounds."""
    return np.rint(np.clip(lengths, 1, MAX_LENGTH)).astype(np.int64)


def parse_lengths(text: str, option: str) -> LengthDistribution:
    """Parse a distribution.

    Args:
        option: its name, for messages.

    Raises:
        BenchmarkError: the text has none of the forms, or a number is out of range.
    """
    form, colon, rest = text.partition(":")
    if not colon:
        form, rest = "fixed", text
    accepted = ", ".join(["N", *(f"{name}:{names}" for name, (names, _) in _FORMS.items())])
    if form not in _FORMS:
        raise BenchmarkError(f"{option} {text!r} is unknown; accepted are {accepted}")
    names, values = _FORMS[form][0].split(","), rest.split(",")
    if len(names) != len(values):
        raise BenchmarkError(f"{option} {text!r} has not the form of any of {accepted}")
    try:
        numbers = tuple(map(_parameter, names, values))
        if form in ("uniform", "lognormal") and numbers[0] > numbers[1]:
            raise ValueError(f"{names[0]} is above {names[1]}")
    except ValueError as error:
        raise BenchmarkError(f"{option} {text!r}: {error}") from None
    return LengthDistribution(form, numbers)


def _parameter(name: str, text: str) -> float:
    low, high = (0.0, _MAX_EXPONENT) if name == "EXPONENT" else (1.0, float(MAX_LENGTH))
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:,.0f}")
    if not number:
        raise ValueError(f"{name} must be above 0")
    if name not in ("EXPONENT", "MEDIAN", "P90") and not number.is_integer():
        raise ValueError(f"{name} must be a whole number")
    return number


def _fixed(count: int, rng: np.random.Generator, length: float) -> Tokens:
    return np.full(count, length, np.int64)


def _uniform(count: int, rng: np.random.Generator, low: float, high: float) -> Tokens:
    return rng.integers(int(low), int(high), size=count, endpoint=True)


def _log_normal(count: int, rng: np.random.Generator, median: float, p90: float) -> Tokens:
    deviation = math.log(p90 / median) / _P90_DEVIATIONS
    return whole(rng.lognormal(math.log(median), deviation, count))


def _zipf(count: int, rng: np.random.Generator, exponent: float, longest: float) -> Tokens:
    """Sample a length of k tokens with a probability of k to the power of `-exponent`."""
    sums = np.cumsum(np.arange(1, longest + 1, dtype=np.float64) ** -exponent)
    found: Tokens = np.searchsorted(sums / sums[-1], rng.random(count), side="right") + 1
    return np.minimum(found, int(longest))


# The parameters of each form, and how it is sampled.
_FORMS: dict[str, tuple[str, Callable[..., Tokens]]] = {
    "fixed": ("N", _fixed),
    "uniform": ("LOW,HIGH", _uniform),
    "lognormal": ("MEDIAN,P90", _log_normal),
    "zipf": ("EXPONENT,MAX", _zipf),
}
