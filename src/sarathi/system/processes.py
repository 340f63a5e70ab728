"""Processes beside this one, wherever they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

# Not `-m`, which would let files in the current folder pass for modules.
_START = """import sys
import threading
sys.path[:] = filter(None, sys.path)
from {module} import main
sys.exit(main(sys.argv[1:]))"""


class Process(Protocol):
    """One that has been started."""

    def ended(self) -> str | None:
        """None while it runs, otherwise how it ended, such as "exit status 1"."""

    def kill(self) -> None:
        """End it at once. Harmless where it has ended."""


class Spawner(Protocol):
    """Starts processes, on this machine or on others."""

    host: str | None  # where others reach this process; None: all are on this machine

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        """Run `main(arguments)` of a module of the project in a process of its own.

        It ends by itself when this process does.
        """


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ended(self) -> str | None:
        code = self._process.poll()
        return None if code is None else _in_words(code)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    # The system ends in this way whoever takes the last of its memory.
    return f"killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")


class LocalSpawner:
    """Child processes. They watch that their parent lives; see `parent_lives`."""

    host: str | None = None

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        command = [sys.executable, "-c", _START.format(module=module), *arguments]
        return _Child(subprocess.Popen(command, stdin=subprocess.DEVNULL))


LOCAL = LocalSpawner()  # has no state


def leave_signals_to_parent() -> None:
    """Ctrl-C may reach the whole process group; it is the parent that decides what it means.

    Does nothing outside the main thread, where an actor runs, since signals do not get there.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def parent_lives(parent: int | None) -> bool:
    """Whether the process with the id `parent` is still ours; None is for those that have none."""
    return parent is None or os.getppid() == parent
