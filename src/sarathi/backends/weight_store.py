"""Weights in the form in which they are served, backed by files rather than by memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from sarathi.backends.quantization import Forms, Shapes, num_bytes
from sarathi.errors import ModelError
from sarathi.models.quantized import IntegerForm, PackedMatrix, QuantizedRows, quantize
from sarathi.models.weights import Array, Weights
from sarathi.system.cache_folder import cache_folder
from sarathi.system.machine import usable_cores

_ALIGNMENT = 64  # bytes: a cache line
_ARRAYS = 3  # at most, of a tensor: integers, scales, zero points
_DROP_INTERVAL = 0.02  # seconds
_PIECE = 1 << 18  # elements that are converted at a time: they stay in the processor's cache


class WeightStore:
    """The tensors of a model as they are served, backed by files.

    A tensor that the checkpoint stores in the served precision is a view of the mapped checkpoint.
    Any other is converted, or quantised, once into an unlinked scratch file that vanishes with the
    process. So the kernel can drop every page and read it again, and loading does not keep a
    second copy of the model in addition to the one that the executor packs for its kernels.
    """

    def __init__(
        self,
        weights: Weights,
        shapes: Shapes,
        dtype: npt.DTypeLike,
        forms: Forms,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Convert the tensors that `shapes` names, on all cores.

        Args:
            dtype: of all tensors but those in `forms`, which are served in integers.
            on_progress: called with the share of the tensors that has been read.
        """
        self._weights = weights
        self._dtype = np.dtype(dtype)
        self._tensors: dict[str, Array | PackedMatrix] = {}
        self._on_progress = on_progress
        for name in shapes:
            if name not in forms and weights.stored_dtype(name) == self._dtype:
                self._tensors[name] = weights[name]
                on_progress(len(self._tensors) / len(shapes))
        converted = {name: shape for name, shape in shapes.items() if name not in self._tensors}
        self._mappings = list(weights.mappings)
        if converted:
            self._convert(converted, forms)

    def __getitem__(self, name: str) -> Array | PackedMatrix:
        return self._tensors[name]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

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

    def _convert(self, shapes: Shapes, forms: Forms) -> None:
        size = num_bytes(shapes, forms, self._dtype.itemsize)
        scratch = _ScratchFile(size + _ARRAYS * len(shapes) * _ALIGNMENT)
        num_mapped = len(self._tensors)
        self._mappings.append(scratch.mapping)
        targets = {
            name: scratch.array(shape, self._dtype)
            if (form := forms.get(name)) is None
            else PackedMatrix.empty(form, shape, scratch.array)
            for name, shape in shapes.items()
        }

        def convert(name: str) -> None:  # in a thread
            target = self._tensors[name] = targets[name]
            # In pieces: as float32, a whole head would be larger than all that is served.
            rows = max(1, _PIECE // math.prod(shapes[name][1:]))
            for start in range(0, shapes[name][0], rows):
                wanted = slice(start, min(start + rows, shapes[name][0]))
                if isinstance(target, PackedMatrix):
                    target.store(start, _quantized(self._weights, name, wanted, target.form))
                else:
                    target[wanted] = self._weights.part(name, wanted)
            self.drop_pages()

        with ThreadPoolExecutor(usable_cores()) as pool:
            for count, _ in enumerate(pool.map(convert, shapes), num_mapped + 1):
                self._on_progress(count / (num_mapped + len(shapes)))
        _return_freed_memory()


def _quantized(weights: Weights, name: str, rows: slice, form: IntegerForm) -> QuantizedRows:
    """Read rows of a matrix in a form: exactly if it is the stored one, otherwise rounded to it."""
    stored = weights.form(name)
    if stored == form:
        return weights.quantized(name, rows)
    if stored is None:
        elements = weights.part(name, rows).astype(np.float32, copy=False)
    else:
        elements = weights.quantized(name, rows).dequantized()
    with np.errstate(invalid="ignore", over="ignore"):
        found = quantize(elements, form)
    if not np.isfinite(found.scales).all():
        raise ModelError(
            f"tensor {name} of type {weights.stored_type(name)} has values that are not finite"
        )
    return found


class _ScratchFile:
    """An unlinked file that arrays are laid out in, one after the other."""

    def __init__(self, size: int) -> None:
        self.mapping = _scratch_file(size)
        self._end = 0

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        dtype, count = np.dtype(dtype), math.prod(shape)
        flat = np.frombuffer(self.mapping, dtype, count, self._end)
        self._end += -(-flat.nbytes // _ALIGNMENT) * _ALIGNMENT
        return flat.reshape(shape)


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
