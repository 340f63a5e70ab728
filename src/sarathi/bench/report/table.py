"""What a report says in numbers, before it is HTML."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from sarathi.bench.number_format import MISSING, interval, number
from sarathi.bench.report.measured import ReportData
from sarathi.telemetry import Distribution, Summary


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""  # below it, smaller
    tone: str = ""  # "good" or "bad"
    label: int | None = None  # the position of the label whose colour is before the text
    prose: bool = False  # words, on the left


@dataclass(frozen=True)
class Column:
    head: str
    group: str = ""  # a head over several columns
    prose: bool = False


@dataclass(frozen=True)
class Table:
    """The first cell of a row names it."""

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]
    by_label: bool = False  # rows of one label follow under it, and their second cell names them

    @property
    def sections(self) -> list[tuple[Cell | None, list[list[Cell]]]]:
        """Rows under a common head, or under none."""
        if not self.by_label:
            return [(None, self.rows)]
        runs = groupby(self.rows, key=lambda row: row[0])
        return [(head, [row[1:] for row in rows]) for head, rows in runs]

    @property
    def groups(self) -> list[tuple[str, list[Column]]]:
        """Heads over columns, and those."""
        columns = self.columns[1:] if self.by_label else self.columns
        runs = groupby(columns, key=lambda column: column.group)
        return [(group, list(columns)) for group, columns in runs]


LABEL = Column("", prose=True)
RATE = Column("rate (1/s)")


def label_cell(measured: ReportData, label: str) -> Cell:
    return Cell(label, label=measured.labels.index(label), prose=True)


def in_milliseconds(value: float | None) -> str:
    """
    Args:
        value: seconds.
    """
    return number(None if value is None else 1000 * value)


def percentile_cell(values: Distribution, percentile: str, milliseconds: bool) -> Cell:
    """With its interval.

    Args:
        percentile: such as "P99".
    """
    shown = in_milliseconds if milliseconds else number
    bounds = getattr(values, f"{percentile.lower()}_interval")
    value = getattr(values, percentile.lower())
    return Cell(shown(value), "" if bounds is None else interval(bounds, shown))


def complete_cell(summary: Summary) -> Cell:
    return Cell(f"{summary.completed:,} of {summary.requests:,}")


def failure_counts(summary: Summary) -> str:
    """How many of each kind."""
    if not summary.failures:
        return MISSING
    return ", ".join(f"{count:,} {kind}" for kind, count in summary.failures.items())
