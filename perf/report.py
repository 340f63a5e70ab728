"""Figures beside their targets, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

MODEL = "smollm2-135m"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Figure:
    """A measured value, and the bound it should keep; None where it is for information.

    A value of None could not be measured on this machine.
    """

    name: str
    value: float | None
    unit: str = ""
    target: float | None = None
    bound: Literal["at most", "at least"] = "at most"

    @property
    def met(self) -> bool | None:
        if self.target is None or self.value is None:
            return None
        return self.value <= self.target if self.bound == "at most" else self.value >= self.target


def show(title: str, figures: Sequence[Figure], note: str | None = None) -> None:
    """Print a table. A missed target is marked, never an error: machines differ."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("met")
    for figure in figures:
        table.add_row(*cells(figure))
    Console().print(table)


def cells(figure: Figure) -> tuple[str, str, str, str]:
    """A row of a table: name, value, target, whether it is met."""
    target = ""
    if figure.target is not None:
        target = f"{figure.bound} {_number(figure.target, figure.unit)}"
    value = "not measured" if figure.value is None else _number(figure.value, figure.unit)
    return figure.name, value, target, {None: "", True: "yes", False: "NO"}[figure.met]


def rounds(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    console = Console(stderr=True)
    disable = not console.is_terminal
    yield from track(items, title, total, console=console, transient=True, disable=disable)


def _number(value: float, unit: str) -> str:
    if isinstance(value, int):
        return f"{value} {unit}".rstrip()
    if unit == "%":
        return f"{100 * value:.1f} %"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f} {unit}".rstrip()
