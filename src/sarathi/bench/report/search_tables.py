"""Capacities, and how they were found."""

from __future__ import annotations

from sarathi.bench.number_format import MISSING, number, percent, plain
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.table import (
    LABEL,
    RATE,
    Cell,
    Column,
    Table,
    complete_cell,
    in_milliseconds,
    label_cell,
    percentile_cell,
)
from sarathi.bench.results import Capacity, Point


def capacity_table(measured: ReportData) -> Table | None:
    found = measured.capacity_results
    if not found:
        return None
    rows = [
        [
            label_cell(measured, one.label),
            _capacity_cell(one),
            Cell(_range(one)),
            Cell(in_milliseconds(one.tbt_target)),
            Cell(plain(one.delay_target)),
            Cell(f"{one.requests_per_point:,}"),
            Cell(percent(one.resolution)),
        ]
        for one in found
    ]
    return Table(
        title="Capacity in numbers",
        caption=(
            "Requests per second. The range goes from the highest rate that met the target to the "
            "lowest that missed it, both with 95 % confidence: more requests make it narrower."
        ),
        columns=(
            LABEL,
            Column("capacity (1/s)"),
            Column("certain range (1/s)"),
            Column("P99 TBT (ms)", "target, at most"),
            Column("median delay (s)", "target, at most"),
            Column("requests each", "search"),
            Column("resolution", "search"),
        ),
        rows=rows,
    )


def points_table(measured: ReportData) -> Table | None:
    rows = [
        [label_cell(measured, one.label), *_cells(point)]
        for one in measured.capacity_results
        for point in one.points
    ]
    if not rows:
        return None
    return Table(
        title="What the searches tried",
        caption=(
            "Uncertain: another set of requests might have turned out otherwise. Latencies of runs "
            "that were stopped are left out: the requests that took long had not ended."
        ),
        columns=(
            LABEL,
            RATE,
            Column("verdict", prose=True),
            Column("reason", prose=True),
            Column("P99 TBT (ms)"),
            Column("median delay (s)"),
            Column("complete"),
        ),
        rows=rows,
        by_label=True,
    )


def _cells(point: Point) -> list[Cell]:
    word, tone = ("met", "good") if point.met else ("missed", "bad")
    latencies = [
        percentile_cell(point.summary.tbt, "P99", milliseconds=True),
        Cell(number(point.summary.scheduling_delay.p50)),
    ]
    return [
        Cell(plain(point.rate)),
        Cell(word, "" if point.certain else "uncertain", tone, prose=True),
        Cell(point.reason, prose=True),
        *([Cell(MISSING)] * 2 if point.stopped else latencies),
        complete_cell(point.summary),
    ]


def _capacity_cell(one: Capacity) -> Cell:
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
