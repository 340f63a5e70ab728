"""Lengths of prompts and answers, in tokens: distributions, traces and recorded conversations."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from sarathi.bench.workload.arrivals import Times
from sarathi.errors import BenchmarkError

Tokens = npt.NDArray[np.int64]

MAX_LENGTH = 10**6  # tokens

# How many standard deviations the 90th percentile of a normal distribution is above its mean.
_P90_DEVIATIONS = 1.2815515655446004


class LengthPairs(Protocol):
    """A source of lengths of prompts and their answers."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return the lengths of `count` requests; a larger count keeps the first ones."""
        ...


Sampler = Callable[[int, np.random.Generator], Tokens]


@dataclass(frozen=True)
class IndependentLengths:
    """Prompts and answers without any correlation."""

    prompts: Sampler
    outputs: Sampler

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        for_prompts, for_outputs = rng.spawn(2)
        return self.prompts(count, for_prompts), self.outputs(count, for_outputs)


def whole(lengths: npt.NDArray[np.float64]) -> Tokens:
    """Round lengths, and clip them to the bounds."""
    return np.rint(np.clip(lengths, 1, MAX_LENGTH)).astype(np.int64)


def parse_lengths(text: str, option: str) -> Sampler:
    """Parse a distribution of single lengths from 1 to `MAX_LENGTH`.

    A larger count keeps the first ones. Messages name the option.

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
    return partial(_FORMS[form][1], numbers)


def _parameter(name: str, text: str) -> float:
    low, high = (0.0, 20.0) if name == "EXPONENT" else (1.0, float(MAX_LENGTH))
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


def _fixed(numbers: Sequence[float], count: int, rng: np.random.Generator) -> Tokens:
    return np.full(count, numbers[0], np.int64)


def _uniform(numbers: Sequence[float], count: int, rng: np.random.Generator) -> Tokens:
    low, high = map(int, numbers)
    return rng.integers(low, high, size=count, endpoint=True)


def _log_normal(numbers: Sequence[float], count: int, rng: np.random.Generator) -> Tokens:
    median, p90 = numbers
    deviation = math.log(p90 / median) / _P90_DEVIATIONS
    return whole(rng.lognormal(math.log(median), deviation, count))


def _zipf(numbers: Sequence[float], count: int, rng: np.random.Generator) -> Tokens:
    """Sample a length of k tokens with a probability of k to the power of `-exponent`."""
    exponent, longest = numbers
    sums = np.cumsum(np.arange(1, longest + 1, dtype=np.float64) ** -exponent)
    found: Tokens = np.searchsorted(sums / sums[-1], rng.random(count), side="right") + 1
    return np.minimum(found, int(longest))


# The parameters of each form, and how it is sampled.
_FORMS: dict[str, tuple[str, Callable[[Sequence[float], int, np.random.Generator], Tokens]]] = {
    "fixed": ("N", _fixed),
    "uniform": ("LOW,HIGH", _uniform),
    "lognormal": ("MEDIAN,P90", _log_normal),
    "zipf": ("EXPONENT,MAX", _zipf),
}


_PROMPT, _OUTPUT, _ARRIVAL = "num_prefill_tokens", "num_decode_tokens", "arrived_at"
_USERS = frozenset({"human", "user"})
_ASSISTANTS = frozenset({"gpt", "chatgpt", "assistant"})


@dataclass(frozen=True, eq=False)
class LengthTrace:
    """Lengths of requests in the order of the file, or of time where it has times."""

    path: str
    prompts: Tokens
    outputs: Tokens
    arrived_at: Times | None  # seconds, from 0

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return each request once in a random order, then each once again, and so on."""
        rows = _shuffled(len(self.prompts), count, rng)
        return self.prompts[rows], self.outputs[rows]


class _Turn(msgspec.Struct, frozen=True):
    speaker: str = msgspec.field(name="from")
    value: str


class _Conversation(msgspec.Struct, frozen=True):
    conversations: list[_Turn]


