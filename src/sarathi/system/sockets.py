"""Sockets between processes: files on one machine, ports between several."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import zmq
import zmq.asyncio

_MAX_FOLDER = 90  # characters: the path of a socket file has at most 107


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder for the socket files of one engine; `cleanup` is harmless twice."""
    parent = tempfile.gettempdir()
    if len(parent) + len("/sarathi-12345678") > _MAX_FOLDER:
        parent = "/tmp"
    # An orphaned worker process may remove it, too.
    return tempfile.TemporaryDirectory(prefix="sarathi-", dir=parent, ignore_cleanup_errors=True)


def new_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """Make a socket that never blocks its sender and drops unsent messages when it is closed."""
    made = context.socket(kind)
    made.set_hwm(0)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.IPV6, 1)
    return made


def bind(listener: zmq.Socket[bytes] | zmq.asyncio.Socket, host: str | None, file: Path) -> str:
    """Bind to a port that the system chooses, or create a socket file; return the endpoint.

    Args:
        host: the address under which others reach this process; None: all are on this machine.
    """
    if host is None:
        endpoint = f"ipc://{file}"
        listener.bind(endpoint)
        return endpoint
    listener.setsockopt(zmq.IPV6, 1)
    listener.bind(f"tcp://{bracketed(host)}:*")
    return listener.getsockopt_string(zmq.LAST_ENDPOINT)


def bracketed(host: str) -> str:
    """Put an IPv6 address in brackets, as before a port."""
    return f"[{host}]" if ":" in host else host


def own_address(host: str) -> str:
    """Return the address of this machine from which it reaches another one.

    `OSError` if `host` cannot be reached, or is a name instead of an address.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])
