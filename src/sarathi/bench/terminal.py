"""Results and progress on a terminal: tables, sentences, a line for a run, JSON fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import rich.table
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sarathi.bench.report.measured import CapacityWithRuns, ReportData
from sarathi.bench.report.notes import run_notes
from sarathi.bench.report.result_tables import points_table, rounds_table, run_table
from sarathi.bench.report.table import Table, milliseconds, seconds
from sarathi.bench.results import Capacity, Row, Run
from sarathi.telemetry import RequestRecord

_INTERVAL = 1.0  # seconds between two updates: each takes a millisecond from the client
_LATEST = 5000  # values for the percentiles


@dataclass(eq=False)
class ProgressLine:
    """A `RunListener` that shows how many requests are running, and the latest percentiles."""

    title: str
    total: int  # requests, the warm-up included
    live: Live  # started by the caller, without automatic refresh

    def __post_init__(self) -> None:
        self._arrivals: dict[int, float] = {}
        self._latest: dict[int, float] = {}
        self._ttft: list[float] = []
        self._gaps: list[float] = []
        self._sent = self._ended = self._failed = 0
        self._updated = 0.0

    def sent(self, index: int, now: float) -> None:
        self._sent += 1
        self._arrivals[index] = now

    def progressed(self, index: int, times: Sequence[float]) -> None:
        before = self._latest.get(index)
        for time in times:
            if before is None:
                self._ttft.append(time - self._arrivals[index])
            else:
                self._gaps.append(time - before)
            before = time
        if before is not None:
            self._latest[index] = before

    def ended(self, index: int, record: RequestRecord) -> None:
        self._ended += 1
        self._failed += record.failure is not None

    def stop_reason(self, now: float) -> str | None:
        """Update the line once a second; never stops a run."""
        if now - self._updated >= _INTERVAL:
            self._updated = now
            self.live.update(Text(self.line(now)), refresh=True)
        return None

    def line(self, now: float) -> str:
        """Return the line at a time since the run began."""
        del self._ttft[:-_LATEST], self._gaps[:-_LATEST]
        parts = [
            f"{self.title}  {self._ended}/{self.total} done",
            f"{self._sent - self._ended} running",
            f"{self._sent / now if now else 0:.2f} sent/s",
        ]
        if self._failed:
            parts.append(f"{self._failed} failed")
        for name, values, shown in (
            ("TTFT", self._ttft, seconds),
            ("TBT", self._gaps, milliseconds),
        ):
            if values:
                p50, p99 = np.percentile(values, (50, 99))
                parts.append(f"{name} P50 {shown(p50)} P99 {shown(p99)}")
        return "  ".join(parts)


_CONDITIONS = (
    "label server model machine workload rate seed salt num_shortened began lag invalid stopped "
    "simulation"
)


def run_fields(run: Run) -> dict[str, Any]:
    """Return what `sarathi bench --json` prints: summary and conditions, without requests."""
    fields: dict[str, Any] = msgspec.to_builtins(run.summary)
    fields |= {name: msgspec.to_builtins(getattr(run, name)) for name in _CONDITIONS.split()}
    return fields | {"estimated": any(record.estimated for record in run.records)}


def print_run(run: Run) -> None:
    """Print the latencies of a run, and what a reader must know beside them."""
    summary, console = run.summary, _console()
    console.print(rich_table(run_table(run)))
    console.print(
        f"{summary.completed} of {summary.requests} requests complete, "
        f"{summary.request_rate:.3g} sent a second; "
        f"{summary.output_tokens_per_second:.1f} output tokens and "
        f"{summary.total_tokens_per_second:.1f} tokens in all a second"
    )
    for note in run_notes(run):
        console.print(note)


def print_capacities(capacities: Sequence[Capacity]) -> None:
    """Print the points and the outcome of each search, and ratios to the first."""
    console = _console()
    for capacity in capacities:
        points = points_table(ReportData(capacities=[CapacityWithRuns(capacity)]))
        if points is not None:
            console.print(rich_table(points, capacity.label))
        console.print(capacity_text(capacity))
        if capacity.accuracy is not None:
            console.print(f"simulated; accuracy: {capacity.accuracy}")
    first, *others = capacities
    for other in others:
        if first.capacity and other.capacity:
            ratio = other.capacity / first.capacity
            console.print(f"{other.label}: {ratio:.2f} of {first.label}")


def print_comparison(rows: Sequence[Row]) -> None:
    """Print a row for each target at each rate."""
    _console().print(rich_table(rounds_table(rows)))


def capacity_text(capacity: Capacity) -> str:
    """Return the outcome of a search as a sentence."""
    target = f"P99 TBT of {milliseconds(capacity.tbt_target)}"
    if capacity.capacity is None:
        lowest = min(point.rate for point in capacity.points)
        return f"no capacity: even {lowest:g} requests a second miss {target}"
    low = "none" if capacity.low is None else f"{capacity.low:g}"
    if capacity.open_ended:
        return (
            f"capacity: at least {capacity.capacity:g} requests a second within {target}: no rate "
            f"that was tried misses it (for certain: {low} meets it)"
        )
    high = "none" if capacity.high is None else f"{capacity.high:g}"
    return (
        f"capacity: {capacity.capacity:g} requests a second within {target} "
        f"(for certain: {low} meets it, {high} misses it)"
    )


def _console() -> Console:
    """Labels and reasons are printed literally, without rich's markup in [brackets]."""
    return Console(highlight=False, markup=False, emoji=False)


def rich_table(table: Table, title: str | None = None) -> rich.table.Table:
    """Convert a table for a terminal; the rows of all labels follow one another without a head."""
    shown = rich.table.Table(title=title or table.title, title_justify="left", pad_edge=False)
    for group, columns in table.groups:
        for column in columns:
            head = f"{group}\n{column.head}" if group else column.head
            shown.add_column(head, justify="left" if column.prose else "right", overflow="fold")
    for _, rows in table.sections:
        for row in rows:
            shown.add_row(*("\n".join(filter(None, (cell.text, cell.note))) for cell in row))
    return shown
