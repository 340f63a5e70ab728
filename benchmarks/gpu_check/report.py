"""The tables that end a check."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_check.experiment import Point
from benchmarks.gpu_check.prediction import FIGURES
from benchmarks.gpu_check.results import PartResult, Results
from benchmarks.report import cells

_WIDTH = 110  # columns, where the output is no terminal


def show(results: Results, points: Sequence[Point]) -> None:
    """Print the figures of all parts beside their goals, then the experiment."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    if points:
        console.print(experiment_table(points))
    console.print(figure_table(results))


def figure_table(results: Results) -> Table:
    """Return one row a figure, under the part that it belongs to."""
    environment = results.environment
    where = environment["gpu"] or "no GPU, on a processor"
    table = Table(
        title=f"GPU check: {where}, torch {environment['torch']}, triton {environment['triton']}",
        title_justify="left",
        caption=f"All figures: {results.path}",
        caption_justify="left",
    )
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("met")
    for part in results.parts:
        table.add_section()
        table.add_row(f"[bold]{part.key}. {part.title}[/bold]", _state(part), "", "")
        for figure in part.figures:
            name, value, goal, met = cells(figure)
            table.add_row(f"  {name}", value, goal, met)
        for line in (part.error, *part.notes):
            if line is not None:
                table.add_row(f"  [italic]{_escaped(line)}[/italic]", "", "", "")
    return table


def experiment_table(points: Sequence[Point]) -> Table:
    """Return one row a policy and rate."""
    table = Table(title="Experiment of the paper", title_justify="left")
    table.add_column("rate", justify="right")
    table.add_column("policy")
    for name in FIGURES:
        table.add_column(name, justify="right")
    rate = None
    for point in points:
        if point.load.rate != rate:
            table.add_section()
        values = [read(point.summary) for read in FIGURES.values()]
        *times, throughput = values
        table.add_row(
            "" if point.load.rate == rate else f"{point.load.rate:g}/s",
            point.policy,
            *("-" if value is None else f"{1e3 * value:.1f} ms" for value in times),
            "-" if throughput is None else f"{throughput:.0f}/s",
        )
        rate = point.load.rate
    return table


def _state(part: PartResult) -> str:
    return f"{part.status}, {part.seconds:.0f} s" if part.seconds else part.status


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
