"""How hidden states get from one stage to the next: one ZeroMQ pipe between two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives numpy the name "bfloat16"
import msgspec
import numpy as np
import zmq

from sarathi.backends.parallel.worker_messages import Hidden
from sarathi.errors import ExecutorError
from sarathi.models.weights import Array
from sarathi.system.sockets import bind
from sarathi.telemetry.stages import StageTime

_LOOK = 500  # milliseconds between looks at whether there is still anyone to wait for

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Hidden)


class AbandonedError(Exception):
    """There is nobody left to wait for."""


def new_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """One that never blocks its sender and forgets what was not sent when it is closed."""
    socket = context.socket(kind)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 1)
    return socket


class Inbox:
    """Where a stage gets the hidden states that the one before has computed."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str | None,
        folder: Path,
        name: str,
    ) -> None:
        self._socket = new_socket(context, zmq.PULL)
        self.endpoint = bind(self._socket, host, folder / name)

    def await_greeting(self, seconds: float) -> None:
        """Make sure that the stage before reaches this process, before anything depends on it.

        Raises:
            ExecutorError: it has not within so many seconds.
        """
        if not self._socket.poll(int(1000 * seconds)):
            raise ExecutorError(
                f"the stage before has not connected to {self.endpoint} within {seconds:g} s: is "
                "there a firewall between the machines?"
            )
        self._socket.recv()

    def receive(
        self, step_id: int, wanted: Callable[[], bool]
    ) -> tuple[Array, tuple[StageTime, ...]]:
        """Wait for the hidden states of a step, and what the stages before have taken for it.

        Args:
            wanted: asked from time to time whether to go on waiting.

        Returns:
            [tokens, hidden_size]; the memory is that of the message, which nobody writes to again.

        Raises:
            AbandonedError: they are not wanted any more.
            ExecutorError: what comes belongs to another step.
        """
        while not self._socket.poll(_LOOK):
            if not wanted():
                raise AbandonedError
        header, content = self._socket.recv_multipart(copy=False)
        hidden = _decoder.decode(header.buffer)
        if hidden.id != step_id:
            raise ExecutorError(
                f"hidden states of step {hidden.id} came instead of those of step {step_id}"
            )
        array = np.frombuffer(content.buffer, np.dtype(hidden.dtype)).reshape(hidden.shape)
        return array, tuple(StageTime(*times) for times in hidden.times)

    def close(self) -> None:
        self._socket.close()


class Outlet:
    """Where a stage sends what it has computed."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = new_socket(context, zmq.PUSH)
        self._socket.connect(endpoint)

    def greet(self) -> None:
        """See `Inbox.await_greeting`."""
        self._socket.send(b"")

    def send(self, step_id: int, array: Array, times: tuple[StageTime, ...]) -> None:
        """Copies [tokens, hidden_size] and returns at once."""
        tokens, hidden_size = array.shape
        array = np.ascontiguousarray(array)
        header = Hidden(step_id, array.dtype.name, (tokens, hidden_size), list(times))
        # As bytes: bfloat16 has no code in the buffer protocol.
        content = array.reshape(-1).view(np.uint8)
        self._socket.send_multipart([_encoder.encode(header), content.data])

    def close(self) -> None:
        self._socket.close()
