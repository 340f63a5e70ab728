"""The requests of a run, as lengths and times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np

from sarathi.bench.workload.arrivals import TRACE, ArrivalProcess, Times, process_from, stretched
from sarathi.bench.workload.lengths import (
    MAX_LENGTH,
    IndependentLengths,
    LengthPairs,
    LengthTrace,
    Tokens,
    parse_lengths,
    read_dialogues,
    read_trace,
    whole,
)
from sarathi.bench.workload.presets import PRESETS
from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.errors import BenchmarkError

_MIN_UNFINISHED = 8  # unfinished conversations that a run soon has, at least
_PIECE = 4096  # requests per chunk of an iteration


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request to be sent."""

    at: float  # seconds after the run begins
    prompt_tokens: int
    output_tokens: int
    conversation: int  # requests of one conversation share a prefix
    turn: int  # counts from 0


@dataclass(frozen=True, eq=False)
class Plan:
    """All requests of a run, those of the warm-up first. A request takes 40 bytes."""

    times: Times
    prompts: Tokens
    outputs: Tokens
    conversations: Tokens
    turns: Tokens
    num_warm_up: int
    measured_seconds: float  # in which the requests after the warm-up arrive
    num_shortened: int  # requests cut, prompt and output in proportion, to fit the longest total

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[PlannedRequest]:
        columns = (self.times, self.prompts, self.outputs, self.conversations, self.turns)
        for begin in range(0, len(self), _PIECE):
            pieces = (column[begin : begin + _PIECE].tolist() for column in columns)
            yield from map(PlannedRequest, *pieces)

    @property
    def requests(self) -> tuple[PlannedRequest, ...]:
        return tuple(self)


