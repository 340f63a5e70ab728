"""The tables that end a check."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from perf.gpu_check.context import Findings
from perf.gpu_check.prediction import FIGURES
from perf.gpu_check.results import PartResult, Results
from perf.report import cells

_WIDTH = 140  # columns, where the output is no terminal


def show(results: Results, findings: Findings) -> None:
    """Print the figures of all parts with their goals, then the experiment."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    if findings.points:
        console.print(experiment_table(findings))
    console.print(figure_table(results))


def figure_table(results: Results) -> Table:
    """Return one row a figure, under the part that it belongs to."""
    environment = results.environment
    where = environment["gpu"] or "no GPU, on a processor"
    table = Table(
        title=f"GPU check: {where}, torch {environment['torch']}, triton {environment['triton']}",
        title_justify="left",
        caption=f"Goals are those of an H100. All figures: {results.path}",
        caption_justify="left",
    )
    table.add_column("figure", max_width=72)
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


def experiment_table(findings: Findings) -> Table:
    """Return one row a policy and rate; errors of the simulator are in brackets."""
    table = Table(
        title="Experiment of the paper (in brackets: the simulator's error)", title_justify="left"
    )
    table.add_column("rate", justify="right")
    table.add_column("policy")
    for name in FIGURES:
        table.add_column(name, justify="right")
    rate = None
    for point in findings.points:
        if point.load.rate != rate:
            table.add_section()
        predictions = findings.predictions.get((point.policy, point.load.rate), [])
        errors = {prediction.what: f" ({prediction.error:+.0%})" for prediction in predictions}
        values = {name: read(point.summary) for name, read in FIGURES.items()}
        table.add_row(
            "" if point.load.rate == rate else f"{point.load.rate:g}/s",
            point.policy,
            *(_cell(name, value) + errors.get(name, "") for name, value in values.items()),
        )
        rate = point.load.rate
    return table


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}/s" if name == "throughput" else f"{1e3 * value:.1f} ms"


def _state(part: PartResult) -> str:
    return f"{part.status}, {part.seconds:.0f} s" if part.seconds else part.status


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
