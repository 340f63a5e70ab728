"""An experiment as data: what is measured, and the tables, figures and comparisons made of it.

`Experiment` is the description; `ExperimentResult` is the one piece of code that turns it and the
results of its jobs into tables, charts and JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import product
from typing import Any

import msgspec

from sarathi.bench.report.table import Cell, Column, Table, number
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.reproduction.jobs import Job, Results
from sarathi.simulator.reproduction.published import Comparison
from sarathi.simulator.setup import describe_accuracy

Fields = Mapping[str, Any]


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said about an experiment."""

    summary: str  # one line
    title: str
    source: str  # the figure or table of the paper
    text: str  # what is done
    notes: tuple[str, ...]
    figures: dict[str, tuple[str, str]] = {}  # titles and captions
    figure_caption: str = ""  # of all others
    table_caption: str = ""
    reasons: dict[str, str] = {}  # why ours may differ from published values

    def figure(self, name: str, *panels: GridPanel) -> Figure:
        """Return a figure with its title and caption."""
        title, caption = self.figures[name]
        return Figure(name, title, caption, panels)


WORDS = msgspec.yaml.decode(
    files(__package__).joinpath("evaluation.yaml").read_bytes(), type=dict[str, Words]
)


@dataclass(frozen=True)
class DataPoint:
    """One measurement, of a job or, without one, known from the start."""

    fields: Fields  # what is measured
    metrics: Mapping[str, Callable[[Any], Any]]  # what is taken from the result
    job: Job | None = None
    result: Any = None  # where there is no job
    select: Callable[[Any], Any] = lambda result: result  # a part of the job's result
    expected: Mapping[str, Comparison] = field(default_factory=dict)  # by metric
    exported: bool = True  # to JSON


@dataclass(frozen=True)
class Measured:
    """A data point and what was found."""

    point: DataPoint
    result: Any
    values: Fields  # fields and metrics

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def published(self, metric: str) -> float | None:
        """Return the published value of a metric, if there is one."""
        known = self.point.expected.get(metric)
        return None if known is None else known.published.value


@dataclass(frozen=True)
class Selection:
    """A row or column of a grid: the data points with these fields."""

    title: str
    where: Fields
    group: str = ""  # a common head with others
    head: str = ""  # in tables, instead of the title
    note: str = ""


def by(name: str, values: Iterable[Any], group: str = "") -> tuple[Selection, ...]:
    """Return a selection for each value of a field."""
    return tuple(Selection(str(value), {name: value}, group) for value in values)


CellOf = Callable[[Measured], Cell]


@dataclass(frozen=True)
class Grid:
    """Data points by two or more fields, as a table and as the panels of figures."""

    title: str
    caption: str
    rows: tuple[Selection, ...]
    columns: tuple[Selection, ...]
    cells: Mapping[str, CellOf]  # by head; a column of the table for each
    corner: tuple[str, ...] = ("",)  # heads of the columns that name the row
    groups_by_row: bool = False  # whether bars are grouped by row, with a bar for each column

    def at(self, found: ExperimentResult, row: Selection, column: Selection) -> Measured:
        """Return the data point of a row and a column."""
        return found.one(**{**row.where, **column.where})

    def table(self, found: ExperimentResult) -> Table:
        """Return the grid as a table."""
        columns = list(product(self.columns, self.cells.items()))
        several = len(self.cells) > 1
        return Table(
            self.title,
            self.caption,
            (
                *(Column(head, prose=not self.groups_by_row) for head in self.corner),
                *(
                    Column(head, one.group or one.title)
                    if several
                    else Column(one.head or one.title, one.group)
                    for one, (head, _) in columns
                ),
            ),
            [
                [
                    *self._names(index, row),
                    *(cell(self.at(found, row, column)) for column, (_, cell) in columns),
                ]
                for index, row in enumerate(self.rows)
            ],
            by_label=len(self.corner) > 1,
        )

    def _names(self, index: int, row: Selection) -> list[Cell]:
        if self.groups_by_row:
            return [Cell(row.head or row.title, row.note)]
        if row.group:
            return [Cell(row.group, prose=True), Cell(row.title, prose=True)]
        return [Cell(row.title, row.note, prose=True, label=index)]


