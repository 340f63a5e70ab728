"""The results of measurements: their structures, and their files (JSON, gzip where named .gz).

Runs of several targets with the same requests are compared by their ratios.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from sarathi.errors import BenchmarkError
from sarathi.system.machine import processor_name, total_memory, usable_cores
from sarathi.telemetry import RequestRecord, Summary, Targets
from sarathi.telemetry.iteration_log import IterationLine

RESULT_NAME = "result.json"  # the outcome in a folder of results
PARTIAL = ".partial"  # suffix of files that are not yet complete

_RUN_FILE = re.compile(r"run-.+\.json(\.gz)?")
_FORMAT = 1  # is raised when older files can no longer be read
_DIGITS = 4  # of seconds: a client's clock is exact to 0.1 ms
_GZIP = b"\x1f\x8b"


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How late the client itself was, in seconds: the worse of heartbeats and of sending."""

    p50: float
    p99: float
    max: float
    cpu: float  # CPU time of the client per second of the run


class ReplicaUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one simulated replica computed. Times are seconds."""

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

    @classmethod
    def pooled(cls, replicas: Sequence[ReplicaUse]) -> ReplicaUse:
        """Return what replicas with the same stages computed together."""
        sums = ("iterations", "tokens", "decodes", "preemptions", "active", "overhead")
        totals = {name: sum(getattr(use, name) for use in replicas) for name in sums}
        kv_seconds = sum(use.kv_mean * use.active for use in replicas)
        return cls(
            **totals,
            busy=np.sum([use.busy for use in replicas], axis=0).tolist(),
            bubbles=np.sum([use.bubbles for use in replicas], axis=0).tolist(),
            kv_mean=kv_seconds / (totals["active"] or 1.0),
            kv_max=max(use.kv_max for use in replicas),
        )

    @property
    def stage_shares(self) -> list[tuple[float, float]]:
        """The busy and the idle share of the active time of each stage; none without such time."""
        stages = zip(self.busy, self.bubbles, strict=True)
        return [(busy / self.active, idle / self.active) for busy, idle in stages if self.active]


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """The simulated hardware of a run, and how it was used."""

    deployment: dict[str, str]  # as options are written
    num_devices: int
    replicas: list[ReplicaUse]
    cost_per_million_tokens: float | None  # dollars, of all tokens; None where no price is given
    records_every: int  # of so many requests, the records hold one; the summary is of all
    accuracy: str  # of the cost model, in a sentence


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server, with all its requests."""

    label: str  # the name of the server in tables and figures
    server: str  # its URL, or the command that started it
    model: str
    workload: dict[str, str]  # the options that describe it, as they are written
    machine: str
    began: float  # Unix time
    rate: float | None  # requests per second asked for; None for a trace's own times
    seed: int
    salt: str  # made the prompts differ from those of other runs
    num_shortened: int = 0  # requests cut to fit the longest context of the server
    records: list[RequestRecord]  # warm-up excluded
    summary: Summary
    lag: Lag
    targets: Targets | None = None  # of the goodput
    invalid: str | None = None  # why the figures must not be used
    stopped: str | None = None  # why it ended before all requests were sent
    simulation: Simulation | None = None  # None: it was measured


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of a capacity search."""

    rate: float
    met: bool
    reason: str  # why it met the target, or what it missed
    certain: bool  # with 95 % confidence, other requests would give the same verdict
    stopped: bool = False  # early: the summary covers only the requests that had ended
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
    delay_target: float  # seconds, for the median scheduling delay, or TTFT instead
    requests_per_point: int
    resolution: float  # relative
    capacity: float | None  # the highest rate that met the targets; None: none did
    low: float | None  # the highest rate that certainly met them
    high: float | None  # the lowest rate that certainly missed them
    points: list[Point]  # in the order of their rates
    tail_delay_target: float | None = None  # seconds, likewise for P90; None: none
    accuracy: str | None = None  # of the cost model, where the search was simulated

    @property
    def open_ended(self) -> bool:
        """Whether no rate missed the targets, so that the capacity may be higher."""
        return self.capacity is not None and all(point.met for point in self.points)


class _ResultFile(msgspec.Struct, frozen=True):
    kind: Literal["run", "capacity"]
    format: int
    content: msgspec.Raw = msgspec.Raw()


def save(path: Path, value: Run | Capacity) -> None:
    """Write a result, with times rounded to 0.1 ms; raise BenchmarkError where that fails."""
    kind: Literal["run", "capacity"] = "capacity"
    if isinstance(value, Run):
        kind, value = "run", replace(value, records=[_rounded(one) for one in value.records])
    data = msgspec.json.encode({"kind": kind, "format": _FORMAT, "content": value})
    if path.suffix == ".gz":
        data = gzip.compress(data, 1, mtime=0)  # digits of times hardly get smaller beyond level 1
    write(path, data)


def load_results(path: Path) -> Run | Capacity:
    """Read a result; raise BenchmarkError where it is missing, damaged, or of another version."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        file = msgspec.json.decode(data, type=_ResultFile)
        if file.format == _FORMAT:
            if file.kind == "run":
                return msgspec.json.decode(file.content, type=Run)
            return msgspec.json.decode(file.content, type=Capacity)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BenchmarkError(f"{path} is no result, or is damaged: {error}") from None
    raise BenchmarkError(f"{path} has format {file.format}, this version reads {_FORMAT}")


