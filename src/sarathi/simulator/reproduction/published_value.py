"""Published values beside ours, with the ratio and the reason where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sarathi.bench.number_format import MISSING, number
from sarathi.bench.report.table import Cell, Column, ColumnOf, Table, table_of

FAR = 0.25  # relative difference above which the report gives a reason
UNKNOWN = "not known"

Medium = Literal["printed", "file", "plot"]
_MEDIUM = {
    "printed": "printed",
    "file": "a file of the artifact",
    "plot": "read off a plot of the artifact",
}


@dataclass(frozen=True)
class Published:
    """A value of the paper, or of the artifact that was published with it."""

    value: float
    where: str  # section, table or file
    medium: Medium = "printed"

    @property
    def source(self) -> str:
        return f"{self.where}, {_MEDIUM[self.medium]}"


@dataclass(frozen=True)
class Comparison:
    """A published value, and ours."""

    what: str
    ours: float | None  # None: there is none, for instance because no rate met a target
    published: Published
    unit: str  # "s", "ms", "x"
    why: str = ""  # the reason for a difference; empty: not known
    note: str = ""  # more about our value

    @property
    def ratio(self) -> float | None:
        """Our value divided by the published one."""
        return None if self.ours is None else self.ours / self.published.value

    @property
    def far(self) -> bool:
        return self.ratio is None or abs(self.ratio - 1) > FAR

    @property
    def reason(self) -> str:
        """The reason for the difference, where the values are far from each other."""
        return (self.why or UNKNOWN) if self.far else ""

    def fields(self) -> dict[str, Any]:
        """Return the JSON object of the comparison."""
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours,
            "published": self.published.value,
            "ratio": self.ratio,
            "source": self.published.source,
            "remark": self.reason,
            "note": self.note,
        }


def comparison_table(title: str, caption: str, comparisons: Sequence[Comparison]) -> Table | None:
    """Tabulate ours beside theirs, with ratios, sources and reasons; None without any."""
    columns: list[ColumnOf[Comparison]] = [
        (Column("", prose=True), lambda one: Cell(one.what, one.note, prose=True)),
        (Column("ours"), lambda one: _quantity(one.ours, one.unit)),
        (Column("published"), lambda one: _quantity(one.published.value, one.unit)),
        (Column("ratio"), lambda one: Cell(number(one.ratio), tone="bad" if one.far else "good")),
        (Column("published where", prose=True), lambda one: one.published.source),
        (Column("why they differ", prose=True), lambda one: one.reason),
    ]
    return table_of(title, caption, comparisons, columns)


def _quantity(value: float | None, unit: str) -> str:
    text = number(value)
    if text == MISSING:
        return text
    return f"{text}{unit}" if unit == "x" else f"{text} {unit}"


def gain(ours: float | None, theirs: float | None) -> float | None:
    """Return how many times as much ours is; None where a value is missing or theirs is 0."""
    return None if ours is None or not theirs else ours / theirs
