"""Where results go: JSON on standard output, and a page with figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sarathi.benchmark.errors import BenchmarkError
from sarathi.benchmark.report import CapacityWithRuns, write_report
from sarathi.benchmark.results import Run
from sarathi.cli.measuring import Screen
from sarathi.engine.iteration_log import Line


def print_json(value: Any) -> None:
    """One object on one line."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def report(
    path: str | None,
    runs: Sequence[Run],
    capacities: Sequence[CapacityWithRuns],
    screen: Screen,
    iteration_log: Path | None = None,
) -> None:
    """Write a page, if one is asked for.

    Raises:
        BenchmarkError: it cannot be written, or the iteration log is none.
    """
    if path is None:
        return
    files = write_report(Path(path), runs, capacities, read_iterations(iteration_log))
    screen.say(f"the report is {files[0]}, with {len(files) - 1} figures beside it")


def read_iterations(path: Path | None) -> list[Line]:
    """What a server wrote with `--iteration-log`; a server that was killed has cut its last line.

    Raises:
        BenchmarkError: the file is no iteration log.
    """
    if path is None:
        return []
    decoder = msgspec.json.Decoder(Line)
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            found.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BenchmarkError(f"{path} is no iteration log: line {number}: {error}") from None
    return found