def load_run(path: Path) -> Run:
    """Read a run; raise BenchmarkError where it cannot be read, or is no run."""
    run = load_results(path)
    if not isinstance(run, Run):
        raise BenchmarkError(f"{path} is the result of a search, expected a run")
    return run


def load_all(path: Path) -> list[tuple[Path, Run | Capacity]]:
    """Read all results of a file, the folder of a search or a folder with runs, with their paths.

    Raises:
        BenchmarkError: a file cannot be read, or there is no result.
    """
    if not path.is_dir():
        return [(path, load_results(path))]
    if (path / RESULT_NAME).exists():
        return [(path / RESULT_NAME, load_results(path / RESULT_NAME))]
    files = sorted(file for file in path.iterdir() if _RUN_FILE.fullmatch(file.name))
    if not files:
        raise BenchmarkError(f"{path} holds no results")
    return [(file, load_run(file)) for file in files]


def runs_of(capacity: Capacity, folder: Path) -> list[Run]:
    """Read the runs of a search beside its result, in the order of points, as far as they exist.

    Raises:
        BenchmarkError: a file exists, but cannot be read.
    """
    runs = []
    for point in capacity.points:
        for repeat in count():
            file = folder / run_name(point.rate, repeat)
            if not file.is_file():
                break
            runs.append(load_run(file))
    return runs


def run_name(rate: float, repeat: int) -> str:
    """Return the file name of a run of a search; those of one rate are numbered from 0."""
    number = f"-{repeat + 1}" if repeat else ""
    return f"run-{rate:.9g}{number}.json.gz"


def write(path: Path, data: bytes) -> None:
    """Write a file completely or, with a BenchmarkError, not at all, even if the power fails."""
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_bytes(data)
            return
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> BenchmarkError:
    """Return the error of a file or folder."""
    return BenchmarkError(f"{path} cannot be written: {error.strerror or error}")


def _rounded(record: RequestRecord) -> RequestRecord:
    """Round all times: those of tokens are most of a file, and most of their digits are noise."""
    delay = record.scheduling_delay
    return replace(
        record,
        arrival=round(record.arrival, _DIGITS),
        tokens=np.round(record.tokens, _DIGITS).tolist(),
        end=round(record.end, _DIGITS),
        scheduling_delay=None if delay is None else round(delay, _DIGITS),
        lag=round(record.lag, _DIGITS),
    )


def load_iterations(path: Path) -> list[IterationLine]:
    """Read what a server wrote with `--iteration-log`, without an incomplete last line.

    Raises:
        BenchmarkError: the file is no iteration log.
    """
    decoder = msgspec.json.Decoder(IterationLine)
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            found.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BenchmarkError(f"{path} is no iteration log: line {number}: {error}") from None
    return found


def describe_machine() -> str:
    """Return the processor, usable cores and memory, and operating system of this machine."""
    memory = total_memory() / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{usable_cores()} cores of {processor_name()}, {memory:.0f} GiB, {system}"


# What is compared, by name, and how to read it from a run.
FIGURES: dict[str, Callable[[Run], float | None]] = {
    "ttft_p50": lambda run: run.summary.ttft.p50,
    "ttft_p99": lambda run: run.summary.ttft.p99,
    "tbt_p50": lambda run: run.summary.tbt.p50,
    "tbt_p99": lambda run: run.summary.tbt.p99,
    "max_gap_p99": lambda run: run.summary.max_gap.p99,
    "output_tokens_per_second": lambda run: run.summary.output_tokens_per_second,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One target at one rate: medians over the rounds."""

    label: str
    rate: float | None
    requests: int  # in all rounds
    failed: int  # in all rounds
    invalid: int  # runs that are left out of all figures
    figures: dict[str, float | None]  # by the names of `FIGURES`
    ratios: dict[str, float | None]  # to the first target, round by round


def measurement_order(
    rates: Sequence[float | None], num_targets: int, rounds: int
) -> Iterator[tuple[int, float | None, list[int]]]:
    """Yield the round, the rate, and the order of the targets for each set of measurements.

    All targets are measured at a rate before the next rate. Each round starts with another target,
    so that a machine that becomes slower or faster, and warm caches, affect all of them alike.
    """
    for number in range(rounds):
        for rate in rates:
            yield number, rate, [(number + at) % num_targets for at in range(num_targets)]


def compare_runs(runs: Sequence[Run], labels: Sequence[str]) -> list[Row]:
    """Return a row for each target at each rate.

    Args:
        runs: as many of each target at each rate, rounds in order.
        labels: of the targets; ratios are to the first.
    """
    grouped: dict[tuple[float, int], list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.rate or 0.0, labels.index(run.label)].append(run)
    rows = []
    for (rate, index), own in sorted(grouped.items(), key=lambda item: item[0]):
        valid = [run for run in own if run.invalid is None]
        pairs = [
            (run, first)
            for run, first in zip(own, grouped[rate, 0], strict=False)
            if run.invalid is None and first.invalid is None
        ]
        row = Row(
            label=labels[index],
            rate=own[0].rate,
            requests=sum(run.summary.requests for run in own),
            failed=sum(run.summary.requests - run.summary.completed for run in own),
            invalid=len(own) - len(valid),
            figures={name: _median(map(read, valid)) for name, read in FIGURES.items()},
            ratios={
                name: _median(divided(read(run), read(first)) for run, first in pairs)
                for name, read in FIGURES.items()
            },
        )
        rows.append(row)
    return rows


def divided(value: float | None, base: float | None) -> float | None:
    """Return the quotient where there is one."""
    return None if value is None or not base else value / base


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
