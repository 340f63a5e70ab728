"""What measurements leave behind: the files that reports are made of."""

from __future__ import annotations

import msgspec

from sarathi.metrics import RequestRecord, Summary, Targets


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How late the client itself was, in seconds: the worse of sending requests, and of waking up
    regularly."""

    p50: float
    p99: float
    max: float
    cpu: float  # CPU time of the client per second of the run


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server, with all its requests."""

    label: str  # who was measured, for tables and plots
    server: str  # its URL, or the command that started it
    model: str
    workload: dict[str, str]  # the options that describe it, as they are written
    machine: str
    began: float  # Unix time
    rate: float | None  # requests per second asked for; None for a trace's own times
    seed: int
    salt: str  # what made the texts differ from those of other runs
    num_shortened: int = 0  # requests cut to fit the longest context of the server
    records: list[RequestRecord]  # warm-up excluded
    summary: Summary
    lag: Lag
    targets: Targets | None = None  # those of its goodput
    invalid: str | None = None  # why the figures must not be used
    stopped: str | None = None  # why it ended before all requests were sent


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A rate that a capacity search has tried."""

    rate: float
    met: bool
    reason: str  # why it met the target, or what it missed
    certain: bool  # with 95 % confidence another set of requests would have said the same
    stopped: bool = False  # early: its figures are of the requests that had ended, not of all
    summary: Summary
    run: str  # the file of its first run, beside the result


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a capacity search. Rates are requests per second."""

    label: str
    server: str
    model: str
    workload: dict[str, str]
    machine: str
    tbt_target: float  # seconds, for P99
    delay_target: float  # seconds, for the median scheduling delay, or TTFT in its place
    requests_per_point: int
    resolution: float  # relative
    capacity: float | None  # the highest rate found to meet the targets; None: none did
    low: float | None  # the highest rate that met them for certain
    high: float | None  # the lowest rate that missed them for certain
    points: list[Point]  # in the order of their rates

    @property
    def open_ended(self) -> bool:
        """No rate that was tried missed the targets: the capacity may be higher."""
        return self.capacity is not None and all(point.met for point in self.points)
