"""Results as files: JSON, compressed where the name ends in .gz."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from sarathi.bench.results import Capacity, Run
from sarathi.errors import BenchmarkError
from sarathi.telemetry import RequestRecord
from sarathi.telemetry.iteration_log import IterationLine

RESULT_NAME = "result.json"  # of the outcome in a folder of results
PARTIAL = ".partial"  # how names of files end that are not yet whole

_RUN_FILE = re.compile(r"run-.+\.json(\.gz)?")
_FORMAT = 1  # goes up when files of before can no longer be read
_DIGITS = 4  # of seconds: a client's clock tells no more than 0.1 ms
_LEVEL = 1  # of compression: digits of times hardly get smaller beyond
_GZIP = b"\x1f\x8b"


class _Header(msgspec.Struct, frozen=True):
    kind: Literal["run", "capacity"]
    format: int


class _RunFile(msgspec.Struct, frozen=True, tag_field="kind", tag="run"):
    format: int
    content: Run


class _CapacityFile(msgspec.Struct, frozen=True, tag_field="kind", tag="capacity"):
    format: int
    content: Capacity


def save(path: Path, value: Run | Capacity) -> None:
    """Write a result, with times rounded to 0.1 ms.

    Raises:
        BenchmarkError: the file cannot be written.
    """
    if isinstance(value, Run):
        file: _RunFile | _CapacityFile = _RunFile(_FORMAT, _rounded(value))
    else:
        file = _CapacityFile(_FORMAT, value)
    data = msgspec.json.encode(file)
    write(path, gzip.compress(data, _LEVEL, mtime=0) if path.suffix == ".gz" else data)


def load_results(path: Path) -> Run | Capacity:
    """
    Args:
        path: a file that `save` has written.

    Raises:
        BenchmarkError: there is none, it is damaged, or of another version.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        header = msgspec.json.decode(data, type=_Header)
        if header.format == _FORMAT:
            return msgspec.json.decode(data, type=_RunFile | _CapacityFile).content
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BenchmarkError(f"{path} is no result, or is damaged: {error}") from None
    raise BenchmarkError(f"{path} has format {header.format}, this version reads {_FORMAT}")


def load_run(path: Path) -> Run:
    """
    Raises:
        BenchmarkError: it cannot be read, or is no run.
    """
    run = load_results(path)
    if not isinstance(run, Run):
        raise BenchmarkError(f"{path} is the result of a search, expected a run")
    return run


def load_all(path: Path) -> list[tuple[Path, Run | Capacity]]:
    """What a file or a folder holds, with the file that each is from.

    Args:
        path: a file, a folder with the result of a search, or one with runs.

    Raises:
        BenchmarkError: a file cannot be read, or there is none.
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
    """The runs behind a result, in the order of its points, as far as their files are there.

    Args:
        folder: of the result.

    Raises:
        BenchmarkError: a file is there, but cannot be read.
    """
    return [load_run(file) for point in capacity.points for file in _files(point.rate, folder)]


def run_name(rate: float, repeat: int) -> str:
    """What the file of a search's run is called.

    Args:
        repeat: its number among the runs of this rate, from 0.
    """
    number = f"-{repeat + 1}" if repeat else ""
    return f"run-{rate:.9g}{number}.json.gz"


def _files(rate: float, folder: Path) -> Iterator[Path]:
    files = (folder / run_name(rate, repeat) for repeat in count())
    return takewhile(Path.is_file, files)


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or not there at all, even if the power fails.

    Raises:
        BenchmarkError: it cannot be written.
    """
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
        _sync_folder(path.parent)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error.strerror or error}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rounded(run: Run) -> Run:
    """Times of tokens are most of a file, and most of their digits are noise."""
    counts = [len(record.tokens) for record in run.records]
    times = np.array([time for record in run.records for time in record.tokens], np.float64)
    tokens = np.round(times, _DIGITS).tolist()
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    records = [
        _with_times(record, tokens[end - count : end])
        for record, count, end in zip(run.records, counts, ends, strict=True)
    ]
    return replace(run, records=records)


def _with_times(record: RequestRecord, tokens: Sequence[float]) -> RequestRecord:
    delay = record.scheduling_delay
    return replace(
        record,
        arrival=round(record.arrival, _DIGITS),
        tokens=tokens,
        end=round(record.end, _DIGITS),
        scheduling_delay=None if delay is None else round(delay, _DIGITS),
        lag=round(record.lag, _DIGITS),
    )


def load_iterations(path: Path) -> list[IterationLine]:
    """What a server wrote with `--iteration-log`; a server that was killed has cut its last line.

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
