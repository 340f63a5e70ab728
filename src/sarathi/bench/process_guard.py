"""Runs a server and ends it with whoever started it, however that ends.

A program of its own, started by its path: the standard library is all it needs. Its standard input
is a pipe that nobody writes to. Once the other end is closed, which the system does for a process
that was killed, too, the server is ended with all that it has started.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PIPE = 0  # standard input
_POLL = 0.02  # seconds
_PR_SET_CHILD_SUBREAPER = 36
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(grace: float, command: list[str]) -> int:
    """
    Args:
        grace: seconds between SIGTERM and SIGKILL.

    Returns:
        The server's exit code; 128 and the number for a signal, as shells have it.
    """
    _adopt_orphans()
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


def _adopt_orphans() -> None:
    """On Linux, what a dead server leaves behind becomes a child of this process, not of init."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wake_on_signals() -> int:
    """A file that can be read, with the numbers of signals that came."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGCHLD, *_ENDING):
        # Handlers, not SIG_IGN, which the server would inherit.
        signal.signal(number, lambda *_: None)
    return readable


def _watch(server: int, wake: int) -> int | None:
    """Until the server has ended, whose exit code is returned, or is to be ended."""
    while True:
        code = _reap(server)
        if code is not None:
            return code
        ready, _, _ = select.select([_PIPE, wake], [], [])
        if _PIPE in ready:
            return None
        if set(os.read(wake, 64)) & set(_ENDING):
            return None


def _reap(server: int) -> int | None:
    """Let dead children go; the exit code of the server if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not pid:
            return code
        if pid == server:
            code = os.waitstatus_to_exitcode(status)


def _kill_all(server: int) -> None:
    """The group of the server, and orphans that had left it."""
    while _group_lives(server):
        _signal_group(server, signal.SIGKILL)
        time.sleep(_POLL)
    while orphans := _children():
        for pid in orphans:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_POLL)
        _reap(server)


def _group_lives(group: int) -> bool:
    _reap(group)
    return _signal_group(group, 0)


def _signal_group(group: int, number: int) -> bool:
    """False: there is nobody left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter for zombies, on macOS
        return False
    return True


def _children() -> list[int]:
    """On Linux alone; elsewhere there are no orphans here."""
    own = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
