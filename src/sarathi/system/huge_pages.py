"""Moves memory of this process to huge pages, so that reading it misses the TLB less often."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import suppress
from mmap import PAGESIZE
from pathlib import Path

import numpy as np

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/maps")
_HUGE = 2 << 20  # bytes
_MADV_COLLAPSE = 25  # Linux 6.1; older kernels refuse it


def collapse_resident_memory() -> int:
    """Move anonymous memory to huge pages where all of it is resident; return the bytes tried.

    Memory that is allocated and not yet used, such as most of a KV cache, stays as it is: on a huge
    page it would be taken at once. Does nothing where the kernel has no huge pages or an
    administrator has switched them off.
    """
    tried = 0
    with suppress(OSError, AttributeError, ValueError):
        if "[never]" in _SETTING.read_text():
            return 0
        libc = ctypes.CDLL(None)
        for start, end in anonymous_ranges(_MAPS.read_text().splitlines()):
            for first, last in _resident_runs(libc, start, end):
                # May fail: memory is short, or a page is pinned. The small pages remain.
                address, size = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
                libc.madvise(address, size, _MADV_COLLAPSE)
                tried += last - first
    return tried


def anonymous_ranges(maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield the addresses of writable private memory without a file, in whole huge pages.

    `maps` are lines as in /proc/self/maps.
    """
    for line in maps:
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access != "rw-p" or inode != "0" or (name and name[0] != "[heap]"):
            continue
        start, end = (int(part, 16) for part in addresses.split("-"))
        start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if start < end:
            yield start, end


def _resident_runs(libc: ctypes.CDLL, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield runs of huge pages that are resident as a whole."""
    resident = np.zeros((end - start) // PAGESIZE, np.uint8)
    address, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
    if libc.mincore(address, size, resident.ctypes.data_as(ctypes.c_void_p)):
        return  # it has been unmapped by now
    whole = (resident & 1).reshape(-1, _HUGE // PAGESIZE).all(axis=1)
    edges = np.flatnonzero(np.diff(whole, prepend=False, append=False))
    for first, last in edges.reshape(-1, 2).tolist():
        yield start + first * _HUGE, start + last * _HUGE
