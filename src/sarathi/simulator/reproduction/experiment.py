"""What an experiment gives: tables, figures, and each published value beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sarathi.bench.number_format import MISSING, number
from sarathi.bench.report.table import Cell, Column, Table
from sarathi.simulator.reproduction.chart import Chart

FAR = 0.25  # relative difference from which on the report says why
UNKNOWN = "not known"

How = Literal["printed", "file", "plot"]
_HOW = {
    "printed": "printed",
    "file": "a file of the artifact",
    "plot": "read off a plot of the artifact",
}


@dataclass(frozen=True)
class Published:
    """A value of the paper, or of the artifact that was published with it."""

    value: float
    where: str  # section, table or file
    how: How = "printed"

    @property
    def source(self) -> str:
        return f"{self.where}, {_HOW[self.how]}"


@dataclass(frozen=True)
class Comparison:
    """A published value, and ours."""

    what: str
    ours: float | None  # None: we have none, for instance as no rate met a target
    published: Published
    unit: str  # "s", "ms", "x", "1/s", "tokens/s"
    why: str = ""  # why they differ, where they do; empty: not known
    note: str = ""  # what ours is of

    @property
    def ratio(self) -> float | None:
        """Of ours to the published value."""
        return None if self.ours is None else self.ours / self.published.value

    @property
    def far(self) -> bool:
        return self.ratio is None or abs(self.ratio - 1) > FAR

    @property
    def remark(self) -> str:
        return (self.why or UNKNOWN) if self.far else ""

    def fields(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours,
            "published": self.published.value,
            "ratio": self.ratio,
            "source": self.published.source,
            "remark": self.remark,
            "note": self.note,
        }


@dataclass(frozen=True)
class Experiment:
    """A figure or a table of the paper, done again."""

    name: str
    title: str
    of: str  # which figure or table of the paper
    text: str  # what was done
    comparisons: tuple[Comparison, ...]
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...]
    remarks: tuple[str, ...]
    accuracy: tuple[str, ...]  # of the cost models behind it
    values: tuple[dict[str, Any], ...]  # all that was found, for other programs
    headline: tuple[Comparison, ...] = ()  # of the comparisons, those that the abstract tells

    def fields(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "of": self.of,
            "text": self.text,
            "comparisons": [one.fields() for one in self.comparisons],
            "headline": [one.fields() for one in self.headline],
            "values": list(self.values),
            "remarks": list(self.remarks),
            "accuracy": list(self.accuracy),
        }


def comparison_table(title: str, caption: str, comparisons: Sequence[Comparison]) -> Table:
    """Ours beside theirs, with the ratio; where it is far from 1, with the reason."""
    return Table(
        title,
        caption,
        (
            Column("", prose=True),
            Column("ours"),
            Column("published"),
            Column("ratio"),
            Column("published where", prose=True),
            Column("why they differ", prose=True),
        ),
        [_row(one) for one in comparisons],
    )


def _row(one: Comparison) -> list[Cell]:
    ratio = one.ratio
    return [
        Cell(one.what, one.note, prose=True),
        Cell(quantity(one.ours, one.unit)),
        Cell(quantity(one.published.value, one.unit)),
        Cell(MISSING if ratio is None else number(ratio), tone="bad" if one.far else "good"),
        Cell(one.published.source, prose=True),
        Cell(one.remark, prose=True),
    ]


def quantity(value: float | None, unit: str) -> str:
    text = number(value)
    if text == MISSING:
        return text
    return f"{text}{unit}" if unit == "x" else f"{text} {unit}"


def gain(ours: float | None, theirs: float | None) -> float | None:
    """How many times as much; None where there is nothing to divide by."""
    return None if ours is None or not theirs else ours / theirs
