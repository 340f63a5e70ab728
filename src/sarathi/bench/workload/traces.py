"""Requests from files: traces with lengths, and recorded conversations."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from sarathi.bench.workload.arrivals import Times
from sarathi.bench.workload.lengths import MAX_LENGTH, Tokens
from sarathi.errors import BenchmarkError

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

    def options(self) -> dict[str, str]:
        return {"workload": self.path}


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

    path: str
    conversations: tuple[tuple[_Turn, ...], ...]
    answers: tuple[tuple[int, int], ...]  # conversation, and turn in it
    count: Callable[[str], int]  # tokens of a text

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return each request once in a random order, then each once again, and so on.

        Only the turns of sampled requests are tokenised: files are large.
        """
        around = self.count("a") - 1  # what comes with every text, such as a first `<s>`
        lengths: dict[tuple[int, int], int] = {}

        def length(conversation: int, turn: int) -> int:
            key = conversation, turn
            if key not in lengths:
                lengths[key] = self.count(self.conversations[conversation][turn].value) - around
            return lengths[key]

        prompts, outputs = [], []
        for row in _shuffled(len(self.answers), count, rng).tolist():
            conversation, answer = self.answers[row]
            prompts.append(around + sum(length(conversation, turn) for turn in range(answer)))
            outputs.append(length(conversation, answer))
        return np.clip(prompts, 1, MAX_LENGTH), np.clip(outputs, 1, MAX_LENGTH)

    def options(self) -> dict[str, str]:
        return {"workload": self.path}


def read_trace(path: str) -> LengthTrace:
    """Read a CSV file with the columns num_prefill_tokens, num_decode_tokens and, optionally,
    arrived_at (seconds); others are ignored.

    Raises:
        BenchmarkError: the file or a column is missing, a value is out of range, or there is no
            request.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, csv.reader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    if not rows:
        raise BenchmarkError(f"--workload {path} has no requests")
    if rows[0][2] is None:
        prompts, outputs = np.array([row[:2] for row in rows], np.int64).T
        return LengthTrace(path, prompts, outputs, None)
    rows.sort(key=lambda row: row[2] or 0.0)
    prompts, outputs = np.array([row[:2] for row in rows], np.int64).T
    times = np.array([row[2] for row in rows], np.float64)
    return LengthTrace(path, prompts, outputs, times - times[0])


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
    conversations = tuple(tuple(one.conversations) for one in found)
    answers = tuple(
        (number, turn)
        for number, turns in enumerate(conversations)
        for turn in range(1, len(turns))
        if turns[turn - 1].speaker in _USERS and turns[turn].speaker in _ASSISTANTS
    )
    if not answers:
        raise BenchmarkError(
            f"--workload {path} has no requests: none of its conversations has a turn from human "
            "followed by one from gpt"
        )
    return Dialogues(path, conversations, answers, count)


def _rows(path: str, reader: Iterator[list[str]]) -> Iterator[tuple[int, int, float | None]]:
    header = [name.strip() for name in next(reader, [])]
    for name in (_PROMPT, _OUTPUT):
        if name not in header:
            raise BenchmarkError(
                f"--workload {path} has no column {name}; needed are {_PROMPT} and {_OUTPUT}, "
                f"and {_ARRIVAL} for the times"
            )
    has_times = _ARRIVAL in header
    for number, values in enumerate(reader, 2):
        if not values:
            continue
        row = dict(zip(header, values, strict=False))
        where = f"--workload {path}, row {number}"
        yield (
            _tokens(where, _PROMPT, row.get(_PROMPT, "")),
            _tokens(where, _OUTPUT, row.get(_OUTPUT, "")),
            _seconds(where, row.get(_ARRIVAL, "")) if has_times else None,
        )


def _tokens(where: str, name: str, text: str) -> int:
    number = _number(text)
    if not (number.is_integer() and 1 <= number <= MAX_LENGTH):
        raise BenchmarkError(
            f"{where}: {name} is {text!r}, expected a whole number from 1 to {MAX_LENGTH:,}"
        )
    return int(number)


def _seconds(where: str, text: str) -> float:
    number = _number(text)
    if not math.isfinite(number):
        raise BenchmarkError(f"{where}: {_ARRIVAL} is {text!r}, expected a time in seconds")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _unreadable(path: str, error: Exception) -> BenchmarkError:
    reason = error.strerror if isinstance(error, OSError) else error
    return BenchmarkError(f"--workload {path} cannot be read: {reason}")


def _shuffled(size: int, count: int, rng: np.random.Generator) -> Tokens:
    rounds = -(-count // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:count]
