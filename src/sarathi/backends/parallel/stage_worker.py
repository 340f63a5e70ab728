"""One process of a pipeline: it computes the layers of its stage, or its rank's share of them.

The engine is such a process itself; the others run `main`, started by an engine, never by hand.
Hidden states go to the next stage through one ZeroMQ pipe between two processes.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import ml_dtypes  # noqa: F401 - gives numpy the name "bfloat16"
import msgspec
import numpy as np
import zmq

from sarathi.backends import model_instance
from sarathi.backends.executor import Executor, ExecutorPart, ProgressCallback
from sarathi.backends.parallel import worker_messages as messages
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.registry import ExecutorOptions, load_backend
from sarathi.backends.step import Step
from sarathi.errors import ExecutorError, ModelError
from sarathi.models.model import Model, open_model
from sarathi.models.weights import Array
from sarathi.system.machine import pin_to_cores, usable_cores
from sarathi.system.processes import leave_signals_to_parent, parent_lives
from sarathi.system.sockets import bind, new_socket, own_address
from sarathi.telemetry.recorder import StageTime

if TYPE_CHECKING:
    from sarathi.backends.torch.process_group import ProcessGroup, Rendezvous

_GREETING_TIMEOUT = 30.0  # seconds for the previous stage to connect; all processes run already
_HIDDEN_POLL = 500  # milliseconds between checks whether hidden states are still needed
_PARENT_POLL = 0.5  # seconds between checks whether the parent lives
_LINGER = 1000  # milliseconds for the last message to be sent

logger = logging.getLogger(__name__)


class HiddenStates(msgspec.Struct, array_like=True, frozen=True):
    """The header of a message, which the hidden states follow as a frame."""

    id: int  # of the step
    dtype: str
    shape: tuple[int, ...]  # tokens, hidden size
    times: tuple[StageTime, ...]  # of the previous stages, in order


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(HiddenStates)


class AbandonedError(Exception):
    """Hidden states are not needed any more, so that waiting for them has ended."""


def await_greeting(inbox: zmq.Socket[bytes], endpoint: str, seconds: float) -> None:
    """Make sure that the previous stage reaches this process, before anything depends on it;
    `ExecutorError` if it has not within so many seconds."""
    if not inbox.poll(int(1000 * seconds)):
        raise ExecutorError(
            f"the previous stage has not connected to {endpoint} within {seconds:g} s: is "
            "there a firewall between the machines?"
        )
    inbox.recv()


def send_hidden(
    outlet: zmq.Socket[bytes], step_id: int, hidden: Array, times: tuple[StageTime, ...]
) -> None:
    """Copy hidden states, [tokens, hidden_size], into a message and return at once."""
    header = HiddenStates(step_id, hidden.dtype.name, hidden.shape, times)
    # As bytes: bfloat16 has no code in the buffer protocol.
    content = np.ascontiguousarray(hidden).reshape(-1).view(np.uint8)
    outlet.send_multipart([_encoder.encode(header), content.data])


def receive_hidden(
    inbox: zmq.Socket[bytes], step_id: int, is_needed: Callable[[], bool]
) -> tuple[Array, tuple[StageTime, ...]]:
    """Wait for the hidden states of a step, and the times of the previous stages for it.

    `is_needed` is called from time to time, and tells whether to continue. The hidden states,
    [tokens, hidden_size], are in the memory of the message, which nothing else writes to.

    Raises:
        AbandonedError: they are not needed any more.
        ExecutorError: a message of another step has come.
    """
    while not inbox.poll(_HIDDEN_POLL):
        if not is_needed():
            raise AbandonedError
    header, content = inbox.recv_multipart(copy=False)
    hidden = _decoder.decode(header.buffer)
    if hidden.id != step_id:
        raise ExecutorError(
            f"hidden states of step {hidden.id} came instead of those of step {step_id}"
        )
    array = np.frombuffer(content.buffer, np.dtype(hidden.dtype)).reshape(hidden.shape)
    return array, hidden.times


class StageOutput(NamedTuple):
    """What a stage has computed for a step."""

    result: Any  # of the last stage the logits, as `Executor.logits`; otherwise hidden states
    stages: tuple[StageTime, ...]  # up to this one
    pooled: Array | None = None  # of the last stage, if the step has pooled rows


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
        self._inbox: zmq.Socket[bytes] | None = None
        self._outlet: zmq.Socket[bytes] | None = None
        self._rendezvous: Rendezvous | None = None
        self._group: ProcessGroup | None = None
        endpoint = None
        if rank_id.rank == 0 and not self._stage.first:
            self._inbox = new_socket(context, zmq.PULL)
            endpoint = bind(self._inbox, host, folder / f"stage-{rank_id.stage}")
        if rank_id.rank == 0 and layout.tp > 1:
            self._rendezvous = self._backend.open_rendezvous(host)
        self.hello = messages.Hello(
            fingerprint=model_instance.fingerprint(model),
            versions=model_instance.versions(options.executor),
            host=platform.node(),
            inbox=endpoint,
            rendezvous=None if self._rendezvous is None else self._rendezvous.address,
        )

    def load(
        self, connect: messages.Connect, on_progress: ProgressCallback
    ) -> model_instance.InstancePart:
        """Connect to the other ranks of the stage and load the layers, as `load_executor` does, in
        the thread that computes later on; `ExecutorError` also if a rank has not connected."""
        options, local_rank = self._options, connect.local_rank
        if connect.next_stage is not None:
            self._outlet = new_socket(self._context, zmq.PUSH)
            self._outlet.connect(connect.next_stage)
            self._outlet.send(b"")  # see `await_greeting`
        if self._inbox is not None:
            await_greeting(self._inbox, str(self.hello.inbox), _GREETING_TIMEOUT)
        threads = options.threads or max(1, usable_cores() // connect.local_world_size)
        if options.own_cores:
            pin_to_cores(local_rank, connect.local_world_size, threads)
        start = time.monotonic()
        shard = self._layout.shard(self.rank_id)
        if shard.count > 1:
            rendezvous = self._rendezvous or connect.rendezvous
            assert rendezvous is not None, "rank 0 has opened it, the others get its address"
            self._group = self._backend.init_process_group(rendezvous, shard, local_rank)
        self._executor = model_instance.load_executor(
            self._model,
            options,
            ExecutorPart(self._stage, shard, self._group, local_rank, threads),
            on_progress,
            local_world_size=connect.local_world_size,
        )
        return model_instance.describe(self._executor, self.rank_id, time.monotonic() - start)

    @property
    def executor(self) -> Executor:
        """The executor, once it is loaded."""
        assert self._executor is not None, "nothing is loaded"
        return self._executor

    def call(self, call: messages.MethodCall) -> None:
        """Call a method of the executor, or enter or leave its `warming_up`."""
        if call.method == "start_warming_up":
            self._warming_up.enter_context(self.executor.warming_up())
        elif call.method == "stop_warming_up":
            self._warming_up.close()
        else:
            getattr(self.executor, call.method)(*call.arguments)

    def run(self, step_id: int, step: Step, is_needed: Callable[[], bool]) -> StageOutput:
        """Compute a step and send its hidden states to the next stage; for `is_needed`, and errors
        besides those of executors, see `receive_hidden`."""
        received: Array | None = None
        times: tuple[StageTime, ...] = ()
        if self._inbox is not None:
            received, times = receive_hidden(self._inbox, step_id, is_needed)
        start = time.monotonic()
        compute = self.executor.logits if self._stage.last else self.executor.execute
        result = compute(step, received)
        has_pooled = self._stage.last and len(step.pooled_rows)
        pooled = self.executor.pooled() if has_pooled else None
        end = time.monotonic()
        waited = 0.0 if self._last_end is None else start - self._last_end
        self._last_end = end
        output = StageOutput(result, (*times, StageTime(waited, end - start)), pooled)
        if self._outlet is not None:
            send_hidden(self._outlet, step_id, output.result, output.stages)
        return output

    def close(self) -> None:
        """Close sockets and process group."""
        for opened in (self._inbox, self._outlet, self._group):
            if opened is not None:
                opened.close()


def main(arguments: Sequence[str]) -> int:
    """Connect to the engine and serve it until it ends or this process fails. The arguments are the
    engine's endpoint, and a `WorkerSpec` as JSON."""
    endpoint, text = arguments
    spec = msgspec.json.decode(text, type=messages.WorkerSpec)
    leave_signals_to_parent()
    if spec.parent is not None:
        folder = None if spec.remote else _folder(endpoint)
        threading.Thread(target=_watch_parent, args=(spec.parent, folder), daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = new_socket(context, zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"%d" % spec.layout.ranks.index(spec.rank_id))
    socket.connect(endpoint)
    try:
        worker = StageWorker(
            open_model(Path(spec.model), spec.options.load_format),
            spec.options,
            spec.layout,
            spec.rank_id,
            host=own_address(urlsplit(endpoint).hostname or "") if spec.remote else None,
            folder=_folder(endpoint),
            context=context,
        )
        _serve(worker, socket)
        return 0
    except (ModelError, ExecutorError) as error:
        socket.send(messages.encode(messages.WorkerFailed(str(error))))
        return 2
    except Exception as error:  # of any kind: the engine reports it
        logger.exception("%s died", spec.rank_id)
        socket.send(
            messages.encode(messages.WorkerFailed(f"it died: {type(error).__name__}: {error}"))
        )
        return 1
    finally:
        context.destroy(linger=_LINGER)


def _watch_parent(parent: int, folder: Path | None) -> None:
    """End this process when the parent has ended, even during a call that never returns, and
    remove the folder of the engine's sockets, as that would have done."""
    while parent_lives(parent):
        time.sleep(_PARENT_POLL)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _folder(endpoint: str) -> Path:
    """Return the folder of the engine's socket files."""
    return Path(urlsplit(endpoint).path).parent


def _serve(worker: StageWorker, socket: zmq.Socket[bytes]) -> None:
    """Carry out the engine's messages until `Stop`."""

    def send(message: messages.FromWorker) -> None:
        socket.send(messages.encode(message))

    send(worker.hello)
    while not isinstance(message := messages.decode_to_worker(socket.recv()), messages.Stop):
        if isinstance(message, messages.RunStep):
            # `_watch_parent` ends a wait without end.
            worker.run(message.id, message.step, lambda: True)
            if worker.rank_id == RankId(0, 0):
                send(messages.FirstStageDone(message.id))
        elif isinstance(message, messages.Connect):
            # Nothing else uses the socket while the model loads.
            send(messages.Loaded(worker.load(message, lambda share: send(messages.Loading(share)))))
        else:
            worker.call(message)
            send(messages.Done())
