"""Every load that was measured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from sarathi.bench.number_format import MISSING, number, percent, plain
from sarathi.bench.report.measured import LoadGroup, ReportData, rate_of
from sarathi.bench.report.table import (
    LABEL,
    RATE,
    Cell,
    Column,
    Table,
    complete_cell,
    failure_counts,
    in_milliseconds,
    label_cell,
    percentile_cell,
)
from sarathi.bench.results import Run
from sarathi.telemetry import Distribution, Summary

# Head, what it is, percentiles, whether they are milliseconds rather than seconds.
_LATENCIES: tuple[tuple[str, Callable[[Summary], Distribution], tuple[str, ...], bool], ...] = (
    ("TTFT (s)", lambda summary: summary.ttft, ("P50", "P90", "P99"), False),
    ("TBT (ms)", lambda summary: summary.tbt, ("P50", "P90", "P99"), True),
    ("longest gap (ms)", lambda summary: summary.max_gap, ("P50", "P99"), True),
    ("delay (s)", lambda summary: summary.scheduling_delay, ("P50",), False),
)

# What says something of a real client alone.
_CLIENT = (
    Column("salt", prose=True),
    Column("P50", "client lag (ms)"),
    Column("P99", "client lag (ms)"),
    Column("max", "client lag (ms)"),
    Column("CPU"),
)


def latency_table(measured: ReportData) -> Table | None:
    """Latencies that no load has are left out."""
    told = [
        latency
        for latency in _LATENCIES
        if any(latency[1](load.summary).count for load in measured.loads)
    ]
    rows = [
        [
            *_load_cells(measured, load),
            *(
                Cell(MISSING)
                if load.stopped
                else percentile_cell(of(load.summary), percentile, milliseconds)
                for _, of, percentiles, milliseconds in told
                for percentile in percentiles
            ),
        ]
        for load in measured.loads
    ]
    if not rows or not told:
        return None
    columns = (Column(one, head) for head, _, percentiles, _ in told for one in percentiles)
    return Table(
        title="Latencies",
        caption=(
            "Of complete answers. Below each value is its 95 % interval, where there were requests "
            "enough for one. Those of runs that were stopped are left out: the requests that took "
            "long had not ended."
        ),
        columns=(LABEL, RATE, *columns),
        rows=rows,
        by_label=True,
    )


def throughput_table(measured: ReportData) -> Table | None:
    goodput = any(load.summary.goodput is not None for load in measured.loads)
    rows = []
    for load in measured.loads:
        summary = load.summary
        row = [
            *_load_cells(measured, load),
            complete_cell(summary),
            Cell(failure_counts(summary), tone="bad" if summary.failures else "", prose=True),
        ]
        figures = [
            Cell(number(summary.request_rate)),
            Cell(number(summary.completed_per_second)),
            Cell(number(summary.output_tokens_per_second)),
            Cell(number(summary.total_tokens_per_second)),
        ]
        if goodput:
            figures.append(Cell(number(summary.goodput), percent(summary.attainment)))
        row += [Cell(MISSING)] * len(figures) if load.stopped else figures
        rows.append(row)
    if not rows:
        return None
    columns: tuple[Column, ...] = (
        LABEL,
        RATE,
        Column("complete"),
        Column("failures", prose=True),
        Column("sent", "requests (1/s)"),
        Column("completed", "requests (1/s)"),
        Column("output", "tokens (1/s)"),
        Column("all", "tokens (1/s)"),
    )
    caption = (
        "Output tokens include those of answers that failed on the way. What is per second is over "
        "the time until the last answer; requests sent and goodput are over the time of sending."
    )
    if goodput:
        columns += (Column("goodput (1/s)"),)
        caption += " Goodput is of requests that met their targets; below it, their share of all."
    return Table("Throughput and failures", caption, columns, rows, by_label=True)


def conduct_table(measured: ReportData) -> Table | None:
    """How each run went, of those whose files are there.

    A simulated run has no client that could be late, and what it took is on the virtual clock.
    """
    runs = sorted(measured.all_runs, key=lambda run: run.began)
    if not runs:
        return None
    real = any(run.simulation is None for run in runs)
    simulated = any(run.simulation is not None for run in runs)
    caption = []
    if real:
        caption.append(
            "Lag is how late the client itself was: where it nears the latencies, they say more of "
            "the client than of the server. CPU is the client's, of one core."
        )
    if simulated:
        caption.append("What a simulated run took is the time of the simulated hardware.")
    columns = (
        LABEL,
        RATE,
        Column("state", prose=True),
        Column("began (UTC)"),
        Column("took (s)"),
        Column("seed"),
        Column("shortened"),
    )
    return Table(
        title="How the runs went",
        caption=" ".join(caption),
        columns=columns + (_CLIENT if real else ()),
        rows=[
            [label_cell(measured, run.label), *_conduct(run), *(_client(run) if real else ())]
            for run in runs
        ],
    )


def _conduct(run: Run) -> list[Cell]:
    began = datetime.fromtimestamp(run.began, timezone.utc)
    if run.invalid is not None:
        state = Cell("invalid", tone="bad", prose=True)
    else:
        state = Cell("complete" if run.stopped is None else "stopped", prose=True)
    if run.simulation is not None:
        state = Cell(f"simulated, {state.text}", tone=state.tone, prose=True)
    return [
        Cell(plain(rate_of(run))),
        state,
        Cell(f"{began:%Y-%m-%d %H:%M}"),
        Cell(number(run.summary.duration)),
        Cell(str(run.seed)),
        Cell(f"{run.num_shortened:,}"),
    ]


def _client(run: Run) -> list[Cell]:
    if run.simulation is not None:
        return [Cell(MISSING)] * len(_CLIENT)
    return [
        Cell(run.salt, prose=True),
        Cell(in_milliseconds(run.lag.p50)),
        Cell(in_milliseconds(run.lag.p99)),
        Cell(in_milliseconds(run.lag.max)),
        Cell(percent(run.lag.cpu)),
    ]


def _load_cells(measured: ReportData, load: LoadGroup) -> list[Cell]:
    return [label_cell(measured, load.label), Cell(plain(load.rate), load.remark)]
