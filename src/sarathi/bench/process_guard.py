"""Runs a server, and ends it when the parent process ends, in whatever way.

This is a program that is started by its path and needs only the standard library. Its standard
input is a pipe without data. Once the other end is closed, which the system does also for a killed
process, the server and all its children are ended.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_PIPE = 0  # standard input
_POLL = 0.02  # seconds
_PR_SET_CHILD_SUBREAPER = 36
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(grace: float, command: list[str]) -> int:
    """Run the command until it ends or the parent does.

    Return the server's exit code; 128 plus the number for a signal, as in shells.

    Args:
        grace: seconds between SIGTERM and SIGKILL.
    """
    if sys.platform == "linux":  # make orphans of the server children of this process, not of init
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake = _wake_on_signals()
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    code = _watch(server.pid, wake)
    if code is None:
        _signal_group(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while _group_lives(server.pid) and time.monotonic() < deadline:
            time.sleep(_POLL)
    _kill_all(server.pid)
    if code is None:
        return 0
    return code if code >= 0 else 128 - code


def _wake_on_signals() -> int:
    """Return a file descriptor from which the numbers of signals can be read."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGCHLD, *_ENDING):
        # Handlers, not SIG_IGN, which the server would inherit.
        signal.signal(number, lambda *_: None)
    return readable


def _watch(server: int, wake: int) -> int | None:
    """Wait until the server has ended (return its exit code) or must be ended (None)."""
    while True:
        code = _reap(server)
        if code is not None:
            return code
        ready, _, _ = select.select([_PIPE, wake], [], [])
        if _PIPE in ready or set(os.read(wake, 64)) & set(_ENDING):
            return None


def _reap(server: int) -> int | None:
    """Collect dead children; return the exit code of the server if it is among them."""
    code = None
    with suppress(ChildProcessError):
        while (dead := os.waitpid(-1, os.WNOHANG))[0]:
            if dead[0] == server:
                code = os.waitstatus_to_exitcode(dead[1])
    return code


def _kill_all(server: int) -> None:
    """Kill the group of the server, and orphans that have left it."""
    while _group_lives(server):
        _signal_group(server, signal.SIGKILL)
        time.sleep(_POLL)
    while orphans := _children():
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)
        _reap(server)


def _group_lives(group: int) -> bool:
    _reap(group)
    return _signal_group(group, 0)


def _signal_group(group: int, number: int) -> bool:
    """Return whether the group still has a process."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter for zombies, on macOS
        return False
    return True


def _children() -> list[int]:
    """List child processes on Linux; elsewhere orphans are not adopted."""
    own = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
