"""Steps through several processes, of which this one has the first rank of the last stage."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import zmq

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.backends.parallel.stage_links import new_socket
from sarathi.backends.parallel.stage_worker import Output, StageWorker
from sarathi.backends.parallel.worker_group import Workers
from sarathi.backends.parallel.worker_messages import encode_run
from sarathi.backends.parallel.worker_thread import Background
from sarathi.backends.runner import NO_SLOTS, NOTHING_SAMPLED, StepResult
from sarathi.backends.step import I64, Step, StepError, check_step
from sarathi.errors import ExecutorError
from sarathi.sampling.sampler import RequestSlots, StepSampler

_LOOK = 0.2  # seconds between looks at the workers
_CLOSING = 1.0  # seconds for a thread to end that may wait for what never comes
_BELL = "inproc://computed"

T = TypeVar("T")


class PipelineRunner:
    """Sends every step to all processes at once; the stages hand on to each other.

    A thread computes the part of this process, so that the next step can be prepared meanwhile.
    It is the only one that touches the executor here.
    """

    looks_ahead = False

    def __init__(
        self,
        layout: ParallelLayout,
        member: StageWorker,
        workers: Workers,
        context: zmq.Context[zmq.Socket[bytes]],
        opened: ExitStack,
    ) -> None:
        """
        Args:
            opened: closed when nothing here uses it any more.
        """
        self.depth = layout.pp
        self._sampler: StepSampler | None = None
        self._member = member
        self._workers = workers
        self._opened = opened
        # The thread rings whenever it has done something: a socket can be waited for together with
        # that of the workers.
        self._bell = new_socket(context, zmq.PULL)
        self._bell.bind(_BELL)
        self._ringer = new_socket(context, zmq.PUSH)
        self._ringer.connect(_BELL)
        self._thread = Background("stage", after=self._ring, at_end=self._release)
        self._poller = zmq.Poller()
        for socket in (self._bell, workers.socket):
            self._poller.register(socket, zmq.POLLIN)
        self._num_submitted = 0
        self._under_way: deque[tuple[Future[Output], I64]] = deque()  # with the slots of its rows
        self._sending = False
        self._closed = False
        self._error: str | None = None
        self._checked = 0.0  # when the workers were looked at

    @property
    def slots(self) -> RequestSlots:
        """See `Runner`."""
        assert self._sampler is not None, "the executor is not loaded"
        return self._sampler

    def use_sampler(self, sampler: StepSampler) -> None:
        """Sample with the sampler of the executor, once that is loaded."""
        self._sampler = sampler

    @property
    def is_free(self) -> bool:
        """See `Runner`."""
        under_way = len(self._under_way)
        if under_way >= self.depth or self._closed:
            return False
        if not under_way:
            return True
        self._workers.take_in()
        return self._workers.num_passed >= self._num_submitted

    def submit(self, step: Step, slots: I64 = NO_SLOTS) -> None:
        """See `Runner`."""
        self._ready()
        executor = self._member.executor
        check_step(
            step,
            num_blocks=executor.num_blocks,
            block_size=executor.block_size,
            vocab_size=executor.config.vocab_size,
            max_position=executor.max_position,
        )
        if len(self._under_way) >= self.depth:
            raise StepError(f"{self.depth} steps are under way already, no more can be")
        step_id = self._num_submitted
        self._num_submitted += 1
        self._sending = True
        self._workers.send_all_frames(encode_run(step_id, step))
        self._under_way.append((self._thread.submit(partial(self._run, step_id, step)), slots))
        self._sending = False

    def wait(self, seconds: float) -> bool:
        """See `Runner`."""
        self._ready()
        was_free = self.is_free
        end = time.monotonic() + seconds
        while not (self._under_way and self._under_way[0][0].done()):
            if not was_free and self.is_free:
                return False
            if time.monotonic() > self._checked + _LOOK:
                self.check()
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._poll(min(left, _LOOK))
        return True

    def result(self) -> StepResult:
        """See `Runner`."""
        output, slots = self._output()
        if not len(slots):
            return StepResult(NOTHING_SAMPLED, output.stages)
        assert self._sampler is not None, "the executor is not loaded"
        began = time.monotonic()
        sampled = self._sampler.sample(output.result, slots)
        return StepResult(sampled, output.stages, time.monotonic() - began)

    def _output(self) -> tuple[Output, I64]:
        """Wait for the oldest step under way."""
        self._ready()
        future, slots = self._under_way[0]
        while not future.done():
            self._poll(_LOOK)
            if time.monotonic() > self._checked + _LOOK:
                self.check()
        output = self.wait_for(future)
        self._under_way.popleft()
        return output, slots

    def abandon(self) -> None:
        """See `Runner`. Where a process has failed, nothing is under way that could be waited for:
        the next call says so."""
        try:
            while self._under_way:
                self._output()
        except ExecutorError:
            self._under_way.clear()

    def check(self) -> None:
        """See `Runner`."""
        self._ready()
        self._checked = time.monotonic()
        try:
            self._workers.check()
        except ExecutorError as error:
            self._error = str(error)
            raise

    def close(self) -> None:
        """See `Runner`."""
        if self._closed:
            return
        self._closed = True
        self._workers.close()
        self._thread.close(_CLOSING)

    def in_thread(self, task: Callable[[], T]) -> Future[T]:
        """Do something with the member of this process between steps."""
        return self._thread.submit(task)

    def look_at(self, future: Future[T]) -> None:
        """Raise what a task of the thread may have raised; does not wait for it."""
        if future.done() and future.exception() is not None:
            self.wait_for(future)

    def wait_for(self, future: Future[T]) -> T:
        """What a task of the thread has given.

        Raises:
            ExecutorError: a worker has failed or died, and what the thread does may never end.
        """
        while not wait([future], _LOOK).done:
            self.check()
        error = future.exception()
        if error is None:
            return future.result()
        try:
            self._workers.explain(error)
        except ExecutorError as cause:
            error = cause
        self._error = str(error)
        raise error

    def _run(self, step_id: int, step: Step) -> Output:
        return self._member.run(step_id, step, lambda: not self._closed)

    def _ring(self) -> None:
        self._ringer.send(b"")

    def _release(self) -> None:
        """Done by the thread, which may still wait for a rank that is gone when it is told to end.
        As long as it does, it uses the sockets."""
        self._member.close()
        self._bell.close()
        self._ringer.close()
        self._opened.close()

    def _poll(self, seconds: float) -> None:
        """Wait until this process has computed something or a worker says something."""
        ready = dict(self._poller.poll(math.ceil(1000 * seconds)))
        if self._bell in ready:
            self._bell.recv()
        if self._workers.socket in ready:
            self._workers.take_in()
            if self._workers.has_failed:
                self.check()

    def _ready(self) -> None:
        if self._error is not None:
            raise ExecutorError(self._error)
        if self._closed:
            raise ExecutorError("the processes of this engine have been ended")
        if self._sending:
            raise ExecutorError("a step has reached some processes only: it was interrupted")
