"""What measurements leave behind: the files that reports are made of."""

from __future__ import annotations

import msgspec

from sarathi.telemetry import RequestRecord, Summary, Targets


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How late the client itself was, in seconds: the worse of sending requests, and of waking up
    regularly."""

    p50: float
    p99: float
    max: float
    cpu: float  # CPU time of the client per second of the run


class ReplicaUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one simulated replica did. Times are seconds."""

    iterations: int
    tokens: int  # computed, decodes included
    decodes: int  # of those
    preemptions: int
    active: float  # time in which there were requests
    busy: list[float]  # of each pipeline stage
    bubbles: list[float]  # of each pipeline stage: idle although there were requests
    overhead: float  # time in which the engine prepared iterations
    kv_mean: float  # share of the KV blocks in use, over the active time
    kv_max: float


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """How a simulated run came about."""

    deployment: dict[str, str]  # as options are written
    num_devices: int
    replicas: list[ReplicaUse]
    cost_per_million_tokens: float | None  # dollars, of all tokens; None where no price is given
    records_every: int  # of so many requests, the records hold one; the summary is of all
    accuracy: str  # of the cost model, in a sentence


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
    simulation: Simulation | None = None  # None: it was real


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
    tail_delay_target: float | None = None  # seconds, likewise for P90; None: none
    accuracy: str | None = None  # of the cost model, where the search was simulated

    @property
    def open_ended(self) -> bool:
        """No rate that was tried missed the targets: the capacity may be higher."""
        return self.capacity is not None and all(point.met for point in self.points)
