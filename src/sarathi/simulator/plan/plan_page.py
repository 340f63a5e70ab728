"""A plan as a page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from sarathi.bench.number_format import MISSING, number, percent, plain
from sarathi.bench.report import check_reports_can_be_made
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.result_tables import simulation_table
from sarathi.bench.report.table import Cell, Column, Table, in_milliseconds, percentile_cell
from sarathi.errors import BenchmarkError
from sarathi.simulator.plan.plan_tables import (
    accuracies,
    budget,
    busy,
    capacity,
    fronts,
    grouped,
    outcome,
)
from sarathi.simulator.plan.plan_targets import PlanTerms
from sarathi.simulator.plan.planner import PlanResult
from sarathi.units import format_duration

_TERMS = {
    "TTFT": "Time from the arrival of a request to its first token.",
    "TBT": "Time between two consecutive tokens of an answer.",
    "P50, P90, P99": "The least value that so many percent of all do not exceed.",
    "Capacity": "The highest rate at which one replica meets the targets.",
    "Budget": "The most tokens of an iteration; target: as many as the target of TBT leaves.",
    "Busy": "The share of the time with requests in which the busiest pipeline stage computed.",
    "Scheduling delay": "Time from the arrival of a request to the iteration that first computes "
    "something of it.",
}


def write_plan(path: Path, planned: PlanResult, terms: PlanTerms, model: str) -> list[Path]:
    """Write one HTML page, and its figure as PNG beside it, in the folder `<stem>-figures`.

    Returns:
        What was written, the page first.

    Raises:
        BenchmarkError: matplotlib is missing, or a file cannot be written.
    """
    check_reports_can_be_made()
    # Imported here: matplotlib takes half a second and is an extra.
    from sarathi.bench.report.notes import Alert, Fact
    from sarathi.bench.report.page import Section, html
    from sarathi.bench.report.render import render
    from sarathi.simulator.plan.pareto_figure import pareto

    drawing = pareto(planned, terms.targets)
    figures = [] if drawing is None else [render(drawing)]
    targets, workload = terms.targets, terms.load.workload.describe()
    wanted = f"P99 TBT {format_duration(targets.tbt)}"
    if targets.ttft is not None:
        wanted += f", P90 TTFT {format_duration(targets.ttft)}"
    wanted += (
        f", scheduling delay {format_duration(targets.delay)} in the median and "
        f"{format_duration(targets.tail_delay)} at P90"
    )
    facts = [
        Fact("Model", [("", model)]),
        Fact("Load", [("", f"{plain(terms.rate)} requests a second")]),
        Fact("Targets, at most", [("", wanted)]),
        Fact("Workload", [("", " ".join(f"--{k} {v}" for k, v in workload.items()))], code=True),
    ]
    runs = tuple(choice.run for choice in planned.choices if choice.confirmed)
    use = simulation_table(ReportData(runs, (), ()))
    tables = [table for table in (choices_table(planned), use) if table is not None]
    sections = [Section("Plan", [], figures, tables, [outcome(planned, terms)])]
    rejected = rejected_table(planned)
    if rejected is not None:
        sections.append(Section("Not chosen", [rejected], [], []))
    alerts = [Alert("warn", "Simulated, not measured", accuracies(planned))]
    text = html(f"Hardware for {model}", alerts if planned.choices else [], facts, sections, _TERMS)
    folder = path.with_name(f"{path.stem}-figures")
    written = [path]
    try:
        path.write_bytes(text.encode("utf-8", "replace"))
        for figure in figures:
            folder.mkdir(exist_ok=True)
            written.append(folder / f"{figure.drawing.name}.png")
            written[-1].write_bytes(figure.png)
    except OSError as error:
        raise BenchmarkError(f"the report cannot be written to {path}: {error}") from None
    return written


def choices_table(planned: PlanResult) -> Table | None:
    rows = []
    for choice in planned.choices:
        layout, summary = choice.layout, choice.run.summary
        rows.append(
            [
                Cell(
                    f"{choice.replicas} x {layout.device} {layout.split}",
                    "" if choice.confirmed else "figures of one replica",
                    prose=True,
                ),
                Cell(budget(choice)),
                Cell(f"{choice.devices:,}"),
                Cell(f"{choice.cost:,.2f}"),
                Cell(number(choice.cost_per_million_tokens)),
                Cell(capacity(choice)),
                Cell(plain(choice.rate_per_replica)),
                Cell(percent(busy(choice))),
                Cell(in_milliseconds(summary.tbt.p50)),
                percentile_cell(summary.tbt, "P99", milliseconds=True),
                percentile_cell(summary.ttft, "P50", milliseconds=False),
                percentile_cell(summary.ttft, "P90", milliseconds=False),
                Cell(fronts(planned, choice) or MISSING, prose=True),
            ]
        )
    if not rows:
        return None
    return Table(
        title="Deployments that meet the targets",
        caption="The cheapest first. Below latencies are their 95 % intervals, where there were "
        "requests enough.",
        columns=(
            Column("", prose=True),
            Column("budget (tokens)"),
            Column("devices"),
            Column("an hour", "cost ($)"),
            Column("a million tokens", "cost ($)"),
            Column("capacity (1/s)", "a replica"),
            Column("load (1/s)", "a replica"),
            Column("busy"),
            Column("P50", "TBT (ms)"),
            Column("P99", "TBT (ms)"),
            Column("P50", "TTFT (s)"),
            Column("P90", "TTFT (s)"),
            Column("front", prose=True),
        ),
        rows=rows,
    )


def rejected_table(planned: PlanResult) -> Table | None:
    rows = [
        [
            Cell(names, prose=True),
            Cell(one.kind, prose=True),
            Cell(one.reason, one.detail, prose=True),
        ]
        for names, one in grouped(planned.rejected)
    ]
    if not rows:
        return None
    return Table(
        title="What was left out, and why",
        caption="What costs more was tried no further than was needed to know that it does.",
        columns=(
            Column("replica", prose=True),
            Column("why", prose=True),
            Column("reason", prose=True),
        ),
        rows=rows,
    )
