"""Weights in the precision in which they are served, backed by files rather than by memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from sarathi.errors import ModelError
from sarathi.models.weights import Array, Weights
from sarathi.system.cache_folder import cache_folder
from sarathi.system.machine import usable_cores

_ALIGNMENT = 64  # bytes: a cache line
_DROP_INTERVAL = 0.02  # seconds


class WeightStore:
    """The tensors of a model, all in one precision, backed by files.

    A tensor that the checkpoint stores in that precision is a view of the mapped checkpoint. Any
    other is converted, or dequantised, once into an unlinked scratch file that vanishes with the
    process. So the kernel can drop every page and read it again, and loading does not keep a
    second copy of the model in addition to the one that the executor packs for its kernels.
    """

    def __init__(
        self,
        weights: Weights,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: npt.DTypeLike,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Convert the tensors that `shapes` names, on all cores; `on_progress` gets the share of
        them that has been read."""
        self._weights = weights
        self._dtype = np.dtype(dtype)
        self._arrays: dict[str, Array] = {}
        self._on_progress = on_progress
        for name in shapes:
            if weights.stored_dtype(name) == self._dtype:
                self._arrays[name] = weights[name]
                on_progress(len(self._arrays) / len(shapes))
        converted = {name: shape for name, shape in shapes.items() if name not in self._arrays}
        self._mappings = list(weights.mappings)
        if converted:
            self._convert(converted)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def drop_pages(self) -> None:
        """Release the memory of all pages; a later access reads them from the file again."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def dropping_pages(self) -> Iterator[None]:
        """Drop pages again and again while the body reads every weight once."""
        stop = threading.Event()

        def drop() -> None:
            while not stop.wait(_DROP_INTERVAL):
                self.drop_pages()

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.drop_pages()

    def _convert(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        offsets, size = {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            num_bytes = int(np.prod(shape)) * self._dtype.itemsize
            size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        scratch = _scratch_file(size)
        num_mapped = len(self._arrays)
        self._mappings.append(scratch)

        def convert(name: str) -> None:  # in a thread
            count = int(np.prod(shapes[name]))
            flat = np.frombuffer(scratch, self._dtype, count, offsets[name])
            target = flat.reshape(shapes[name])
            target[...] = self._weights[name]
            self._arrays[name] = target
            self.drop_pages()

        with ThreadPoolExecutor(usable_cores()) as pool:
            for count, _ in enumerate(pool.map(convert, shapes), num_mapped + 1):
                self._on_progress(count / (num_mapped + len(shapes)))
        _return_freed_memory()


def _return_freed_memory() -> None:
    """Have glibc release what the conversion has freed: half of a small model."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _scratch_file(size: int) -> mmap.mmap:
    """Map a new, unlinked file of `size` bytes."""
    folder = cache_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # fails here, not at a later write
            else:
                file.truncate(size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise ModelError(
            f"{size / 1e9:.1f} GB of scratch space for converted weights cannot be had in "
            f"{folder} ({error.strerror}); set XDG_CACHE_HOME to a folder with free space"
        ) from error
