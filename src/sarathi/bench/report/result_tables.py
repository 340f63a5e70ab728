"""Every table of results, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import NamedTuple

from sarathi.bench.report.measured import LoadGroup, ReportData, rate_of
from sarathi.bench.report.table import (
    MISSING,
    Cell,
    Column,
    ColumnOf,
    Table,
    failure_counts,
    in_milliseconds,
    interval,
    milliseconds,
    number,
    percent,
    percentile_cell,
    plain,
    rate,
    seconds,
    table_of,
)
from sarathi.bench.results import FIGURES, Capacity, ReplicaUse, Row, Run, divided
from sarathi.telemetry import Distribution, Summary

_LABEL = Column("", prose=True)
_RATE = Column("rate (1/s)")
_COMPLETE: ColumnOf[LoadGroup] = (
    Column("complete"),
    lambda load: f"{load.summary.completed:,} of {load.summary.requests:,}",
)
_MOST_REPLICAS = 8  # of one run, each in a separate row

Format = Callable[[float | None], str]

# Head, distribution, percentiles, whether they are milliseconds rather than seconds.
_LATENCIES: tuple[tuple[str, Callable[[Summary], Distribution], tuple[str, ...], bool], ...] = (
    ("TTFT (s)", lambda summary: summary.ttft, ("P50", "P90", "P99"), False),
    ("TBT (ms)", lambda summary: summary.tbt, ("P50", "P90", "P99"), True),
    ("longest gap (ms)", lambda summary: summary.max_gap, ("P50", "P99"), True),
    ("delay (s)", lambda summary: summary.scheduling_delay, ("P50",), False),
)


def run_table(run: Run) -> Table:
    """Tabulate the latencies of one run, for a terminal."""
    summary = run.summary
    kinds: tuple[tuple[str, Distribution, Format], ...] = (
        ("time to first token", summary.ttft, seconds),
        ("time between tokens", summary.tbt, milliseconds),
        ("longest gap of a request", summary.max_gap, milliseconds),
        ("end to end", summary.end_to_end, seconds),
        ("per output token", summary.normalized, milliseconds),
        ("scheduling delay", summary.scheduling_delay, seconds),
    )
    heads = ("", "P50", "P90", "P99", "max", "P99 within")
    rows = [
        [
            Cell(name, prose=True),
            *(Cell(shown(value)) for value in (values.p50, values.p90, values.p99, values.max)),
            Cell(interval(values.p99_interval, shown)),
        ]
        for name, values, shown in kinds
        if values.count
    ]
    columns = tuple(Column(head, prose=not head) for head in heads)
    return Table(run.label, "", columns, rows)


def latency_table(measured: ReportData) -> Table | None:
    """Tabulate the latencies of every load; those that no load has are left out."""
    columns = [
        _figure(percentile, partial(_percentile, of, percentile, in_ms), head)
        for head, of, percentiles, in_ms in _LATENCIES
        if any(of(load.summary).count for load in measured.loads)
        for percentile in percentiles
    ]
    if not columns:
        return None
    return table_of(
        "Latencies",
        "Of complete answers. Below each value is its 95 % interval, where there were enough "
        "requests for one. Those of runs that were stopped are left out: the requests that took "
        "long had not ended.",
        measured.loads,
        [*_load_columns(measured), *columns],
        by_label=True,
    )


def _percentile(
    of: Callable[[Summary], Distribution], percentile: str, in_ms: bool, summary: Summary
) -> Cell:
    return percentile_cell(of(summary), percentile, in_ms)


def _figure(head: str, of: Callable[[Summary], Cell | str], group: str = "") -> ColumnOf[LoadGroup]:
    """Return a column of a figure, which runs that were stopped do not have."""
    return Column(head, group), lambda load: MISSING if load.stopped else of(load.summary)


def throughput_table(measured: ReportData) -> Table | None:
    """Tabulate requests and tokens per second of every load."""
    caption = (
        "Output tokens include those of answers that failed on the way. What is per second is over "
        "the time until the last answer; requests sent and goodput are over the time of sending."
    )
    columns: list[ColumnOf[LoadGroup]] = [
        *_load_columns(measured),
        _COMPLETE,
        (Column("failures", prose=True), _failures),
        _figure("sent", lambda one: number(one.request_rate), "requests (1/s)"),
        _figure("completed", lambda one: number(one.completed_per_second), "requests (1/s)"),
        _figure("output", lambda one: number(one.output_tokens_per_second), "tokens (1/s)"),
        _figure("all", lambda one: number(one.total_tokens_per_second), "tokens (1/s)"),
    ]
    if any(load.summary.goodput is not None for load in measured.loads):
        columns.append(
            _figure("goodput (1/s)", lambda one: Cell(number(one.goodput), percent(one.attainment)))
        )
        caption += " Goodput is of requests that met their targets; below it, their share of all."
    return table_of("Throughput and failures", caption, measured.loads, columns, by_label=True)


def _failures(load: LoadGroup) -> Cell:
    tone = "bad" if load.summary.failures else ""
    return Cell(failure_counts(load.summary), tone=tone, prose=True)


def conduct_table(measured: ReportData) -> Table | None:
    """Tabulate how each run went, of those whose files exist.

    A simulated run has no client that could be late, and its duration is on the virtual clock.
    """
    runs = sorted(measured.all_runs, key=lambda run: run.began)
    real = any(run.simulation is None for run in runs)
    simulated = any(run.simulation is not None for run in runs)
    caption = []
    columns: list[ColumnOf[Run]] = [
        (_LABEL, lambda run: _label(measured, run.label)),
        (_RATE, lambda run: plain(rate_of(run))),
        (Column("state", prose=True), _state),
        (
            Column("began (UTC)"),
            lambda run: f"{datetime.fromtimestamp(run.began, timezone.utc):%Y-%m-%d %H:%M}",
        ),
        (Column("took (s)"), lambda run: number(run.summary.duration)),
        (Column("seed"), lambda run: str(run.seed)),
        (Column("shortened"), lambda run: f"{run.num_shortened:,}"),
    ]
    if real:
        caption.append(
            "Lag is how late the client itself was: where it nears the latencies, they describe "
            "the client more than the server. CPU is the client's, of one core."
        )
        columns += [
            _of_client(Column("salt", prose=True), lambda run: run.salt),
            _of_client(Column("P50", "client lag (ms)"), lambda run: in_milliseconds(run.lag.p50)),
            _of_client(Column("P99", "client lag (ms)"), lambda run: in_milliseconds(run.lag.p99)),
            _of_client(Column("max", "client lag (ms)"), lambda run: in_milliseconds(run.lag.max)),
            _of_client(Column("CPU"), lambda run: percent(run.lag.cpu)),
        ]
    if simulated:
        caption.append("What a simulated run took is the time of the simulated hardware.")
    return table_of("How the runs went", " ".join(caption), runs, columns)


def _of_client(column: Column, of: Callable[[Run], str]) -> ColumnOf[Run]:
    """Return a column of a client, which simulated runs do not have."""
    return column, lambda run: of(run) if run.simulation is None else Cell(MISSING)


def _state(run: Run) -> Cell:
    state = "invalid" if run.invalid else "complete" if run.stopped is None else "stopped"
    text = state if run.simulation is None else f"simulated, {state}"
    return Cell(text, tone="bad" if run.invalid else "", prose=True)


def capacity_table(measured: ReportData) -> Table | None:
    """Tabulate the outcome of every search."""
    columns: list[ColumnOf[Capacity]] = [
        (_LABEL, lambda one: _label(measured, one.label)),
        (Column("capacity (1/s)"), _capacity),
        (Column("certain range (1/s)"), _range),
        (Column("P99 TBT (ms)", "target, at most"), lambda one: in_milliseconds(one.tbt_target)),
        (Column("median delay (s)", "target, at most"), lambda one: plain(one.delay_target)),
        (Column("requests each", "search"), lambda one: f"{one.requests_per_point:,}"),
        (Column("resolution", "search"), lambda one: percent(one.resolution)),
    ]
    return table_of(
        "Capacity in numbers",
        "Requests per second. The range goes from the highest rate that met the target to the "
        "lowest that missed it, both with 95 % confidence: more requests make it narrower.",
        measured.capacity_results,
        columns,
    )


def _capacity(one: Capacity) -> Cell:
    if one.capacity is None:
        return Cell("none", tone="bad")
    return Cell(plain(one.capacity), "at least: no rate missed" if one.open_ended else "")


def _range(one: Capacity) -> str:
    if one.low is None and one.high is None:
        return "not known"
    if one.low is None:
        return f"below {plain(one.high)}"
    if one.high is None:
        return f"above {plain(one.low)}"
    return f"{plain(one.low)} to {plain(one.high)}"


def points_table(measured: ReportData) -> Table | None:
    """Tabulate every rate that the searches tried."""
    columns: list[ColumnOf[LoadGroup]] = [
        (_LABEL, lambda load: _label(measured, load.label)),
        (_RATE, lambda load: plain(load.rate)),
        (Column("verdict", prose=True), _verdict),
        _figure("P99 TBT (ms)", lambda one: percentile_cell(one.tbt, "P99", True)),
        _figure("median delay (s)", lambda one: number(one.scheduling_delay.p50)),
        _figure("P50", lambda one: number(one.ttft.p50), "TTFT (s)"),
        _figure("P99", lambda one: number(one.ttft.p99), "TTFT (s)"),
        _COMPLETE,
        (Column("reason", prose=True), lambda load: load.reason),
    ]
    return table_of(
        "What the searches tried",
        "Uncertain: another set of requests might have turned out otherwise. Latencies of runs "
        "that were stopped are left out: the requests that took long had not ended.",
        measured.searched_loads,
        columns,
        by_label=True,
    )


def _verdict(load: LoadGroup) -> Cell:
    tone = "good" if load.state == "met" else "bad"
    return Cell(load.state, "" if load.certain else "uncertain", tone, prose=True)


# Columns of a comparison: the name in `FIGURES`, head, group, and the format of a value.
_COMPARED: tuple[tuple[str, str, str, Format], ...] = (
    ("ttft_p50", "P50", "TTFT", seconds),
    ("ttft_p99", "P99", "TTFT", seconds),
    ("tbt_p50", "P50", "TBT", milliseconds),
    ("tbt_p99", "P99", "TBT", milliseconds),
    ("max_gap_p99", "P99", "longest gap", milliseconds),
    ("output_tokens_per_second", "output tokens", "throughput", rate),
)
_COMPARED_COLUMNS = tuple(Column(head, group) for _, head, group, _ in _COMPARED)


def _compared(
    figures: Mapping[str, float | None], ratios: Mapping[str, float | None]
) -> list[Cell]:
    return [_ratio(ratios[name], figures[name], shown) for name, _, _, shown in _COMPARED]


def _ratio(ratio: float | None, value: float | None, shown: Format) -> Cell:
    note = "" if value is None else shown(value)
    if ratio is None:
        return Cell(MISSING, note)
    return Cell(f"{ratio:.2f}x" if 0.095 <= ratio < 10 else f"{number(ratio)}x", note)


def rounds_table(rows: Sequence[Row]) -> Table:
    """Tabulate medians over the rounds of a comparison, and ratios to the first target."""
    columns = (Column("requests/s"), Column("server", prose=True), *_COMPARED_COLUMNS)
    cells = [
        [
            Cell("" if row.rate is None else f"{row.rate:g}"),
            Cell(row.label, prose=True),
            *_compared(row.figures, row.ratios),
            Cell(str(row.failed)),
            Cell(str(row.invalid)),
        ]
        for row in rows
    ]
    title = "ratios to the first, and medians over the rounds"
    return Table(title, "", (*columns, Column("failed"), Column("invalid runs")), cells)


def comparison_table(measured: ReportData) -> Table | None:
    """Tabulate the shown runs relative to that of the first label, if there are several."""
    runs = {run.label: run for run in measured.shown}
    if len(runs) < 2:
        return None
    first, *_ = runs.values()
    capacities = {one.label: one.capacity for one in measured.capacity_results}
    with_capacity = len(measured.targets) == 1  # several targets: not comparable
    rows = []
    for label, run in runs.items():
        known = run.stopped is None and first.stopped is None
        figures = {name: read(run) if known else None for name, read in FIGURES.items()}
        ratios = {name: divided(figures[name], read(first)) for name, read in FIGURES.items()}
        row = [_label(measured, label), Cell(plain(rate_of(run))), *_compared(figures, ratios)]
        if with_capacity:
            own = capacities.get(label)
            row.append(_ratio(divided(own, capacities.get(first.label)), own, rate))
        rows.append(row)
    columns: tuple[Column, ...] = (_LABEL, _RATE, *_COMPARED_COLUMNS)
    if with_capacity:
        columns += (Column("capacity"),)
    caption = "Below 1 is better for times, above 1 for throughput"
    caption += " and capacity." if with_capacity else "."
    if len({rate_of(run) for run in runs.values()}) > 1:
        caption += " The rates differ: they are the nearest to one another that were measured."
    return Table(f"Compared with {first.label}", caption, columns, rows)


def simulation_table(measured: ReportData) -> Table | None:
    """Tabulate the use of simulated hardware by replica; in one row where there are many."""
    runs = [run for run in measured.all_runs if run.simulation is not None]
    runs.sort(key=lambda run: (measured.labels.index(run.label), rate_of(run)))
    kv = "KV blocks in use"
    columns: list[ColumnOf[_UseRow]] = [
        (_LABEL, lambda row: _label(measured, row.run.label)),
        (_RATE, lambda row: plain(rate_of(row.run))),
        (Column("replica", prose=True), lambda row: row.replica),
        (Column("busy (%)", "stages"), lambda row: _shares(row.use, 0)),
        (Column("idle (%)", "stages"), lambda row: _shares(row.use, 1)),
        (
            Column("own time", "engine"),
            lambda row: percent(divided(row.use.overhead, row.use.active)),
        ),
        (Column("iterations", "engine"), lambda row: f"{row.use.iterations:,}"),
        (
            Column("tokens each", "engine"),
            lambda row: number(divided(row.use.tokens, row.use.iterations)),
        ),
        (Column("mean", kv), lambda row: percent(row.use.kv_mean if row.use.active else None)),
        (Column("most", kv), lambda row: percent(row.use.kv_max if row.use.active else None)),
        (Column("preemptions"), lambda row: f"{row.use.preemptions:,}"),
        (Column("$ per million tokens"), lambda row: row.cost),
    ]
    return table_of(
        "Use of the simulated hardware",
        "Shares are of the time in which a replica had requests. A stage that is idle in it is a "
        "bubble of the pipeline; with one stage, that is the engine's own time. Where there are "
        "several stages, their shares follow one another. The cost is that of all devices of a "
        "run, for prompts and answers together.",
        [row for run in runs for row in _use_rows(run)],
        columns,
        by_label=True,
    )


class _UseRow(NamedTuple):
    run: Run
    replica: str
    use: ReplicaUse
    cost: str  # in the first row of a run


def _use_rows(run: Run) -> list[_UseRow]:
    assert run.simulation is not None
    replicas, cost = run.simulation.replicas, number(run.simulation.cost_per_million_tokens)
    if len(replicas) > _MOST_REPLICAS:
        return [_UseRow(run, f"all {len(replicas)}", ReplicaUse.pooled(replicas), cost)]
    return [_UseRow(run, str(i), use, "" if i else cost) for i, use in enumerate(replicas)]


def _shares(use: ReplicaUse, which: int) -> str:
    """Return the share of each stage that is busy (0) or idle (1)."""
    return ", ".join(plain(100 * shares[which]) for shares in use.stage_shares) or MISSING


def _label(measured: ReportData, label: str) -> Cell:
    return Cell(label, label=measured.labels.index(label), prose=True)


def _load_columns(measured: ReportData) -> list[ColumnOf[LoadGroup]]:
    return [
        (_LABEL, lambda load: _label(measured, load.label)),
        (_RATE, lambda load: Cell(plain(load.rate), load.note)),
    ]
