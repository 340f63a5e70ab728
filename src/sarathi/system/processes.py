"""Starting other processes, and watching whether they live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

# Not `-m`, which would import files in the current folder as modules.
_START = """import sys
import threading
sys.path[:] = filter(None, sys.path)
from {module} import main
sys.exit(main(sys.argv[1:]))"""


class Process(Protocol):
    """A process that has been started."""

    def ended(self) -> str | None:
        """Return how it ended, such as "exit status 1"; None while it runs."""

    def kill(self) -> None:
        """End it at once. Harmless if it has ended."""


class Spawner(Protocol):
    """Starts processes, on this machine or on others."""

    host: str | None  # where others reach this process; None: all are on this machine

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        """Run `main(arguments)` of a module of the project in a new process.

        It ends by itself when this process does.
        """


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"exit status {code}"
        name = signal.Signals(-code).name
        # The system ends processes like this when it runs out of memory.
        return f"killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class LocalSpawner:
    """Starts child processes, which watch that their parent lives; see `parent_lives`."""

    host: str | None = None

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        command = [sys.executable, "-c", _START.format(module=module), *arguments]
        return _Child(subprocess.Popen(command, stdin=subprocess.DEVNULL))


LOCAL = LocalSpawner()  # has no state


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and SIGTERM: they may reach the whole process group, and the parent decides.

    Does nothing outside the main thread, such as in an actor: only that thread gets signals.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def parent_lives(parent: int | None) -> bool:
    """Return whether the process with the id `parent` is still ours; True for None."""
    return parent is None or os.getppid() == parent
