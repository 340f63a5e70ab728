"""How far an executor is with reading its tensors."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable

import numpy as np

from sarathi.models.weights import ALL, Array, Weights

_INTERVAL = 0.5  # seconds between two reports

ProgressCallback = Callable[[float], None]


def rate_limited(tell: ProgressCallback) -> ProgressCallback:
    """The same, but not more often than anyone wants to know. Calls may come from many threads,
    `tell` is called by one at a time."""
    lock = threading.Lock()
    told = time.monotonic()

    def filtered(share: float) -> None:
        nonlocal told
        with lock:
            now = time.monotonic()
            if now > told + _INTERVAL:
                told = now
                tell(share)

    return filtered


class CountedWeights:
    """The weights of a checkpoint, and how many of those wanted have been read."""

    def __init__(self, weights: Weights, wanted: int, tell: ProgressCallback) -> None:
        """
        Args:
            wanted: tensors that will be read.
            tell: called with the share of them that has been read, from any thread.
        """
        self._weights = weights
        self._wanted = wanted
        self._tell = tell
        self._seen: set[str] = set()

    def __getitem__(self, name: str) -> Array:
        array = self._weights[name]
        self._count(name)
        return array

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        array = self._weights.part(name, rows, columns)
        self._count(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        return self._weights.stored_dtype(name)

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        return self._weights.mappings

    def _count(self, name: str) -> None:
        self._seen.add(name)
        self._tell(min(1.0, len(self._seen) / self._wanted))