@dataclass(frozen=True, eq=False)
class Dialogues:
    """Recorded conversations in the format of ShareGPT.

    Each answer to a user is a request; all turns before it are the prompt.
    """

    answers: Sequence[tuple[Sequence[str], int]]  # all turns of a conversation, and which of them
    count: Callable[[str], int]  # tokens of a text

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return each request once in a random order, then each once again, and so on.

        Only the turns of sampled requests are tokenised: files are large.
        """
        around = self.count("a") - 1  # what comes with every text, such as a first `<s>`
        count_text = cache(self.count)
        prompts, outputs = [], []
        for row in _shuffled(len(self.answers), count, rng).tolist():
            texts, answer = self.answers[row]
            *before, output = (count_text(text) - around for text in texts[: answer + 1])
            prompts.append(around + sum(before))
            outputs.append(output)
        return np.clip(prompts, 1, MAX_LENGTH), np.clip(outputs, 1, MAX_LENGTH)


def read_trace(path: str) -> LengthTrace:
    """Read a CSV file with the columns num_prefill_tokens, num_decode_tokens and, optionally,
    arrived_at (seconds); others are ignored.

    Raises:
        BenchmarkError: the file, a column or a request is missing, or a value is out of range.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
            rows = [(f"--workload {path}, row {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    for name in (_PROMPT, _OUTPUT):
        if name not in header:
            raise BenchmarkError(
                f"--workload {path} has no column {name}; needed are {_PROMPT} and {_OUTPUT}, "
                f"and {_ARRIVAL} for the times"
            )
    if not rows:
        raise BenchmarkError(f"--workload {path} has no requests")
    expected = f"a whole number from 1 to {MAX_LENGTH:,}"
    prompts, outputs = (
        _column(rows, name, _is_length, expected).astype(np.int64) for name in (_PROMPT, _OUTPUT)
    )
    if _ARRIVAL not in header:
        return LengthTrace(path, prompts, outputs, None)
    times = _column(rows, _ARRIVAL, math.isfinite, "a time in seconds")
    order = np.argsort(times, kind="stable")
    times = times[order]
    return LengthTrace(path, prompts[order], outputs[order], times - times[0])


def read_dialogues(path: str, count: Callable[[str], int]) -> Dialogues:
    """Read a JSON file: a list of objects with `conversations`, each a list of turns with the
    speaker as `from` (human, gpt, ...) and the text as `value`.

    Raises:
        BenchmarkError: the file is missing, has another form, or has no answer to a user.
    """
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=list[_Conversation])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    answers = []
    for one in found:
        texts = [turn.value for turn in one.conversations]
        for turn, (before, after) in enumerate(pairwise(one.conversations), start=1):
            if before.speaker in _USERS and after.speaker in _ASSISTANTS:
                answers.append((texts, turn))
    if not answers:
        raise BenchmarkError(
            f"--workload {path} has no requests: none of its conversations has a turn from human "
            "followed by one from gpt"
        )
    return Dialogues(answers, count)


def _is_length(number: float) -> bool:
    return number.is_integer() and 1 <= number <= MAX_LENGTH


def _column(
    rows: Sequence[tuple[str, dict[str, str]]],
    name: str,
    valid: Callable[[float], bool],
    expected: str,
) -> Times:
    """Return a column; errors name the row."""
    numbers = []
    for where, row in rows:
        try:
            number = float(row[name])
        except ValueError:
            number = math.nan
        if not valid(number):
            raise BenchmarkError(f"{where}: {name} is {row[name]!r}, expected {expected}")
        numbers.append(number)
    return np.array(numbers)


def _unreadable(path: str, error: Exception) -> BenchmarkError:
    reason = error.strerror if isinstance(error, OSError) else error
    return BenchmarkError(f"--workload {path} cannot be read: {reason}")


def _shuffled(size: int, count: int, rng: np.random.Generator) -> Tokens:
    rounds = -(-count // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:count]
