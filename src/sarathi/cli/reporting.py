"""Where results go: JSON on standard output, and a page with figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sarathi.benchmark.files import load_iterations
from sarathi.benchmark.report import CapacityWithRuns, write_report
from sarathi.benchmark.results import Run
from sarathi.cli.measuring import Screen


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
    files = write_report(
        Path(path),
        runs,
        capacities,
        [] if iteration_log is None else load_iterations(iteration_log),
    )
    screen.say(f"the report is {files[0]}, with {len(files) - 1} figures beside it")
