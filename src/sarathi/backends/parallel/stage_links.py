"""Sends hidden states from one stage to the next: one ZeroMQ pipe between two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives numpy the name "bfloat16"
import msgspec
import numpy as np
import zmq

from sarathi.errors import ExecutorError
from sarathi.models.weights import Array
from sarathi.system.sockets import bind, new_socket
from sarathi.telemetry.stages import StageTime

_POLL = 500  # milliseconds between checks whether the hidden states are still needed


class HiddenStates(msgspec.Struct, array_like=True, frozen=True):
    """The header of a message, which the hidden states follow as a frame."""

    id: int  # of the step
    dtype: str
    shape: tuple[int, int]  # tokens, hidden size
    times: list[tuple[float, float]]  # `StageTime` of the previous stages, in order


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(HiddenStates)


class AbandonedError(Exception):
    """Hidden states are not needed any more, so that waiting for them has ended."""


class Inbox:
    """Receives hidden states from the previous stage."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str | None,
        folder: Path,
        name: str,
    ) -> None:
        """Bind to a socket; `host` and `folder` as for `StageWorker`."""
        self._socket = new_socket(context, zmq.PULL)
        self.endpoint = bind(self._socket, host, folder / name)

    def await_greeting(self, seconds: float) -> None:
        """Make sure that the previous stage reaches this process, before anything depends on it.

        Raises:
            ExecutorError: it has not within so many seconds.
        """
        if not self._socket.poll(int(1000 * seconds)):
            raise ExecutorError(
                f"the previous stage has not connected to {self.endpoint} within {seconds:g} s: is "
                "there a firewall between the machines?"
            )
        self._socket.recv()

    def receive(
        self, step_id: int, is_needed: Callable[[], bool]
    ) -> tuple[Array, tuple[StageTime, ...]]:
        """Wait for the hidden states of a step, and the times of the previous stages for it.

        Args:
            is_needed: called from time to time; returns whether to continue waiting.

        Returns:
            [tokens, hidden_size]; the memory is that of the message, which nothing else writes to.

        Raises:
            AbandonedError: they are not needed any more.
            ExecutorError: a message of another step has come.
        """
        while not self._socket.poll(_POLL):
            if not is_needed():
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
        """Close the socket."""
        self._socket.close()


class Outlet:
    """Sends hidden states to the next stage."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        """Connect to the next stage's `Inbox`."""
        self._socket = new_socket(context, zmq.PUSH)
        self._socket.connect(endpoint)

    def greet(self) -> None:
        self._socket.send(b"")

    def send(self, step_id: int, array: Array, times: tuple[StageTime, ...]) -> None:
        """Copy [tokens, hidden_size] and return at once."""
        tokens, hidden_size = array.shape
        array = np.ascontiguousarray(array)
        header = HiddenStates(step_id, array.dtype.name, (tokens, hidden_size), list(times))
        # As bytes: bfloat16 has no code in the buffer protocol.
        content = array.reshape(-1).view(np.uint8)
        self._socket.send_multipart([_encoder.encode(header), content.data])

    def close(self) -> None:
        """Close the socket; what has not been sent is lost."""
        self._socket.close()
