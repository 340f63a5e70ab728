"""What simulated hardware did."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.bench.number_format import MISSING, number, percent, plain
from sarathi.bench.report.measured import ReportData, rate_of
from sarathi.bench.report.table import LABEL, RATE, Cell, Column, Table, label_cell
from sarathi.bench.results import ReplicaUse, Run
from sarathi.bench.run_notes import kv_shares, overhead_share, stage_shares

_MOST_REPLICAS = 8  # of one run, each with a row of its own


def simulation_table(measured: ReportData) -> Table | None:
    """A row for each replica of each simulated run; one for all where there are many."""
    rows = [
        row
        for label in measured.labels
        for run in sorted(
            (run for run in measured.all_runs if run.label == label and run.simulation is not None),
            key=rate_of,
        )
        for row in _rows(measured, run)
    ]
    if not rows:
        return None
    return Table(
        title="Use of the simulated hardware",
        caption=(
            "Shares are of the time in which a replica had requests. A stage that is idle in it is "
            "a bubble of the pipeline; with one stage, that is the engine's own time. Where there "
            "are several stages, their shares follow one another. The cost is that of all devices "
            "of a run, for prompts and answers together."
        ),
        columns=(
            LABEL,
            RATE,
            Column("replica", prose=True),
            Column("busy (%)", "stages"),
            Column("idle (%)", "stages"),
            Column("own time", "engine"),
            Column("iterations", "engine"),
            Column("tokens each", "engine"),
            Column("mean", "KV blocks in use"),
            Column("most", "KV blocks in use"),
            Column("preemptions"),
            Column("$ per million tokens"),
        ),
        rows=rows,
        by_label=True,
    )


def _rows(measured: ReportData, run: Run) -> list[list[Cell]]:
    simulation = run.simulation
    assert simulation is not None
    replicas = simulation.replicas
    if len(replicas) > _MOST_REPLICAS:
        groups: list[tuple[str, Sequence[ReplicaUse]]] = [(f"all {len(replicas)}", replicas)]
    else:
        groups = [(str(number), [use]) for number, use in enumerate(replicas)]
    return [
        [
            label_cell(measured, run.label),
            Cell(plain(rate_of(run))),
            Cell(name, prose=True),
            *_use(uses),
            Cell("" if position else number(simulation.cost_per_million_tokens)),
        ]
        for position, (name, uses) in enumerate(groups)
    ]


def _use(replicas: Sequence[ReplicaUse]) -> list[Cell]:
    shares = stage_shares(replicas)
    iterations = sum(use.iterations for use in replicas)
    tokens = sum(use.tokens for use in replicas)
    kv = kv_shares(replicas)
    return [
        Cell(_in_turn([busy for busy, _ in shares])),
        Cell(_in_turn([idle for _, idle in shares])),
        Cell(percent(overhead_share(replicas))),
        Cell(f"{iterations:,}"),
        Cell(number(tokens / iterations if iterations else None)),
        Cell(percent(None if kv is None else kv[0])),
        Cell(percent(None if kv is None else kv[1])),
        Cell(f"{sum(use.preemptions for use in replicas):,}"),
    ]


def _in_turn(shares: Sequence[float]) -> str:
    return ", ".join(plain(100 * share) for share in shares) or MISSING
