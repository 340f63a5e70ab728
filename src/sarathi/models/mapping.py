"""Files mapped into memory."""

from __future__ import annotations

import mmap
from pathlib import Path

from sarathi.models.config import ModelError


def map_file(path: Path) -> mmap.mmap:
    """`path` mapped for reading; `ModelError` if that is impossible (missing, empty, folder)."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
