"""The content of figures, independent of the plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """A line of a panel."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int  # position of the label, as in tables
    published: bool = False  # drawn hollow and dashed
    points: bool = True  # marks at the values


@dataclass(frozen=True)
class Panel:
    """Lines over a common axis."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    targets: tuple[float, ...] = ()  # horizontal lines, in the unit of y


@dataclass(frozen=True)
class Bar:
    """A bar, or a text in its place where there is no value."""

    value: float | None
    published: float | None = None  # a mark beside it
    text: str = ""  # at its end; by default the value


@dataclass(frozen=True)
class BarPanel:
    """Groups of horizontal bars, one bar of each series in every group."""

    title: str
    groups: tuple[str, ...]
    series: tuple[str, ...]
    bars: tuple[tuple[Bar, ...], ...]  # by group, then by series
    log: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure of one or more panels."""

    name: str  # of the PNG
    title: str
    caption: str
    alternative: str  # its values as text, for screen readers
    panels: tuple[Panel, ...] | tuple[BarPanel, ...]
