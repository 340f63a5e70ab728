"""A table as data: described once, shown on a page and on a terminal.

Numbers are formatted with three significant digits and a unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias, TypeVar

from sarathi.telemetry import Distribution, Summary

MISSING = "-"  # an unknown value


def number(value: float | None) -> str:
    """Format a number such as 1,234 or 12.3 or 0.00123."""
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = float(f"{value:.2e}")
    if not rounded:
        return "0"
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:g}" if magnitude < -4 else f"{value:,.{max(0, 2 - magnitude)}f}"


def plain(value: float | None) -> str:
    """Format a number without zeros at the end."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def in_milliseconds(value: float | None) -> str:
    """Format a time in seconds as a number of milliseconds."""
    return number(None if value is None else 1000 * value)


def milliseconds(value: float | None) -> str:
    """Format a time in seconds as milliseconds."""
    return _with_unit(in_milliseconds(value), " ms")


def seconds(value: float | None) -> str:
    """Format a time in seconds, as milliseconds below a tenth."""
    if value is not None and 0 < value < 0.1:
        return milliseconds(value)
    return _with_unit(number(value), " s")


def rate(value: float | None) -> str:
    """Format a rate per second."""
    return _with_unit(plain(value), "/s")


def percent(share: float | None) -> str:
    """Format a share as a percentage."""
    return _with_unit(plain(None if share is None else 100 * share), " %")


def interval(bounds: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    """Format both ends of an interval, with one unit where they have the same."""
    if bounds is None:
        return MISSING
    low, high = map(shown, bounds)
    unit = high.lstrip("0123456789.,")
    return f"{low.removesuffix(unit)} to {high}"


def _with_unit(text: str, unit: str) -> str:
    return text if text == MISSING else text + unit


@dataclass(frozen=True)
class Cell:
    """A value, and how to emphasise it."""

    text: str
    note: str = ""  # smaller, below it
    tone: str = ""  # "good" or "bad"
    label: int | None = None  # the index of the label whose colour is before the text
    prose: bool = False  # words, aligned left

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    head: str
    group: str = ""  # a head over several columns
    prose: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first cell of a row names it."""

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]
    by_label: bool = False  # rows of one label are below its name, named by their second cell

    @property
    def sections(self) -> list[tuple[Cell | None, list[list[Cell]]]]:
        """Rows under a common head, or under none."""
        if not self.by_label:
            return [(None, self.rows)]
        runs = groupby(self.rows, key=lambda row: row[0])
        return [(head, [row[1:] for row in rows]) for head, rows in runs]

    @property
    def groups(self) -> list[tuple[str, list[Column]]]:
        """Heads over columns, and these columns."""
        columns = self.columns[1:] if self.by_label else self.columns
        runs = groupby(columns, key=lambda column: column.group)
        return [(group, list(columns)) for group, columns in runs]


T = TypeVar("T")
ColumnOf: TypeAlias = tuple[Column, Callable[[T], Cell | str]]  # with the cell of an item


def table_of(
    title: str,
    caption: str,
    items: Iterable[T],
    columns: Sequence[ColumnOf[T]],
    by_label: bool = False,
) -> Table | None:
    """Build a table with a row for each item, or None without items."""

    def cell(value: Cell | str, column: Column) -> Cell:
        return Cell(value, prose=column.prose) if isinstance(value, str) else value

    rows = [[cell(of(item), column) for column, of in columns] for item in items]
    heads = tuple(column for column, _ in columns)
    return Table(title, caption, heads, rows, by_label) if rows else None


def percentile_cell(values: Distribution, percentile: str, milliseconds: bool) -> Cell:
    """Return a percentile, such as "P99", with its interval."""
    shown = in_milliseconds if milliseconds else number
    value, bounds = (getattr(values, percentile.lower() + end) for end in ("", "_interval"))
    return Cell(shown(value), "" if bounds is None else interval(bounds, shown))


def failure_counts(summary: Summary) -> str:
    """Return how many requests failed, by kind."""
    if not summary.failures:
        return MISSING
    return ", ".join(f"{count:,} {kind}" for kind, count in summary.failures.items())
