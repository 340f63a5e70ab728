"""What a check has found: parts with figures, kept on disk as they come."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from perf.report import Figure

FORMAT = 1  # of the JSON file
Status = Literal["not run", "running", "done", "failed", "skipped"]


@dataclass
class PartResult:
    """One part of the check."""

    key: str
    title: str
    status: Status = "not run"
    seconds: float = 0.0  # of the whole part
    allotted: float = 0.0  # seconds that it was given
    error: str | None = None
    notes: list[str] = field(default_factory=list)  # what was shortened or left out, and why
    figures: list[Figure] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)  # everything measured, for programs


@dataclass
class Results:
    """A whole check, and the file that holds it."""

    path: Path
    environment: dict[str, Any]
    settings: dict[str, Any]
    parts: list[PartResult]
    began: str  # ISO 8601, UTC

    def save(self) -> None:
        """Replace the file; a reader finds the state before or after.

        Raises:
            OSError: it cannot be written.
        """
        value = {
            "format": FORMAT,
            "began": self.began,
            "environment": self.environment,
            "settings": self.settings,
            "parts": [_part_fields(part) for part in self.parts],
        }
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))
        os.replace(partial, self.path)


def _part_fields(part: PartResult) -> dict[str, Any]:
    fields = {name: value for name, value in vars(part).items() if name != "figures"}
    return fields | {"figures": [_figure_fields(figure) for figure in part.figures]}


def _figure_fields(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name.strip(),
        "value": figure.value,
        "unit": figure.unit,
        "goal": figure.target,
        "bound": figure.bound if figure.target is not None else None,
        "met": figure.met,
    }
