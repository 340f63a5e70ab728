"""Where processes listen for each other: files on one machine, ports between several."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import zmq
import zmq.asyncio

_MAX_FOLDER = 90  # characters: the path of a socket has at most 107


class SocketFolder:
    """A folder for the socket files of one engine, so that two on a machine never meet."""

    def __init__(self) -> None:
        self._folder = _new_folder(None)
        if len(self._folder.name) > _MAX_FOLDER:
            self._folder.cleanup()
            self._folder = _new_folder("/tmp")
        self.path = Path(self._folder.name)

    def remove(self) -> None:
        """Harmless twice."""
        self._folder.cleanup()


def _new_folder(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    # A process that is left behind may remove it, too.
    return tempfile.TemporaryDirectory(prefix="sarathi-", dir=parent, ignore_cleanup_errors=True)


def bind(listener: zmq.Socket[bytes] | zmq.asyncio.Socket, host: str | None, file: Path) -> str:
    """Bind to a port that the system chooses, or to a file where all are on this machine.

    Args:
        host: the address under which others reach this process; None: all are on this machine.
        file: to be made there.

    Returns:
        The endpoint to connect to.
    """
    if host is None:
        endpoint = f"ipc://{file}"
        listener.bind(endpoint)
        return endpoint
    listener.setsockopt(zmq.IPV6, 1)
    listener.bind(f"tcp://{bracketed(host)}:*")
    return listener.getsockopt_string(zmq.LAST_ENDPOINT)


def bracketed(host: str) -> str:
    """As it stands in an address with a port: of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def own_address(host: str) -> str:
    """The address of this machine on the way to another one.

    Args:
        host: an address, not a name.

    Raises:
        OSError: there is no way, or it is no address.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])
