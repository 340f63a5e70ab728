"""The worker processes of one engine: start them, talk to them, notice when one is gone."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.stage_links import new_socket
from sarathi.backends.parallel.worker_messages import (
    FromWorker,
    Hello,
    Loading,
    Passed,
    Spec,
    Stop,
    ToWorker,
    WorkerFailed,
    decode_from_worker,
    encode,
)
from sarathi.backends.registry import ExecutorOptions
from sarathi.errors import ExecutorError, ModelError
from sarathi.system.processes import Process, Spawner
from sarathi.system.sockets import bind

_MODULE = "sarathi.backends.parallel.worker_process"
_LOOK = 0.2  # seconds between looks at the processes
_LAST_WORDS = 0.5  # seconds that they may be under way; one failure brings about others
_STOPPING = 3.0  # seconds to end in good order

M = TypeVar("M", bound=FromWorker)


class Workers:
    """Those of all places but the engine's own. Not thread-safe."""

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
        """Start them.

        Args:
            folder: for the files of sockets.
        """
        self.num_passed = 0  # steps that the first stage has computed
        self._layout = layout
        self._places = layout.places
        self.socket = new_socket(context, zmq.ROUTER)
        endpoint = bind(self.socket, spawner.host, folder / "engine")
        self._hosts: dict[RankId, str] = {}  # where those run that have said so
        self._answers: deque[tuple[RankId, FromWorker]] = deque()  # that `gather` has not seen
        self._failures: dict[RankId, str] = {}
        self._busy = True  # with what is waited for
        self._processes: dict[RankId, Process] = {}
        self._remote = spawner.host is not None
        try:
            for place in layout.workers:
                spec = Spec(
                    str(model),
                    options,
                    layout,
                    place,
                    parent=None if self._remote else os.getpid(),
                    remote=self._remote,
                )
                arguments = (endpoint, msgspec.json.encode(spec).decode())
                self._processes[place] = spawner.spawn(_MODULE, arguments)
        except BaseException:
            self.close()
            raise

    def name(self, place: RankId) -> str:
        """What a person calls it: only what tells it from others."""
        layout = self._layout
        if layout.tp == 1:
            name = f"stage {place.stage}"
        else:
            name = f"rank {place.rank}" if layout.pp == 1 else str(place)
        host = self._hosts.get(place)
        return f"{name} on {host}" if self._remote and host is not None else name

    def send(self, message: ToWorker, place: RankId) -> None:
        self.send_frames([encode(message)], place)

    def send_all(self, message: ToWorker) -> None:
        self.send_all_frames([encode(message)])

    def send_all_frames(self, frames: Sequence[bytes]) -> None:
        for place in self._processes:
            self.send_frames(frames, place)

    def send_frames(self, frames: Sequence[bytes], place: RankId) -> None:
        # To one that has gone it is dropped; `check` tells of it.
        self.socket.send_multipart([b"%d" % self._places.index(place), *frames])

    def gather(
        self,
        kind: type[M],
        *,
        within: float = math.inf,
        progress: Callable[[RankId, float], None] = lambda place, share: None,
        got: Callable[[RankId, M], None] = lambda place, message: None,
        alongside: Callable[[], None] = lambda: None,
    ) -> Mapping[RankId, M]:
        """Wait until every worker has sent a message of a kind.

        Args:
            within: seconds in which all must have sent one.
            progress: called with the share that a worker has loaded.
            got: called with every message of that kind.
            alongside: called every now and then; what it raises ends the waiting.

        Raises:
            ExecutorError: one has failed, died, or not answered in time.
        """
        end = time.monotonic() + within
        messages: dict[RankId, M] = {}
        self._busy = True
        while len(messages) < len(self._processes):
            alongside()
            if not self._answers:
                if not self._hear(_LOOK) or self.has_failed:
                    self.check()
                if time.monotonic() > end:
                    late = [self.name(place) for place in self._processes if place not in messages]
                    raise ExecutorError(f"{', '.join(late)} has not connected within {within:g} s")
                continue
            place, message = self._answers.popleft()
            if isinstance(message, Hello):
                self._hosts[place] = message.host
            if isinstance(message, Loading):
                progress(place, message.share)
            elif isinstance(message, kind):
                messages[place] = message
                got(place, message)
            else:
                raise ExecutorError(
                    f"{self.name(place)} sent {type(message).__name__} where "
                    f"{kind.__name__} was expected"
                )
        self._busy = False
        return messages

    def take_in(self) -> None:
        """All that has been said meanwhile; `gather` gets what answers to it."""
        while self._hear(0.0):
            pass

    @property
    def has_failed(self) -> bool:
        """Whether one has said so."""
        return bool(self._failures)

    def check(self) -> None:
        """
        Raises:
            ExecutorError: one has failed or died, now or before.
        """
        self.take_in()
        if self._failures or self._any_ended():
            self.explain()

    def explain(self, own: BaseException | None = None) -> None:
        """Something is wrong here or there: find the failure that brought about the others.

        Args:
            own: what failed in this process.

        Raises:
            ExecutorError: it is in a worker. If it is here, this returns.
        """
        end = time.monotonic() + _LAST_WORDS
        while (left := end - time.monotonic()) > 0:
            self._hear(left)
        # Whoever was killed could say nothing, and what others say is that they miss him.
        for place, process in self._processes.items():
            if place not in self._failures and (ended := process.ended()) is not None:
                raise ExecutorError(f"{self.name(place)} has ended ({ended})")
        if isinstance(own, (ExecutorError, ModelError)):
            return
        for place, message in self._failures.items():
            raise ExecutorError(f"{self.name(place)}: {message}")

    def _any_ended(self) -> bool:
        return any(process.ended() is not None for process in self._processes.values())

    def close(self) -> None:
        """End all processes: in good order if all are well and would listen. Harmless twice."""
        if self.socket.closed:
            return
        processes = list(self._processes.values())
        if not (self._busy or self._failures or self._any_ended()):
            self.send_all(Stop())
            end = time.monotonic() + _STOPPING
            while time.monotonic() < end and any(p.ended() is None for p in processes):
                time.sleep(0.01)
        for process in processes:
            process.kill()
        self.socket.close()

    def _hear(self, timeout: float) -> bool:
        """Whether a message has come within so many seconds."""
        if not self.socket.poll(int(1000 * timeout)):
            return False
        identity, frame = self.socket.recv_multipart()
        place, message = self._places[int(identity)], decode_from_worker(frame)
        if isinstance(message, WorkerFailed):
            self._failures[place] = message.message
        elif isinstance(message, Passed):
            self.num_passed = message.id + 1
        else:
            self._answers.append((place, message))
        return True
