"""Where results go: JSON on standard output, and a page with figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sarathi.bench.report import CapacityWithRuns, write_report
from sarathi.bench.results import Run
from sarathi.cli.measuring import Screen
from sarathi.telemetry.iteration_log import IterationLine


def print_json(value: Any) -> None:
    """One object on one line."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def report(
    path: str | None,
    runs: Sequence[Run],
    capacities: Sequence[CapacityWithRuns],
    screen: Screen,
    iterations: Sequence[IterationLine] = (),
) -> None:
    """Write a page, if one is asked for.

    Raises:
        BenchmarkError: it cannot be written.
    """
    if path is None:
        return
    files = write_report(Path(path), runs, capacities, iterations)
    screen.say(f"the report is {files[0]}, with {len(files) - 1} figures beside it")
