"""Each label against the first."""

from __future__ import annotations

from collections.abc import Callable

from sarathi.bench.number_format import MISSING, milliseconds, number, plain, rate, seconds
from sarathi.bench.report.measured import ReportData, rate_of
from sarathi.bench.report.table import LABEL, RATE, Cell, Column, Table, label_cell
from sarathi.telemetry import Summary

Shown = Callable[[float | None], str]

_VALUES: tuple[tuple[str, str, Callable[[Summary], float | None], Shown], ...] = (
    ("P50", "TTFT", lambda summary: summary.ttft.p50, seconds),
    ("P99", "TTFT", lambda summary: summary.ttft.p99, seconds),
    ("P50", "TBT", lambda summary: summary.tbt.p50, milliseconds),
    ("P99", "TBT", lambda summary: summary.tbt.p99, milliseconds),
    ("P99", "longest gap", lambda summary: summary.max_gap.p99, milliseconds),
    ("output tokens", "throughput", lambda summary: summary.output_tokens_per_second, rate),
)


def comparison_table(measured: ReportData) -> Table | None:
    """The shown runs relative to that of the first label, where there are several labels."""
    runs = {run.label: run for run in measured.shown}
    if len(runs) < 2:
        return None
    first = next(iter(runs))
    base = runs[first].summary
    capacities = {one.label: one.capacity for one in measured.capacity_results}
    with_capacity = len(measured.targets) == 1  # of several targets, whose would it be?
    rows = []
    for label, run in runs.items():
        row = [label_cell(measured, label), Cell(plain(rate_of(run)))]
        known = run.stopped is None and runs[first].stopped is None
        row += [
            _ratio(of(run.summary), of(base), shown) if known else Cell(MISSING)
            for _, _, of, shown in _VALUES
        ]
        if with_capacity:
            row.append(_ratio(capacities.get(label), capacities.get(first), rate))
        rows.append(row)
    columns = (LABEL, RATE, *(Column(head, group) for head, group, _, _ in _VALUES))
    if with_capacity:
        columns += (Column("capacity"),)
    caption = "Below 1 is better for times, above 1 for throughput"
    caption += " and capacity." if with_capacity else "."
    if len({rate_of(run) for run in runs.values()}) > 1:
        caption += " The rates differ: they are the nearest to one another that were measured."
    return Table(f"Compared with {first}", caption, columns, rows)


def _ratio(value: float | None, base: float | None, shown: Shown) -> Cell:
    note = "" if value is None else shown(value)
    if value is None or not base:
        return Cell(MISSING, note)
    ratio = value / base
    return Cell(f"{ratio:.2f}x" if 0.095 <= ratio < 10 else f"{number(ratio)}x", note)
