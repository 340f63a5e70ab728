"""Recognise files by how they begin: names are changed, and some files have no suffix."""

from __future__ import annotations

from pathlib import Path

GGUF_MAGIC = b"GGUF"
_GIT_LFS = b"version https://git-lfs.github.com/spec/"


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
