"""Outcomes of tests that several processes have run, each of which writes a file.

A file has a JSON array [id, outcome, message] a line, the later one of a test replacing the
earlier. A process that is killed loses nothing of what it has written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# A test that is COLLECTED and nothing else has not finished. The others are those of pytest.
COLLECTED, PASSED, FAILED, SKIPPED = "collected", "passed", "failed", "skipped"

Line = tuple[str, str, str]


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of all processes together."""

    passed: int
    skipped: int
    failed: dict[str, str]  # the message of each test, or of a module that could not be imported
    unfinished: list[str]  # tests
    problems: list[str]  # processes that did not come to an end


def append_outcomes(path: Path, lines: Iterable[Line]) -> None:
    """Write lines at the end of a file; only failures have a message."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def read_outcomes(paths: Iterable[Path], problems: Sequence[str] = ()) -> Outcomes:
    """Add up files; one that is not there belongs to a process that did not get so far.

    A module that cannot be imported is in all of them, and counts once.
    """
    found: dict[str, tuple[str, str]] = {}
    for path in paths:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for name, outcome, message in _complete(lines):
            # A test that has passed may fail when its fixtures are torn down, not the reverse.
            if name not in found or found[name][0] != FAILED:
                found[name] = outcome, message
    names: dict[str, list[str]] = {kind: [] for kind in (COLLECTED, PASSED, FAILED, SKIPPED)}
    for name, (outcome, _) in found.items():
        names[outcome].append(name)
    return Outcomes(
        passed=len(names[PASSED]),
        skipped=len(names[SKIPPED]),
        failed={name: found[name][1] for name in names[FAILED]},
        unfinished=names[COLLECTED],
        problems=list(problems),
    )


def _complete(lines: Iterable[str]) -> Iterable[Line]:
    for line in lines:
        try:
            name, outcome, message = json.loads(line)
        except ValueError:  # the process was killed while it wrote
            continue
        yield name, outcome, message