@dataclass(frozen=True)
class Workload:
    """Lengths and arrivals, from which plans are made.

    With `turns` above 1, requests are turns of conversations that are mixed at random. The sampled
    prompt length is then what the turn adds; the prompt consists of all earlier turns and that.
    Arrivals never wait for answers, since a slow server would otherwise receive less: earlier
    answers in a prompt are therefore invented, with their sampled lengths. A conversation that
    would grow too long starts over.
    """

    pairs: LengthPairs
    arrivals: ArrivalProcess | None  # None: the trace's own times
    source: Mapping[str, str]  # the options that the pairs are from
    prompt_scale: float = 1.0
    output_scale: float = 1.0
    max_prompt: int | None = None  # tokens; longer ones are cut
    max_output: int | None = None
    turns: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "output"):
            scale = getattr(self, f"{name}_scale")
            if not 0 < scale <= 1000:
                raise BenchmarkError(f"--{name}-scale {scale:g} must be above 0 and at most 1000")
        _check_at_least(1, max_prompt=self.max_prompt, max_output=self.max_output, turns=self.turns)
        if self.arrivals is None and getattr(self.pairs, "arrived_at", None) is None:
            raise BenchmarkError(
                f"--arrivals {TRACE} needs --workload FILE.csv with a column arrived_at"
            )

    @classmethod
    def from_options(
        cls,
        *,
        workload: str | None = None,
        prompt_lengths: str | None = None,
        output_lengths: str | None = None,
        arrivals: str = "poisson",
        tokens: TokenCounter | None = None,
        **shape: Any,
    ) -> Workload:
        """Make a workload from the options of the command line.

        Args:
            workload: a preset, FILE.csv or FILE.json; otherwise both kinds of lengths are required.
            tokens: counts the tokens of a JSON file; required only for such files.
            shape: the other fields, such as `max_prompt` and `turns`.

        Raises:
            BenchmarkError: an option is wrong, missing, or one too many.
        """
        pairs = _parse_pairs(workload, prompt_lengths, output_lengths, tokens)
        given = (
            ("workload", workload),
            ("prompt-lengths", prompt_lengths),
            ("output-lengths", output_lengths),
        )
        source = {option: text for option, text in given if text is not None}
        return cls(pairs, process_from(arrivals), source, **shape)

    def describe(self) -> dict[str, str]:
        """Return the options of this workload that differ from the defaults, without dashes."""
        arrivals = TRACE if self.arrivals is None else self.arrivals.text
        options = {**self.source, "arrivals": arrivals}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default not in (MISSING, value):
                options[field.name.replace("_", "-")] = f"{value}"
        return options

    def plan(
        self, rate: float | None, num_requests: int, warm_up: int, seed: int, max_total: int | None
    ) -> Plan:
        """Plan the requests of one run.

        The same seed gives the same requests at every rate; more requests keep the first ones. For
        equal numbers of requests, the times are the same up to scale.

        Args:
            rate: requests per second, exact for those after the warm-up; None for the
                times of a trace as they are.
            num_requests: measured ones; `warm_up` more come before, at the same rate.
            max_total: tokens of prompt and output together, at most.

        Raises:
            BenchmarkError: a number is out of range, the trace has too few requests, or no
                conversation has room for a second turn.
        """
        self._check(rate, num_requests, warm_up, seed, max_total)
        for_times, for_lengths, for_turns = np.random.default_rng(seed).spawn(3)
        total = warm_up + num_requests
        if self.arrivals is None:
            times, seconds, pairs = self._from_trace(total, warm_up, rate)
        else:
            assert rate is not None
            begin, seconds = warm_up / rate, num_requests / rate
            before = self.arrivals.times(warm_up, rate, for_times)
            after = begin + self.arrivals.times(num_requests, rate, for_times)
            times, pairs = np.concatenate([before, after]), self.pairs.sample(total, for_lengths)
        prompts, outputs = (
            np.minimum(whole(lengths.astype(np.float64) * scale), longest or MAX_LENGTH)
            for lengths, scale, longest in (
                (pairs[0], self.prompt_scale, self.max_prompt),
                (pairs[1], self.output_scale, self.max_output),
            )
        )
        prompts, outputs, num_shortened = _shortened(prompts, outputs, max_total)
        conversations, numbers = np.arange(total), np.zeros(total, np.int64)
        if self.turns > 1:
            prompts, conversations, numbers = _converse(
                prompts, outputs, self.turns, self.max_prompt, max_total, for_turns
            )
        return Plan(
            times, prompts, outputs, conversations, numbers, warm_up, seconds, num_shortened
        )

    def _from_trace(
        self, total: int, warm_up: int, rate: float | None
    ) -> tuple[Times, float, tuple[Tokens, Tokens]]:
        trace = self.pairs
        assert isinstance(trace, LengthTrace)
        assert trace.arrived_at is not None
        if total > len(trace.prompts):
            raise BenchmarkError(
                f"--num-requests {total - warm_up} with a warm-up of {warm_up} is more than the "
                f"{len(trace.prompts)} requests that {trace.path} has times for"
            )
        times, seconds = stretched(trace.arrived_at[:total], warm_up, rate)
        return times, seconds, (trace.prompts[:total], trace.outputs[:total])

    def _check(
        self, rate: float | None, num_requests: int, warm_up: int, seed: int, max_total: int | None
    ) -> None:
        if rate is None and self.arrivals is not None:
            raise BenchmarkError(
                f"--rate is missing: only --arrivals {TRACE} does without, not {self.arrivals.text}"
            )
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise BenchmarkError(f"--rate {rate:g} must be a number above 0")
        _check_at_least(1, num_requests=num_requests)
        _check_at_least(0, warm_up=warm_up, seed=seed)
        if max_total is not None and max_total < 2:
            raise BenchmarkError(f"a longest total of {max_total} tokens holds no request")


@dataclass(frozen=True)
class Load:
    """The requests that are sent; their rate is given separately."""

    workload: Workload
    num_requests: int  # measured ones
    warm_up: int  # requests before them
    seed: int
    salt: str = ""  # makes the texts of prompts differ from those of other runs

    def plan(self, rate: float | None, max_total: int | None) -> Plan:
        """Plan the requests at a rate, as `Workload.plan`."""
        return self.workload.plan(rate, self.num_requests, self.warm_up, self.seed, max_total)


