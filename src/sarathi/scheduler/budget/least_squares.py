"""Least squares with coefficients that cannot be negative."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

_SWEEPS = 1000
_PRECISION = 1e-7  # of a coefficient, relative to the one that explains everything alone
_ROUNDS = 4  # of weighing outliers less
_CLIP = 0.1  # relative error above which an observation counts less


def fit_relative(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return coefficients c >= 0, one a column, with the least relative errors of `row . c`.

    The loss is Huber's: squares up to an error of a tenth, straight from there, so that a few
    outliers do not count much. Reweighted least squares, each solved by coordinate descent.

    Args:
        rows: not negative.
        targets: above 0.
    """
    shares = [[x / target for x in row] for row, target in zip(rows, targets, strict=True)]
    sizes = [sqrt(sum(x * x for x in column)) or 1.0 for column in zip(*shares, strict=True)]
    scaled = [[x / size for x, size in zip(row, sizes, strict=True)] for row in shares]
    weights = [1.0] * len(scaled)
    solution = [0.0] * len(sizes)
    for _ in range(_ROUNDS):
        _descend(scaled, weights, solution)
        errors = [abs(_dot(row, solution) - 1) for row in scaled]
        weights = [1.0 if error <= _CLIP else _CLIP / error for error in errors]
    return [x / size for x, size in zip(solution, sizes, strict=True)]


def _descend(rows: list[list[float]], weights: list[float], solution: list[float]) -> None:
    """Improve `solution` of the weighted problem whose targets are all 1."""
    width = len(solution)
    matrix = [
        [
            sum(w * row[i] * row[j] for w, row in zip(weights, rows, strict=True))
            for j in range(width)
        ]
        for i in range(width)
    ]
    vector = [sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(width)]
    for _ in range(_SWEEPS):
        before = solution[:]
        for i, line in enumerate(matrix):
            if line[i] > 0:
                solution[i] = max(0.0, solution[i] + (vector[i] - _dot(line, solution)) / line[i])
        if all(abs(a - b) <= _PRECISION for a, b in zip(solution, before, strict=True)):
            return


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
