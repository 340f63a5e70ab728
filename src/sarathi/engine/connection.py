"""The socket between the HTTP process and an engine process, and whether the peer is alive.

On one machine it is a file, and each process watches the other by its id. Between machines it is
TCP with ZeroMQ's heartbeats, which a thread of the library keeps up however long a process
computes: a peer that has been silent for `HEARTBEAT_TIMEOUT` counts as dead.
"""

from __future__ import annotations

import asyncio
import time

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from sarathi.system.sockets import SocketFolder, bind

HEARTBEAT_TIMEOUT = 10.0  # seconds
_HEARTBEAT_INTERVAL = 1.0  # seconds
_CONNECT_SECONDS = 30.0


class EngineListener:
    """The HTTP process's end, for one engine."""

    def __init__(self, host: str | None) -> None:
        """Listen for one engine process.

        Args:
            host: the address under which other machines reach this process; None: the engine runs
                on this machine.
        """
        self._folder = SocketFolder()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._monitor: zmq.asyncio.Socket | None = None
        if host is not None:
            _keep_alive(self._socket)
            self._monitor = self._socket.get_monitor_socket(
                zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            )
        self.endpoint = bind(self._socket, host, self._folder.path / "engine")

    def send(self, message: bytes) -> None:
        """Queue a message. There is no high-water mark: this never blocks."""
        self._socket.send(message)

    async def receive(self) -> bytes:
        """Wait for the next message of the engine."""
        message: bytes = await self._socket.recv()
        return message

    async def lost(self) -> None:
        """Wait until the engine has disconnected; for ever if it runs on this machine."""
        if self._monitor is None:
            await asyncio.Event().wait()
            return
        accepted = engine = None
        while True:
            event = await recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                accepted = event["value"]
            elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                engine = accepted if engine is None else engine
            elif event["value"] == engine:  # others may connect and disconnect
                return

    def close(self) -> None:
        """Close the socket; messages that have not been sent are dropped."""
        self._context.destroy(linger=0)
        self._folder.remove()


class EngineConnection:
    """The engine process's end."""

    def __init__(self, endpoint: str) -> None:
        """Connect to the `endpoint` of an `EngineListener`."""
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.PAIR)
        self.socket.set_hwm(0)  # a slow reader must not stop the loop
        self.remote = not endpoint.startswith("ipc:")
        self._lost = False
        if self.remote:
            _keep_alive(self.socket)
            self._monitor = self.socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            )
        self.socket.connect(endpoint)

    def wait_connected(self) -> bool:
        """Wait until the peer has answered; False if it does not in time."""
        if not self.remote:
            return True
        deadline = time.monotonic() + _CONNECT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if self._monitor.poll(int(left * 1000)):
                event = recv_monitor_message(self._monitor)
                if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return True
        return False

    def is_lost(self) -> bool:
        """Return whether the peer has disconnected; always False on one machine."""
        if self.remote and self._monitor.poll(0):
            self._lost = True  # it does not come back under the same address
        return self._lost

    def close(self) -> None:
        """Close the socket, after up to a second for messages that have not been sent."""
        self._context.destroy(linger=1000)


def _keep_alive(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(_HEARTBEAT_INTERVAL * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(HEARTBEAT_TIMEOUT * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TTL, int(HEARTBEAT_TIMEOUT * 1000))
