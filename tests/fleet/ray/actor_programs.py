"""Programs that actors run in tests, instead of engines and their workers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from sarathi.system.processes import Spawner


def main(arguments: Sequence[str], spawner: Spawner | None = None) -> int:
    what, *rest = arguments
    if what == "return":
        return int(rest[0])
    if what == "raise":
        raise ValueError(rest[0])
    if what == "host":
        assert spawner is not None
        Path(rest[0]).write_text(str(spawner.host))
        return 0
    if what == "engine":
        assert spawner is not None
        spawner.spawn("tests.fleet.ray.actor_programs", ["block", rest[1]])
        block(Path(rest[0]))
    if what == "block":
        block(Path(rest[0]))
    raise AssertionError(what)


def block(pid_file: Path) -> None:
    """For ever, in a call that lets no other thread of Python run."""
    new = pid_file.with_suffix(".new")
    new.write_text(str(os.getpid()))
    new.rename(pid_file)
    ctypes.PyDLL(None).sleep(1000)
