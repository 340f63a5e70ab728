"""A plan for a terminal, as JSON, and as a page: one description of its columns for both tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import rich.table
from rich.console import Console

from sarathi.bench.report import check_reports_can_be_made
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.result_tables import simulation_table
from sarathi.bench.report.table import (
    MISSING,
    Cell,
    Column,
    ColumnOf,
    Table,
    in_milliseconds,
    milliseconds,
    number,
    percent,
    percentile_cell,
    plain,
    seconds,
    table_of,
)
from sarathi.bench.results import ReplicaUse
from sarathi.simulator.plan.planner import PlanResult
from sarathi.simulator.plan.replica_sizing import DERIVED, Kind, PlanChoice, PlanSettings, Rejected
from sarathi.units import format_duration

_KINDS = get_args(Kind)
_WIDE = 110  # columns of a terminal
_MARKED = (
    "Figures of plans marked * are of all their replicas and the router together, the others of "
    "one replica with its share of the load."
)
_DEFINITIONS = {
    "TTFT": "Time from the arrival of a request to its first token.",
    "TBT": "Time between two consecutive tokens of an answer.",
    "P50, P90, P99": "The least value that so many percent of all do not exceed.",
    "Capacity": "The highest rate at which one replica meets the targets.",
    "Budget": "The most tokens of an iteration; target: as many as the target of TBT leaves.",
    "Busy": "The share of the time with requests in which the busiest pipeline stage computed.",
    "Scheduling delay": "Time from the arrival of a request to the iteration that first computes "
    "something of it.",
}


def _name(choice: PlanChoice) -> str:
    return f"{choice.replicas} x {choice.layout.device} {choice.layout.split}"


def _budget(choice: PlanChoice) -> str:
    tokens = choice.layout.token_budget
    return DERIVED if tokens is None else f"{tokens:,}"


def _capacity(choice: PlanChoice) -> str:
    """Return requests per second, of a replica."""
    return f"{'>= ' if choice.open_ended else ''}{plain(choice.capacity)}"


def _busy(choice: PlanChoice) -> float:
    """Return the share of the time with requests in which the busiest stage computed."""
    use = ReplicaUse.pooled(choice.simulation.replicas)
    return max((share for share, _ in use.stage_shares), default=0.0)


def _ttft(percentile: str) -> Callable[[PlanChoice], Cell]:
    return lambda one: percentile_cell(one.run.summary.ttft, percentile, milliseconds=False)


class _PlanColumn(NamedTuple):
    """A column of plans, on the page and in the terminal."""

    column: Column  # of the page
    terminal_head: str  # empty: on the page alone
    cell: Callable[[PlanChoice], Cell | str]
    terminal: Callable[[PlanChoice], str] | None = None  # None: as on the page
    wide: bool = False  # whether it needs a wide terminal


_COLUMNS = (
    _PlanColumn(Column("budget (tokens)"), "budget", _budget),
    _PlanColumn(Column("devices"), "devices", lambda one: f"{one.devices:,}"),
    _PlanColumn(Column("an hour", "cost ($)"), "$/hour", lambda one: f"{one.cost:,.2f}"),
    _PlanColumn(
        Column("a million tokens", "cost ($)"),
        "$/million\ntokens",
        lambda one: number(one.cost_per_million_tokens),
        wide=True,
    ),
    _PlanColumn(Column("capacity (1/s)", "a replica"), "capacity", _capacity),
    _PlanColumn(
        Column("load (1/s)", "a replica"),
        "rate\neach",
        lambda one: plain(one.rate_per_replica),
        wide=True,
    ),
    _PlanColumn(Column("busy"), "busy", lambda one: percent(_busy(one)), wide=True),
    _PlanColumn(
        Column("P50", "TBT (ms)"), "", lambda one: in_milliseconds(one.run.summary.tbt.p50)
    ),
    _PlanColumn(
        Column("P99", "TBT (ms)"),
        "P99\nTBT",
        lambda one: percentile_cell(one.run.summary.tbt, "P99", milliseconds=True),
        lambda one: milliseconds(one.tbt),
    ),
    _PlanColumn(
        Column("P50", "TTFT (s)"),
        "P50\nTTFT",
        _ttft("P50"),
        lambda one: seconds(one.run.summary.ttft.p50),
    ),
    _PlanColumn(
        Column("P90", "TTFT (s)"), "P90\nTTFT", _ttft("P90"), lambda one: seconds(one.ttft)
    ),
)


def print_plan(planned: PlanResult, options: PlanSettings) -> None:
    """Print the choices, the cheapest one, the accuracy, and what was not chosen."""
    console = Console(highlight=False, markup=False, emoji=False)
    if planned.choices:
        console.print(_terminal_table(planned, console.width >= _WIDE))
    console.print(_outcome(planned, options))
    if planned.choices:
        console.print(_MARKED)
    for line in _accuracies(planned):
        console.print(line)
    if planned.rejected:
        console.print("Not chosen:")
    for names, one in _grouped(planned.rejected):
        console.print(f"  {names}: {one.kind}: {one.reason}")
        for line in one.detail.splitlines():
            console.print(f"    {line}")


def plan_fields(planned: PlanResult, options: PlanSettings) -> dict[str, Any]:
    """Return what `sarathi plan --json` prints. Times are seconds, rates are per second."""
    targets = options.targets
    return {
        "rate": options.rate,
        "workload": options.load.workload.describe(),
        "tbt_target": targets.tbt,
        "ttft_target": targets.ttft,
        "delay_target": targets.delay,
        "requests_per_point": options.load.num_requests,
        "explored": planned.explored,
        "plans": [_fields(planned, choice) for choice in planned.choices],
        "rejected": [
            {**_layout(one), "kind": one.kind, "reason": one.reason, "detail": one.detail}
            for one in planned.rejected
        ],
    }


def write_plan(path: Path, planned: PlanResult, options: PlanSettings, model: str) -> list[Path]:
    """Write one HTML page, and its figure as PNG beside it, in the folder `<stem>-figures`.

    Returns:
        What was written, the page first.

    Raises:
        BenchmarkError: matplotlib is missing, or a file cannot be written.
    """
    check_reports_can_be_made()
    # Imported here: matplotlib takes half a second and is an extra.
    from sarathi.bench.report.notes import Alert, Fact
    from sarathi.bench.report.page import Section, write_page
    from sarathi.simulator.plan.pareto_figure import pareto

    drawing = pareto(planned, options.targets)
    figures = [] if drawing is None else [drawing]
    targets, workload = options.targets, options.load.workload.describe()
    assert targets.tail_delay is not None
    wanted = f"P99 TBT {format_duration(targets.tbt)}"
    if targets.ttft is not None:
        wanted += f", P90 TTFT {format_duration(targets.ttft)}"
    wanted += (
        f", scheduling delay {format_duration(targets.delay)} in the median and "
        f"{format_duration(targets.tail_delay)} at P90"
    )
    facts = [
        Fact("Model", [("", model)]),
        Fact("Load", [("", f"{plain(options.rate)} requests a second")]),
        Fact("Targets, at most", [("", wanted)]),
        Fact("Workload", [("", " ".join(f"--{k} {v}" for k, v in workload.items()))], code=True),
    ]
    runs = tuple(choice.run for choice in planned.choices if choice.confirmed)
    tables = filter(None, (_page_table(planned), simulation_table(ReportData(runs, (), ()))))
    sections = [Section("Plan", (), figures, list(tables), [_outcome(planned, options)])]
    if (rejected := _rejected_table(planned)) is not None:
        sections.append(Section("Not chosen", [rejected]))
    alerts = [Alert("warn", "Simulated, not measured", _accuracies(planned))]
    return write_page(
        path,
        path.with_name(f"{path.stem}-figures"),
        f"Hardware for {model}",
        sections,
        _DEFINITIONS,
        facts,
        alerts if planned.choices else (),
    )


def _terminal_table(planned: PlanResult, wide: bool) -> rich.table.Table:
    columns = [c for c in _COLUMNS if c.terminal_head and (wide or not c.wide)]
    table = rich.table.Table(
        title="Plans, the cheapest first",
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("plan", no_wrap=True)
    for column in columns:
        table.add_column(column.terminal_head, justify="right", no_wrap=True)
    table.add_column("front", no_wrap=True)
    for one in planned.choices:
        cells = [str((column.terminal or column.cell)(one)) for column in columns]
        table.add_row(_name(one) + (" *" if one.confirmed else ""), *cells, _fronts(planned, one))
    return table


def _page_table(planned: PlanResult) -> Table | None:
    def named(one: PlanChoice) -> Cell:
        return Cell(_name(one), "" if one.confirmed else "figures of one replica", prose=True)

    return table_of(
        "Deployments that meet the targets",
        "The cheapest first. Below latencies are their 95 % intervals, where there were requests "
        "enough.",
        planned.choices,
        [
            (Column("", prose=True), named),
            *((one.column, one.cell) for one in _COLUMNS),
            (Column("front", prose=True), lambda one: _fronts(planned, one) or MISSING),
        ],
    )


def _rejected_table(planned: PlanResult) -> Table | None:
    columns: list[ColumnOf[tuple[str, Rejected]]] = [
        (Column("replica", prose=True), lambda row: row[0]),
        (Column("why", prose=True), lambda row: row[1].kind),
        (Column("reason", prose=True), lambda row: Cell(row[1].reason, row[1].detail, prose=True)),
    ]
    return table_of(
        "What was left out, and why",
        "What costs more was tried no further than was needed to know that it does.",
        _grouped(planned.rejected),
        columns,
    )


def _outcome(planned: PlanResult, options: PlanSettings) -> str:
    cheapest = planned.cheapest
    if cheapest is None:
        return f"nothing serves {plain(options.rate)} requests a second within the targets"
    devices = "1 device" if cheapest.devices == 1 else f"{cheapest.devices} devices"
    return (
        f"cheapest: {cheapest.replicas} x {cheapest.layout}, {devices}, "
        f"${cheapest.cost:.2f} an hour, ${number(cheapest.cost_per_million_tokens)} a million "
        f"tokens; {cheapest.reason}"
    )


def _accuracies(planned: PlanResult) -> list[str]:
    """Return how accurate the figures are, each text once with all layouts it is about."""
    layouts: dict[str, dict[str, None]] = {}
    for choice in planned.choices:
        name = f"{choice.layout.device} {choice.layout.split}"
        layouts.setdefault(choice.simulation.accuracy, {})[name] = None
    return [f"accuracy of {', '.join(names)}: {text}" for text, names in layouts.items()]


def _grouped(rejected: Sequence[Rejected]) -> list[tuple[str, Rejected]]:
    """Return the layouts of each reason, and the first of those rejected for it."""
    found: dict[tuple[str, str, str], list[Rejected]] = {}
    for one in sorted(rejected, key=lambda one: _KINDS.index(one.kind)):
        found.setdefault((one.kind, one.reason, one.detail), []).append(one)
    return [(", ".join(str(one.layout) for one in each), each[0]) for each in found.values()]


def _fields(planned: PlanResult, choice: PlanChoice) -> dict[str, Any]:
    summary = choice.run.summary
    return {
        **_layout(choice),
        "replicas": choice.replicas,
        "devices": choice.devices,
        "device_price": choice.price,
        "cost_per_hour": choice.cost,
        "cost_per_million_tokens": choice.cost_per_million_tokens,
        "capacity": choice.capacity,
        "capacity_is_at_least": choice.open_ended,
        "rate_per_replica": choice.rate_per_replica,
        "tbt_p99": summary.tbt.p99,
        "ttft_p50": summary.ttft.p50,
        "ttft_p90": summary.ttft.p90,
        "busy": _busy(choice),
        "on_tbt_front": choice in planned.tbt_front,
        "on_ttft_front": choice in planned.ttft_front,
        "confirmed": choice.confirmed,
        "reason": choice.reason,
        "accuracy": choice.simulation.accuracy,
    }


def _layout(one: PlanChoice | Rejected) -> dict[str, Any]:
    return {name: getattr(one.layout, name) for name in ("device", "tp", "pp", "token_budget")}


def _fronts(planned: PlanResult, choice: PlanChoice) -> str:
    """Return the Pareto fronts that a choice is on."""
    fronts = (("TBT", planned.tbt_front), ("TTFT", planned.ttft_front))
    return "+".join(name for name, front in fronts if choice in front)
