"""Figures of several servers beside the goals for their ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from perf.report import Figure, cells

OURS, OTHER, PLAIN = "sarathi", "llama.cpp", "not quantised"
_WIDTH = 140  # characters of a file
_COLUMNS = (OURS, OTHER, PLAIN)


@dataclass(frozen=True)
class Row:
    """What was measured, and the ratio that has a goal; None where a figure is missing."""

    model: str
    name: str
    unit: str
    values: dict[str, float | None]  # by server
    over: str  # what the ratio divides the figure of ours by
    ratio: float | None
    goal: float | None = None
    bound: Literal["at most", "at least"] = "at most"

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps its goal; None where there is no goal or no ratio."""
        return self._figure.met

    @property
    def texts(self) -> tuple[str, ...]:
        """The cells of the row."""
        values = [
            "" if value is None else cells(Figure("", value, self.unit))[1]
            for value in map(self.values.get, _COLUMNS)
        ]
        _, ratio, goal, met = cells(self._figure)
        return self.name, *values, self.over, ratio, goal, met

    @property
    def _figure(self) -> Figure:
        return Figure(self.name, self.ratio, "", self.goal, self.bound)


_HEADER = ("", *_COLUMNS, "ratio to", "ratio", "goal", "met")


def show_rows(rows: Sequence[Row], note: str) -> None:
    """Print a table for each model."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    for model, some in _by_model(rows).items():
        table = Table(title=model, title_justify="left")
        for index, name in enumerate(_HEADER):
            table.add_column(name, justify="right" if 0 < index < 4 or index == 5 else "left")
        for row in some:
            table.add_row(*row.texts)
        console.print(table)
    console.print(note, highlight=False)


def markdown(rows: Sequence[Row], note: str) -> str:
    """Return the same tables in Markdown."""
    lines = []
    for model, some in _by_model(rows).items():
        lines += [
            f"| {model} | {' | '.join(_HEADER[1:])} |",
            "|---|---:|---:|---:|---|---:|---|---|",
        ]
        lines += [f"| {' | '.join(row.texts)} |" for row in some]
        lines.append("")
    return "\n".join([*lines, note, ""])


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found
