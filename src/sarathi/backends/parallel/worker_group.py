"""Starts the worker processes of an engine, exchanges messages, notices when one has ended."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from sarathi.backends.parallel import worker_messages as messages
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.registry import ExecutorOptions
from sarathi.errors import ExecutorError, ModelError
from sarathi.system.processes import Process, Spawner
from sarathi.system.sockets import bind, new_socket

_MODULE = "sarathi.backends.parallel.stage_worker"
_CHECK_INTERVAL = 0.2  # seconds between checks of the processes
_FAILURE_DELAY = 0.5  # seconds for messages of failures to arrive; one failure causes others
_STOP_TIMEOUT = 3.0  # seconds for the processes to end by themselves

M = TypeVar("M", bound=messages.FromWorker)


class WorkerGroup:
    """The processes of all ranks but the engine's own. Not thread-safe."""

    def __init__(
        self,
        model: Path,
        options: ExecutorOptions,
        layout: ParallelLayout,
        spawner: Spawner,
        *,
        folder: Path,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        """Start the processes; `folder` is for the files of sockets."""
        self.num_first_stage_done = 0  # steps that the first stage has computed
        self._layout = layout
        self._ranks = layout.ranks
        self.socket = new_socket(context, zmq.ROUTER)
        endpoint = bind(self.socket, spawner.host, folder / "engine")
        self._hosts: dict[RankId, str] = {}  # of the workers that have sent `Hello`
        # Those that `answers` has not yielded.
        self._answers: deque[tuple[RankId, messages.FromWorker]] = deque()
        self._failures: dict[RankId, str] = {}
        self._waiting = True  # for answers of the workers
        self._processes: dict[RankId, Process] = {}
        self._remote = spawner.host is not None
        try:
            for rank_id in layout.worker_ranks:
                spec = messages.WorkerSpec(
                    str(model),
                    options,
                    layout,
                    rank_id,
                    parent=None if self._remote else os.getpid(),
                    remote=self._remote,
                )
                arguments = (endpoint, msgspec.json.encode(spec).decode())
                self._processes[rank_id] = spawner.spawn(_MODULE, arguments)
        except BaseException:
            self.close()
            raise

    def name(self, rank_id: RankId) -> str:
        """Return a short name for messages: only what distinguishes the process from others."""
        layout = self._layout
        if layout.tp == 1:
            name = f"stage {rank_id.stage}"
        else:
            name = f"rank {rank_id.rank}" if layout.pp == 1 else str(rank_id)
        host = self._hosts.get(rank_id)
        return f"{name} on {host}" if self._remote and host is not None else name

    def send(self, message: messages.ToWorker, to: RankId | None = None) -> None:
        """Send a message to one process, or to all. It is dropped if the process has ended, which
        `check` notices."""
        frame = messages.encode(message)
        for rank_id in self._processes if to is None else (to,):
            self.socket.send_multipart([b"%d" % self._ranks.index(rank_id), frame])

    def answers(
        self, kind: type[M], timeout: float = math.inf
    ) -> Iterator[tuple[RankId, M | messages.Loading] | None]:
        """Yield messages of a kind, and of progress, until every worker has sent one of that kind.

        Yields None every now and then while there is no message. `ExecutorError` if one has failed,
        died, or not answered within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        missing = set(self._processes)
        self._waiting = True
        while missing:
            if not self._answers:
                if not self._receive(_CHECK_INTERVAL) or self.has_failed:
                    self.check()
                if time.monotonic() > end:
                    late = ", ".join(map(self.name, sorted(missing)))
                    raise ExecutorError(f"{late} has not connected within {timeout:g} s")
                yield None
                continue
            rank_id, message = self._answers.popleft()
            if isinstance(message, messages.Hello):
                self._hosts[rank_id] = message.host
            if isinstance(message, kind):
                missing.discard(rank_id)
            elif not isinstance(message, messages.Loading):
                raise ExecutorError(
                    f"{self.name(rank_id)} sent {type(message).__name__} where "
                    f"{kind.__name__} was expected"
                )
            yield rank_id, message
        self._waiting = False

    def receive_all(self) -> None:
        """Receive all messages that have arrived, and keep those for `answers`."""
        while self._receive(0.0):
            pass

    @property
    def has_failed(self) -> bool:
        """Whether a worker has reported a failure."""
        return bool(self._failures)

    def check(self) -> None:
        """Raise `ExecutorError` if a worker has failed or died, now or before."""
        self.receive_all()
        if self._failures or self._any_ended():
            self.raise_cause()

    def raise_cause(self, own: BaseException | None = None) -> None:
        """Raise the failure that caused the others, as `ExecutorError`, if it is in a worker. If it
        is here (`own`), this returns."""
        end = time.monotonic() + _FAILURE_DELAY
        while (left := end - time.monotonic()) > 0:
            self._receive(left)
        # A process that was killed could send nothing, and the others report that it is missing.
        for rank_id, process in self._processes.items():
            if rank_id not in self._failures and (ended := process.ended()) is not None:
                raise ExecutorError(f"{self.name(rank_id)} has ended ({ended})")
        if isinstance(own, (ExecutorError, ModelError)):
            return
        for rank_id, message in self._failures.items():
            raise ExecutorError(f"{self.name(rank_id)}: {message}")

    def _any_ended(self) -> bool:
        return any(process.ended() is not None for process in self._processes.values())

    def close(self) -> None:
        """End all processes, by a message if all are well and idle. Harmless twice."""
        if self.socket.closed:
            return
        processes = list(self._processes.values())
        if not (self._waiting or self._failures or self._any_ended()):
            self.send(messages.Stop())
            end = time.monotonic() + _STOP_TIMEOUT
            while time.monotonic() < end and any(p.ended() is None for p in processes):
                time.sleep(0.01)
        for process in processes:
            process.kill()
        self.socket.close()

    def _receive(self, timeout: float) -> bool:
        """Wait for a message; return whether one has come within `timeout` seconds."""
        if not self.socket.poll(int(1000 * timeout)):
            return False
        identity, frame = self.socket.recv_multipart()
        rank_id, message = self._ranks[int(identity)], messages.decode_from_worker(frame)
        if isinstance(message, messages.WorkerFailed):
            self._failures[rank_id] = message.message
        elif isinstance(message, messages.FirstStageDone):
            self.num_first_stage_done = message.id + 1
        else:
            self._answers.append((rank_id, message))
        return True
