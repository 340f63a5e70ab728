"""The files of checkpoints: what kind they are, and the arrays in them, mapped into memory."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import numpy as np

from sarathi.errors import ModelError
from sarathi.models.weights import Array

GGUF_MAGIC = b"GGUF"
_GIT_LFS = b"version https://git-lfs.github.com/spec/"
# The most that the kernel reads ahead for one request (the default of Linux).
_REQUEST = 128 << 10  # bytes
_PAGE = mmap.PAGESIZE
_BATCH = 1 << 24  # bytes that are requested before the first of them is used


def is_gguf(path: Path) -> bool:
    """Return whether `path` is a file in the format GGUF, or has the suffix .gguf.

    The latter may be truncated or something else, which its reader finds out.
    """
    return path.is_file() and (
        path.suffix.lower() == ".gguf" or _beginning(path, len(GGUF_MAGIC)) == GGUF_MAGIC
    )


def lfs_hint(path: Path) -> str:
    """Return what to add to the error about a file that cannot be read, if it is known why."""
    if _beginning(path, len(_GIT_LFS)) == _GIT_LFS:
        return "; it is a pointer of git-lfs, run `git lfs pull` to fetch the file itself"
    return ""


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def map_file(path: Path) -> mmap.mmap:
    """Map `path` for reading; `ModelError` if that is impossible (missing, empty, folder)."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def mapped_array(
    mapping: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> Array:
    """Return the array `offset` bytes into a mapped file, as a read-only view."""
    view = np.frombuffer(mapping, dtype, math.prod(shape), offset).reshape(shape)
    # Formats do not promise alignment, and native code reads these pointers.
    return np.require(view, requirements="A")


def read_part(
    mapping: mmap.mmap,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    rows: slice,
    columns: slice,
) -> Array:
    """Read rows and columns of the array `offset` bytes into a mapped file.

    Returns a read-only view where they are contiguous, otherwise a copy. No other page is read:
    each is requested explicitly, since a page fault would read megabytes around it.
    """
    view = np.frombuffer(mapping, dtype, math.prod(shape), offset).reshape(shape)
    part = np.asarray(view[(rows, columns)[: view.ndim]] if view.ndim else view)
    if not part.size:
        return part
    start = offset + part.ctypes.data - view.ctypes.data
    if part.flags.c_contiguous:
        request(mapping, start, part.nbytes)
        return np.require(part, requirements="A")
    copy = np.empty(part.shape, dtype)
    size, stride = part[0].nbytes, part.strides[0]
    batch = max(1, _BATCH // size)
    for first in range(0, len(part), batch):
        chosen = part[first : first + batch]
        _request_rows(mapping, start + first * stride, size, stride, len(chosen))
        copy[first : first + batch] = chosen
    return copy


def request(mapping: mmap.mmap, start: int, size: int) -> None:
    """Request that the kernel reads these bytes, unless it has them, and none around them."""
    for at in range(start // _PAGE * _PAGE, start + size, _REQUEST):
        mapping.madvise(mmap.MADV_WILLNEED, at, min(_REQUEST, start + size - at))


def _request_rows(mapping: mmap.mmap, start: int, size: int, stride: int, count: int) -> None:
    """Request rows of `size` bytes, in one piece where there is no whole page between them."""
    end = start
    for row in range(start, start + count * stride, stride):
        if row // _PAGE > (end - 1) // _PAGE + 1:
            request(mapping, start, end - start)
            start = row
        end = row + size
    request(mapping, start, end - start)