@dataclass(frozen=True)
class GridPanel:
    """One metric of a grid as bars or, with a label for x, as lines."""

    title: str
    grid: Grid
    metric: str
    x_label: str = ""
    scale: float = 1.0  # of the metric
    log_x: bool = False
    log_y: bool = False
    targets: tuple[float, ...] = ()  # horizontal lines, scaled
    curve: Callable[[Any], tuple[Sequence[float], Sequence[float]]] | None = None  # of a result

    @property
    def bars(self) -> tuple[tuple[Selection, ...], tuple[Selection, ...]]:
        """The groups of bars, and the bars in every group."""
        grid = self.grid
        return (grid.rows, grid.columns) if grid.groups_by_row else (grid.columns, grid.rows)

    def measured(self, found: ExperimentResult) -> list[Measured]:
        """Return the data points of all bars, by group."""
        groups, bars = self.bars
        return [self.grid.at(found, group, bar) for group in groups for bar in bars]

    def text(self, found: ExperimentResult) -> str:
        """Return the values of the panel as text."""
        grid = self.grid
        rows = (
            f"{row.title} "
            + ", ".join(number(grid.at(found, row, one)[self.metric]) for one in grid.columns)
            for row in grid.rows
        )
        columns = ", ".join(" ".join(column.title.split()) for column in grid.columns)
        return f"{self.title}, by {columns}: {'; '.join(rows)}."


@dataclass(frozen=True)
class Figure:
    """Panels of grids side by side."""

    name: str  # of the PNG
    title: str
    caption: str
    panels: Sequence[GridPanel]

    def text(self, found: ExperimentResult) -> str:
        """Return the values as text, for screen readers."""
        return " ".join(panel.text(found) for panel in self.panels)


Compare = Callable[["ExperimentResult"], Comparison]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is measured, and how it is presented."""

    name: str
    points: Sequence[DataPoint]
    tables: Sequence[Grid]
    figures: Sequence[Figure]
    comparisons: Sequence[Compare] = ()  # beside those of data points
    headline: Sequence[Compare] = ()  # comparisons with the gains in the abstract
    deployments: Mapping[str, Deployment] = field(default_factory=dict)  # whose accuracy is printed

    @property
    def words(self) -> Words:
        return WORDS[self.name]

    @property
    def jobs(self) -> list[Job]:
        return [point.job for point in self.points if point.job is not None]


class ExperimentResult:
    """A figure or a table of the paper, done again: all data points of an experiment, measured."""

    def __init__(self, experiment: Experiment, results: Results) -> None:
        self.experiment = experiment
        self.all: list[Measured] = []
        for point in experiment.points:
            result = point.result if point.job is None else point.select(results[point.job])
            values = {name: metric(result) for name, metric in point.metrics.items()}
            self.all.append(Measured(point, result, {**point.fields, **values}))

    def one(self, **fields: Any) -> Measured:
        """Return the data point with exactly these fields."""
        return next(one for one in self.all if one.point.fields == fields)

    @property
    def comparisons(self) -> list[Comparison]:
        return [
            *(
                replace(expected, ours=one[metric])
                for one in self.all
                for metric, expected in one.point.expected.items()
            ),
            *(compare(self) for compare in self.experiment.comparisons),
        ]

    @property
    def headline(self) -> list[Comparison]:
        return [compare(self) for compare in self.experiment.headline]

    @property
    def tables(self) -> list[Table]:
        return [grid.table(self) for grid in self.experiment.tables]

    @property
    def accuracy(self) -> list[str]:
        """That of the cost models."""
        deployments = self.experiment.deployments.items()
        return [f"{label}: {describe_accuracy(deployment)}" for label, deployment in deployments]

    @property
    def values(self) -> list[Fields]:
        """Everything that was found, for other programs."""
        return [one.values for one in self.all if one.point.exported]

    def fields(self) -> dict[str, Any]:
        """Return the JSON object of the experiment."""
        words = self.experiment.words
        return {
            "title": words.title,
            "of": words.source,
            "text": words.text,
            "comparisons": [one.fields() for one in self.comparisons],
            "headline": [one.fields() for one in self.headline],
            "values": self.values,
            "remarks": words.notes,
            "accuracy": self.accuracy,
        }
