"""What nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is dominating it.

    Less is better in every coordinate. Equal points do not dominate one another.
    """
    return [not any(dominates(other, point) for other in points) for point in points]


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """It is at least as good in everything, and better in something."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
