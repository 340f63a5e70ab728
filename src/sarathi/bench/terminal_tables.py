"""Results as tables for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from sarathi.bench.comparison import Row
from sarathi.bench.number_format import MISSING, interval, milliseconds, number, seconds
from sarathi.bench.results import Capacity, Point, Run
from sarathi.bench.run_notes import cached_prompts, short_answers, simulation_notes
from sarathi.telemetry import Distribution

_META = (
    "label server model machine workload rate seed salt num_shortened began lag invalid stopped "
    "simulation"
)


def run_fields(run: Run) -> dict[str, Any]:
    """What `sarathi bench --json` prints: the summary, and where it comes from; no requests."""
    fields: dict[str, Any] = msgspec.to_builtins(run.summary)
    fields |= {name: msgspec.to_builtins(getattr(run, name)) for name in _META.split()}
    return fields | {"estimated": any(record.estimated for record in run.records)}


def capacity_fields(capacity: Capacity) -> dict[str, Any]:
    """What `sarathi capacity --json` prints."""
    fields: dict[str, Any] = msgspec.to_builtins(capacity)
    return fields


def print_run(run: Run) -> None:
    summary = run.summary
    table = Table(title=run.label, title_justify="left", pad_edge=False)
    for column in ("", "P50", "P90", "P99", "max", "P99 within"):
        table.add_column(column, justify="right" if column else "left")
    for name, values, shown in (
        ("time to first token", summary.ttft, seconds),
        ("time between tokens", summary.tbt, milliseconds),
        ("longest gap of a request", summary.max_gap, milliseconds),
        ("end to end", summary.end_to_end, seconds),
        ("per output token", summary.normalized, milliseconds),
        ("scheduling delay", summary.scheduling_delay, seconds),
    ):
        if values.count:
            table.add_row(name, *_cells(values, shown))
    console = _console()
    console.print(table)
    console.print(
        f"{summary.completed} of {summary.requests} requests complete, "
        f"{summary.request_rate:.3g} sent a second; "
        f"{summary.output_tokens_per_second:.1f} output tokens and "
        f"{summary.total_tokens_per_second:.1f} tokens in all a second"
    )
    for note in run_notes(run):
        console.print(note)


def print_capacities(capacities: Sequence[Capacity]) -> None:
    """Those that were stopped have no latencies: the requests that took long had not ended."""
    console = _console()
    for capacity in capacities:
        table = Table(title=capacity.label, title_justify="left", pad_edge=False)
        columns = "requests/s", "P99 TBT", "median delay", "median TTFT", "P99 TTFT", "verdict"
        for column in columns:
            table.add_column(column, justify="left" if column == "verdict" else "right")
        for point in capacity.points:
            verdict = "meets" if point.met else "misses"
            verdict += "" if point.certain else ", not for certain"
            table.add_row(
                f"{point.rate:g}",
                *_latencies(point),
                verdict if point.met else f"{verdict}: {point.reason}",
            )
        console.print(table)
        console.print(capacity_text(capacity))
        if capacity.accuracy is not None:
            console.print(f"simulated; accuracy: {capacity.accuracy}")
    first, *others = capacities
    for other in others:
        if first.capacity and other.capacity:
            ratio = other.capacity / first.capacity
            console.print(f"{other.label}: {ratio:.2f} of {first.label}")


def capacity_text(capacity: Capacity) -> str:
    """The outcome in a sentence."""
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


def print_comparison(rows: Sequence[Row]) -> None:
    """With the ratio to the first contender beside each figure."""
    table = Table(title="medians over the rounds, and ratios to the first", title_justify="left")
    table.add_column("requests/s", justify="right")
    table.add_column("server")
    for column in ("TTFT P50", "TTFT P99", "TBT P50", "TBT P99", "max gap P99", "tokens/s"):
        table.add_column(column, justify="right")
    table.add_column("failed", justify="right")
    table.add_column("invalid runs", justify="right")
    shown = (seconds, seconds, milliseconds, milliseconds, milliseconds, number)
    for row in rows:
        cells = [
            f"{show(value)} ({number(row.ratios[name])})"
            for show, (name, value) in zip(shown, row.figures.items(), strict=True)
        ]
        rate = "" if row.rate is None else f"{row.rate:g}"
        table.add_row(rate, row.label, *cells, str(row.failed), str(row.invalid))
    _console().print(table)


def run_notes(run: Run) -> list[str]:
    """What a reader must know beside the figures."""
    summary, found = run.summary, []
    if summary.goodput is not None and summary.attainment is not None:
        found.append(
            f"goodput: {summary.goodput:.3g} requests a second, "
            f"{100 * summary.attainment:.1f} % of all, met their targets"
        )
    if summary.failures:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
        # Where the records hold one request of many, it may be that none of them failed.
        detail = next((one.detail for one in run.records if one.failure is not None), None)
        found.append(f"failed: {kinds}" + (f" (the first: {detail})" if detail else ""))
    if run.num_shortened:
        found.append(f"{run.num_shortened} requests were shortened to the server's context")
    if any(record.estimated for record in run.records):
        found.append(
            "the server does not count the tokens of each event: times of tokens are estimated"
        )
    found += filter(None, (short_answers([run]), cached_prompts([run])))
    if run.simulation is None:
        found.append(
            f"the client was late by {milliseconds(run.lag.p50)} at P50, "
            f"{milliseconds(run.lag.p99)} at P99"
        )
    else:
        found += simulation_notes(run.simulation)
    if run.stopped is not None:
        found.append(run.stopped)
    return found


def _console() -> Console:
    """Labels and reasons are shown as they are, whatever rich would make of [brackets]."""
    return Console(highlight=False, markup=False, emoji=False)


def _latencies(point: Point) -> list[str]:
    if point.stopped:
        return [MISSING] * 4
    summary = point.summary
    return [
        milliseconds(summary.tbt.p99),
        seconds(summary.scheduling_delay.p50),
        seconds(summary.ttft.p50),
        seconds(summary.ttft.p99),
    ]


def _cells(values: Distribution, shown: Callable[[float | None], str]) -> list[str]:
    cells = [shown(value) for value in (values.p50, values.p90, values.p99, values.max)]
    return [*cells, interval(values.p99_interval, shown)]