def _parse_pairs(
    workload: str | None,
    prompt_lengths: str | None,
    output_lengths: str | None,
    tokens: TokenCounter | None,
) -> LengthPairs:
    """Return the lengths of a preset or file, or of two distributions."""
    files = f"{', '.join(PRESETS)}, FILE.csv"
    if workload is None:
        if prompt_lengths is None or output_lengths is None:
            raise BenchmarkError(
                f"lengths are missing: give --workload ({files} or FILE.json), or both "
                "--prompt-lengths and --output-lengths, such as lognormal:430,1400 and "
                "lognormal:60,130"
            )
        return IndependentLengths(
            parse_lengths(prompt_lengths, "--prompt-lengths"),
            parse_lengths(output_lengths, "--output-lengths"),
        )
    for option, text in (("prompt", prompt_lengths), ("output", output_lengths)):
        if text is not None:
            raise BenchmarkError(
                f"--{option}-lengths {text} cannot be had with --workload {workload}, "
                "which has lengths of its own"
            )
    if workload in PRESETS:
        return PRESETS[workload]
    if workload.lower().endswith(".csv"):
        return read_trace(workload)
    if not workload.lower().endswith(".json"):
        raise BenchmarkError(
            f"--workload {workload} is unknown; accepted are {files} and FILE.json"
        )
    if tokens is None:
        raise BenchmarkError(f"--workload {workload} needs a tokenizer: name one with --tokenizer")
    return read_dialogues(workload, tokens.count)


def _check_at_least(least: int, **options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise BenchmarkError(f"--{option} {value} must be at least {least}")


def _shortened(
    prompts: Tokens, outputs: Tokens, max_total: int | None
) -> tuple[Tokens, Tokens, int]:
    """With prompts and outputs cut in proportion where they are too long together."""
    if max_total is None:
        return prompts, outputs, 0
    totals = prompts + outputs
    long = totals > max_total
    cut = np.clip(prompts * max_total // totals, 1, max_total - 1)
    outputs = np.where(long, max_total - cut, outputs)
    return np.where(long, cut, prompts), outputs, int(np.count_nonzero(long))


def _converse(
    new: Tokens,
    outputs: Tokens,
    turns: int,
    max_prompt: int | None,
    max_total: int | None,
    rng: np.random.Generator,
) -> tuple[Tokens, Tokens, Tokens]:
    """Group requests, in the order of arrival, into conversations of `turns` turns.

    One request in `turns`, at random, starts a conversation; so do others while few conversations
    are unfinished, so that a turn rarely arrives while the one before is being answered. All other
    requests continue an unfinished one, also at random. All of this depends only on earlier
    requests. A conversation that would become too long with its next turn starts over with it.

    Args:
        new: tokens that each request adds to its conversation; on their own not too long.
        outputs: tokens of the answers, which are part of later prompts.

    Returns:
        Of each request: tokens of the prompt with all earlier turns, conversation, and turn in it.

    Raises:
        BenchmarkError: all second turns would have been too long.
    """
    limits = {"a --max-prompt": max_prompt, "a context": max_total}
    longest_prompt, longest_total = (limit or math.inf for limit in limits.values())
    made: list[tuple[int, int, int]] = []
    unfinished: list[tuple[int, int, int, int]] = []  # tokens, conversation, turn, turns to come
    started, cut = 0, False
    chances = rng.random((len(new), 2)).tolist()
    for added, answer, (begin, which) in zip(new.tolist(), outputs.tolist(), chances, strict=True):
        before, conversation, turn, left = 0, 0, 0, turns
        if len(unfinished) > min(len(made) // turns, _MIN_UNFINISHED) and begin * turns >= 1:
            before, conversation, turn, left = unfinished.pop(int(which * len(unfinished)))
        if before + added > longest_prompt or before + added + answer > longest_total:
            before, cut = 0, True
        if not before:
            conversation, turn = started, 0
            started += 1
        made.append((before + added, conversation, turn))
        if left > 1:
            unfinished.append((before + added + answer, conversation, turn + 1, left - 1))
    prompts, conversations, numbers = np.array(made).T
    if cut and not numbers.any():
        named = (f"{name} of {limit} tokens" for name, limit in limits.items() if limit is not None)
        raise BenchmarkError(
            f"--turns {turns} has no effect: with {' and '.join(named)}, no conversation has room "
            "for a second turn"
        )
    return prompts, conversations, numbers
