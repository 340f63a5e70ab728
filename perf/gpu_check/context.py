"""What every part of a check is given: device, sizes, its time, and what parts before found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf.gpu_check.deadline import Deadline
from perf.gpu_check.results import PartResult, Results
from perf.gpu_check.settings import Settings
from perf.report import Figure
from sarathi.backends.torch.torch_devices import release_memory

if TYPE_CHECKING:
    import torch

    from perf.gpu_check.ceilings import Ceilings
    from perf.gpu_check.experiment import Point
    from perf.gpu_check.loaded import LoadedEngine
    from perf.gpu_check.prediction import Prediction
    from perf.gpu_check.speed import Speed


class SkippedError(Exception):
    """A part cannot run; the message is the reason."""


@dataclass
class Findings:
    """Results that later parts use; None or empty until they are measured."""

    ceilings: Ceilings | None = None
    engine: LoadedEngine | None = None
    speed: Speed | None = None
    points: list[Point] = field(default_factory=list)
    # Of the points that were simulated, by policy and rate.
    predictions: dict[tuple[str, float], list[Prediction]] = field(default_factory=dict)


class Context:
    """The state of a check while its parts run one after the other."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        results: Results,
        log: Path,
        print_line: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        """
        Args:
            log: a file for tracebacks and the output of subprocesses.
            print_line: shows a line of progress.
        """
        self.settings = settings
        self.device = device
        self.findings = Findings()
        self.deadline = Deadline(0.0)  # of the part that runs
        self.log = log
        self._results = results
        self._print_line = print_line
        self._began = time.monotonic()
        self._part: PartResult | None = None

    def begin(self, part: PartResult, deadline: Deadline) -> None:
        """Attribute what follows to a part."""
        self._part, self.deadline = part, deadline

    def progress(self, line: str) -> None:
        """Show a line of progress, with the seconds since the check began."""
        self._print_line(f"[{time.monotonic() - self._began:6.1f} s] {line}")

    def figure(self, figure: Figure) -> None:
        """Add a figure to the table and to the file."""
        self._current.figures.append(figure)
        self._results.save()

    def note(self, line: str) -> None:
        """Add a note to the table and to the file."""
        self._current.notes.append(line)
        self.progress(line)
        self._results.save()

    def save(self) -> None:
        """Rewrite the file."""
        self._results.save()

    def data(self, name: str, value: Any) -> None:
        """Add details to the file alone."""
        self._current.data[name] = value
        self._results.save()

    def release_memory(self) -> None:
        """Give back memory of the GPU that nothing refers to, for processes that parts start."""
        release_memory(self.device)

    def append_log(self, text: str) -> None:
        """Write to the log file."""
        with self.log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text if text.endswith("\n") else f"{text}\n")

    @property
    def _current(self) -> PartResult:
        assert self._part is not None, "no part has started"
        return self._part
