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
# Of one request to read ahead, the kernel may do no more than this (the default of Linux).
_REQUEST = 128 << 10  # bytes
_PAGE = mmap.PAGESIZE
_BATCH = 1 << 24  # bytes that are requested before the first of them is used


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file in the format GGUF, or at least called so.

    The latter may be truncated or something else altogether, which its reader finds out.
    """
    return path.is_file() and (
        path.suffix.lower() == ".gguf" or _beginning(path, len(GGUF_MAGIC)) == GGUF_MAGIC
    )


def lfs_hint(path: Path) -> str:
    """What to say of a file that cannot be read as what it should be: nothing, or the reason."""
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
    """`path` mapped for reading; `ModelError` if that is impossible (missing, empty, folder)."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def mapped_array(
    mapping: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> Array:
    """The array that begins `offset` bytes into a mapped file: a read-only view."""
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
    """Rows and columns of the array that begins `offset` bytes into a mapped file, read now.

    A read-only view where they lie in one piece, otherwise a copy. No page is read that holds
    nothing of them: each is requested by itself, for a page fault would read megabytes around it.
    """
    view = np.frombuffer(mapping, dtype, math.prod(shape), offset).reshape(shape)
    part = np.asarray(view[(rows, columns)[: view.ndim]])
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
    """Have the kernel begin to read so many bytes, unless it has them, and nothing around them."""
    for at in range(start // _PAGE * _PAGE, start + size, _REQUEST):
        mapping.madvise(mmap.MADV_WILLNEED, at, min(_REQUEST, start + size - at))


def _request_rows(mapping: mmap.mmap, start: int, size: int, stride: int, count: int) -> None:
    """Request so many rows of `size` bytes, those together between which there is no whole page."""
    end = start
    for row in range(start, start + count * stride, stride):
        if row // _PAGE > (end - 1) // _PAGE + 1:
            request(mapping, start, end - start)
            start = row
        end = row + size
    request(mapping, start, end - start)
