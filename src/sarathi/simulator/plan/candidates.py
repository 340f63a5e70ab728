"""Candidates of a plan: devices to rent, and the ways to split a model over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

from sarathi.errors import SimulationError

if TYPE_CHECKING:  # command lines are parsed without the simulator
    from sarathi.simulator.setup import Setup

DERIVED = "target"  # instead of a token budget: it follows from the latency target


@dataclass(frozen=True, order=True)
class DeviceLayout:
    """One replica."""

    device: str
    tp: int
    pp: int
    token_budget: int | None  # of an iteration; None: what the latency target leaves

    @property
    def devices(self) -> int:
        return self.tp * self.pp

    @property
    def split(self) -> str:
        return f"TP{self.tp}" + (f"-PP{self.pp}" if self.pp > 1 else "")

    def __str__(self) -> str:
        budget = "" if self.token_budget is None else f" budget {self.token_budget}"
        return f"{self.device} {self.split}{budget}"


@dataclass(frozen=True)
class Candidate:
    """A replica that fits into its devices."""

    layout: DeviceLayout
    setup: Setup  # of one replica
    price: float  # dollars an hour, of a device; above 0

    @property
    def replica_price(self) -> float:
        return self.price * self.layout.devices


# Why a layout is no choice: it does not fit, it is never fast enough, or it costs too much.
Kind = Literal["does not fit", "misses", "costs more"]


@dataclass(frozen=True)
class Rejected:
    """A layout that is no choice."""

    layout: DeviceLayout
    kind: Kind
    reason: str  # one line
    detail: str = ""  # the arithmetic behind it, perhaps several lines


def layouts(
    devices: Iterable[str],
    tps: Sequence[int],
    pps: Sequence[int],
    budgets: Sequence[int | None],
    max_devices: int,
) -> list[DeviceLayout]:
    """Return all layouts with at most `max_devices` for a replica."""
    found = (DeviceLayout(*each) for each in product(devices, tps, pps, budgets))
    return [layout for layout in found if layout.devices <= max_devices]


def candidates(
    layouts: Iterable[DeviceLayout],
    prices: Mapping[str, float],
    make: Callable[[DeviceLayout], Setup],
) -> tuple[list[Candidate], list[Rejected]]:
    """Return the candidates that fit, and the other layouts with their arithmetic.

    Args:
        prices: by device, in dollars an hour.
        make: returns the setup of one replica; raises SimulationError where the model cannot be
            laid out so.
    """
    fit: list[Candidate] = []
    others: list[Rejected] = []
    for layout in layouts:
        try:
            fit.append(Candidate(layout, make(layout), prices[layout.device]))
        except SimulationError as error:
            reason, _, detail = str(error).partition("\n")
            others.append(Rejected(layout, "does not fit", reason, detail))
    return fit, others
