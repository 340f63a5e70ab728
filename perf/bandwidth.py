"""How fast can this machine read its memory?"""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sarathi.system.machine import usable_cores

_SIZE = 2**29  # bytes, of all threads: far more than any cache
_TRIES = 9


def read_bandwidth() -> float:
    """Return bytes per second, of all cores together: the best of several passes.

    Each thread has C's `memchr` look for a byte that is not there, which reads with the widest
    instructions and outside of Python's lock.
    """
    threads = usable_cores()
    memchr = ctypes.CDLL(None).memchr
    memchr.restype = ctypes.c_void_p
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    # Written to: pages that never were are one and the same.
    pieces = [np.ones(_SIZE // threads, np.uint8) for _ in range(threads)]

    def read(piece: np.ndarray) -> None:
        found = memchr(piece.ctypes.data, 0, piece.nbytes)
        assert found is None

    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            began = time.perf_counter()
            list(pool.map(read, pieces))
            seconds.append(time.perf_counter() - began)
    return sum(piece.nbytes for piece in pieces) / min(seconds)


if __name__ == "__main__":
    print(f"{read_bandwidth() / 1e9:.1f} GB/s")
