"""What one process computes of a pipeline: the layers of its stage, or its rank's share of them.

Hidden states go to the next stage through one ZeroMQ pipe between two processes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes  # noqa: F401 - gives numpy the name "bfloat16"
import msgspec
import numpy as np
import zmq

from sarathi.backends.executor import Executor, ExecutorPart, ProgressCallback
from sarathi.backends.model_instance import (
    InstancePart,
    describe,
    fingerprint,
    load_executor,
    versions,
)
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.worker_messages import Connect, Hello, MethodCall
from sarathi.backends.registry import ExecutorOptions, load_backend
from sarathi.backends.step import Step
from sarathi.errors import ExecutorError
from sarathi.models.model import Model
from sarathi.models.weights import Array
from sarathi.system.machine import pin_to_cores, usable_cores
from sarathi.system.sockets import bind, new_socket
from sarathi.telemetry.recorder import StageTime

if TYPE_CHECKING:
    from sarathi.backends.torch.process_group import ProcessGroup, Rendezvous


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


_GREETING_TIMEOUT = 30.0  # seconds; all processes run already


class StageOutput(NamedTuple):
    """What a stage has computed for a step."""

    result: Any  # of the last stage the logits, as `Executor.logits`; otherwise hidden states
    stages: tuple[StageTime, ...]  # up to this one


class StageWorker:
    """Loads and computes the part of one process. Rank 0 of a stage communicates for all of it:
    it receives hidden states from the previous stage and sends its own to the next."""

    def __init__(
        self,
        model: Model,
        options: ExecutorOptions,
        layout: ParallelLayout,
        rank_id: RankId,
        *,
        host: str | None,
        folder: Path,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        """Open the sockets that others connect to; nothing is loaded yet.

        Args:
            host: the address under which others reach this process; None: all are on this machine.
            folder: for the files of sockets.
        """
        self.rank_id = rank_id
        self._model = model
        self._options = options
        self._layout = layout
        self._context = context
        self._backend = load_backend(options)
        self._stage = layout.stages(model.config)[rank_id.stage]
        self._executor: Executor | None = None
        self._last_end: float | None = None  # of the previous step
        self._warming_up = ExitStack()
        self._inbox: Inbox | None = None
        self._outlet: Outlet | None = None
        self._rendezvous: Rendezvous | None = None
        self._group: ProcessGroup | None = None
        if rank_id.rank == 0 and not self._stage.first:
            self._inbox = Inbox(context, host, folder, f"stage-{rank_id.stage}")
        if rank_id.rank == 0 and layout.tp > 1:
            assert self._backend.process_groups is not None
            self._rendezvous = self._backend.process_groups.open_rendezvous(host)
        self.hello = Hello(
            fingerprint=fingerprint(model),
            versions=versions(options.executor),
            host=platform.node(),
            inbox=None if self._inbox is None else self._inbox.endpoint,
            rendezvous=None if self._rendezvous is None else self._rendezvous.address,
        )

    def load(self, connect: Connect, on_progress: ProgressCallback) -> InstancePart:
        """Connect to the other ranks of the stage and load the layers.

        The calling thread is the one that computes later on.

        Args:
            on_progress: as for `load_executor`.

        Raises:
            ExecutorError, ModelError: as executors do, or a rank has not connected.
        """
        layout, options, local_rank = self._layout, self._options, connect.local_rank
        if self.rank_id.rank == 0 and connect.next_stage is not None:
            self._outlet = Outlet(self._context, connect.next_stage)
            self._outlet.greet()
        if self._inbox is not None:
            self._inbox.await_greeting(_GREETING_TIMEOUT)
        threads = options.threads or max(1, usable_cores() // connect.local_world_size)
        if options.own_cores:
            pin_to_cores(local_rank, connect.local_world_size, threads)
        start = time.monotonic()
        shard = layout.shard(self.rank_id)
        if layout.tp > 1:
            rendezvous = self._rendezvous or connect.rendezvous
            assert rendezvous is not None, "rank 0 has opened it, the others get its address"
            assert self._backend.process_groups is not None
            self._group = self._backend.process_groups.init_process_group(
                rendezvous, shard, local_rank
            )
        executor = load_executor(
            self._model,
            options,
            ExecutorPart(self._stage, shard, self._group, local_rank, threads),
            on_progress,
            local_world_size=connect.local_world_size,
        )
        seconds = time.monotonic() - start
        memory = self._backend.free_memory(executor, local_rank)
        self._executor = executor
        return describe(executor, self.rank_id, memory, seconds)

    @property
    def executor(self) -> Executor:
        """The executor, once it is loaded."""
        assert self._executor is not None, "nothing is loaded"
        return self._executor

    def call(self, call: MethodCall) -> None:
        """Call one of the next four methods."""
        getattr(self, call.method)(*call.arguments)

    def allocate(self, num_blocks: int) -> None:
        """Allocate a KV cache, see `Executor`."""
        self.executor.allocate(num_blocks)

    def check(self) -> None:
        """Check the results of the executor, see `Executor`."""
        self.executor.check()

    def start_warming_up(self) -> None:
        """Enter `Executor.warming_up`."""
        self._warming_up.enter_context(self.executor.warming_up())

    def stop_warming_up(self) -> None:
        """Leave `Executor.warming_up`."""
        self._warming_up.close()

    def run(self, step_id: int, step: Step, is_needed: Callable[[], bool]) -> StageOutput:
        """Compute a step and send its hidden states to the next stage.

        Args:
            is_needed: called now and then; returns whether to continue waiting for hidden states.

        Raises:
            AbandonedError: it was not needed any more.
            ExecutorError: the previous stage has sent another step.
        """
        received: Array | None = None
        times: tuple[StageTime, ...] = ()
        if self._inbox is not None:
            received, times = self._inbox.receive(step_id, is_needed)
        start = time.monotonic()
        compute = self.executor.logits if self._stage.last else self.executor.execute
        result = compute(step, received)
        end = time.monotonic()
        waited = 0.0 if self._last_end is None else start - self._last_end
        self._last_end = end
        output = StageOutput(result, (*times, StageTime(waited, end - start)))
        if self._outlet is not None:
            self._outlet.send(step_id, *output)
        return output

    def close(self) -> None:
        """Close sockets and process group."""
        for opened in (self._inbox, self._outlet, self._group):
            if opened is not None:
                opened.close()
