"""Runs steps on several processes, of which this one is rank 0 of the last stage."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import zmq

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.backends.parallel.stage_worker import StageOutput, StageWorker
from sarathi.backends.parallel.worker_group import WorkerGroup
from sarathi.backends.parallel.worker_messages import encode_step
from sarathi.backends.runner import NO_SLOTS, NOTHING_SAMPLED, StepResult
from sarathi.backends.step import I64, Step, StepError, check_step
from sarathi.errors import ExecutorError
from sarathi.sampling.sampler import RequestSlots, StepSampler
from sarathi.system.sockets import new_socket

_CHECK_INTERVAL = 0.2  # seconds between checks of the workers
_CLOSE_TIMEOUT = 1.0  # seconds for the thread to end, which may wait for a message in vain
_WAKE_UP = "inproc://computed"

T = TypeVar("T")


class TaskThread:
    """A thread that executes one task after the other.

    Unlike a `ThreadPoolExecutor`, it keeps no process alive: a task may never end, such as waiting
    for a rank that has died.
    """

    def __init__(
        self, name: str, *, on_done: Callable[[], object], on_end: Callable[[], object]
    ) -> None:
        """Start the thread.

        Args:
            on_done: called in the thread when a task has ended and its result can be read.
            on_end: called in the thread when it ends, whenever that is.
        """
        self._on_done = on_done
        self._on_end = on_end
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._tasks = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Execute a task after those submitted before."""
        future: Future[T] = Future()
        self._tasks.put((future, task))
        return future

    def close(self, timeout: float) -> None:
        """End after the submitted tasks, and wait so many seconds for that. Harmless twice."""
        self._tasks.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (item := self._tasks.get()) is not None:
            future, task = item
            try:
                result = task()
            except BaseException as error:  # raised again where the result is read
                future.set_exception(error)
            else:
                future.set_result(result)
            self._on_done()
            # What the task refers to must not live on while the thread is idle.
            del item, future, task
        self._on_end()


class PipelineRunner:
    """Sends every step to all processes at once; the stages pass hidden states on.

    A thread computes the part of this process, so that the next step can be prepared meanwhile.
    Only that thread uses the executor here.
    """

    looks_ahead = False

    def __init__(
        self,
        layout: ParallelLayout,
        stage_worker: StageWorker,
        workers: WorkerGroup,
        context: zmq.Context[zmq.Socket[bytes]],
        opened: ExitStack,
    ) -> None:
        """Start the thread.

        Args:
            opened: closed when nothing here uses it any more.
        """
        self.depth = layout.pp
        self._sampler: StepSampler | None = None
        self._stage_worker = stage_worker
        self._workers = workers
        self._opened = opened
        # The thread sends a message after every task: a socket can be polled together with that
        # of the workers.
        self._wake_up = new_socket(context, zmq.PULL)
        self._wake_up.bind(_WAKE_UP)
        self._waker = new_socket(context, zmq.PUSH)
        self._waker.connect(_WAKE_UP)
        self._thread = TaskThread(
            "stage", on_done=lambda: self._waker.send(b""), on_end=self._release
        )
        self._poller = zmq.Poller()
        for socket in (self._wake_up, workers.socket):
            self._poller.register(socket, zmq.POLLIN)
        self._num_submitted = 0
        self._in_flight: deque[tuple[Future[StageOutput], I64]] = deque()  # with the rows' slots
        self._sending = False
        self._closed = False
        self._error: str | None = None
        self._checked = 0.0  # when the workers were checked last

    @property
    def slots(self) -> RequestSlots:
        assert self._sampler is not None, "the executor is not loaded"
        return self._sampler

    def use_sampler(self, sampler: StepSampler) -> None:
        """Set the sampler of the executor, once that is loaded."""
        self._sampler = sampler

    @property
    def is_free(self) -> bool:
        in_flight = len(self._in_flight)
        if in_flight >= self.depth or self._closed:
            return False
        if not in_flight:
            return True
        self._workers.receive_all()
        return self._workers.num_first_stage_done >= self._num_submitted

    def submit(self, step: Step, slots: I64 = NO_SLOTS) -> None:
        self._raise_if_unusable()
        executor = self._stage_worker.executor
        check_step(
            step,
            num_blocks=executor.num_blocks,
            block_size=executor.block_size,
            vocab_size=executor.config.vocab_size,
            max_position=executor.max_position,
        )
        if len(self._in_flight) >= self.depth:
            raise StepError(f"{self.depth} steps are in flight already, no more can be")
        step_id = self._num_submitted
        self._num_submitted += 1
        self._sending = True
        self._workers.send(*encode_step(step_id, step))
        self._in_flight.append((self._thread.submit(partial(self._run, step_id, step)), slots))
        self._sending = False

    def wait(self, seconds: float) -> bool:
        self._raise_if_unusable()
        was_free = self.is_free
        end = time.monotonic() + seconds
        while not (self._in_flight and self._in_flight[0][0].done()):
            if not was_free and self.is_free:
                return False
            if time.monotonic() > self._checked + _CHECK_INTERVAL:
                self.check()
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._poll(min(left, _CHECK_INTERVAL))
        return True

    def result(self) -> StepResult:
        output, slots = self._output()
        if not len(slots):
            return StepResult(NOTHING_SAMPLED, output.stages)
        assert self._sampler is not None, "the executor is not loaded"
        start = time.monotonic()
        sampled = self._sampler.sample(output.result, slots)
        return StepResult(sampled, output.stages, time.monotonic() - start)

    def _output(self) -> tuple[StageOutput, I64]:
        """Wait for the oldest step in flight."""
        self._raise_if_unusable()
        future, slots = self._in_flight[0]
        while not future.done():
            self._poll(_CHECK_INTERVAL)
            if time.monotonic() > self._checked + _CHECK_INTERVAL:
                self.check()
        output = self.wait_for(future)
        self._in_flight.popleft()
        return output, slots

    def abandon(self) -> None:
        """See `Runner`. After a failure of a process this waits for nothing, and the next call
        raises the error."""
        try:
            while self._in_flight:
                self._output()
        except ExecutorError:
            self._in_flight.clear()

    def check(self) -> None:
        self._raise_if_unusable()
        self._checked = time.monotonic()
        try:
            self._workers.check()
        except ExecutorError as error:
            self._error = str(error)
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._workers.close()
        self._thread.close(_CLOSE_TIMEOUT)

    def in_thread(self, task: Callable[[], T]) -> Future[T]:
        """Execute a task of this process's `StageWorker` between steps."""
        return self._thread.submit(task)

    def raise_error(self, future: Future[T]) -> None:
        """Raise what a task of the thread has raised, if it has; does not wait for it."""
        if future.done() and future.exception() is not None:
            self.wait_for(future)

    def wait_for(self, future: Future[T]) -> T:
        """Return the result of a task of the thread.

        Raises:
            ExecutorError: a worker has failed or died, so that the task may never end.
        """
        while not wait([future], _CHECK_INTERVAL).done:
            self.check()
        error = future.exception()
        if error is None:
            return future.result()
        try:
            self._workers.raise_cause(error)
        except ExecutorError as cause:
            error = cause
        self._error = str(error)
        raise error

    def _run(self, step_id: int, step: Step) -> StageOutput:
        return self._stage_worker.run(step_id, step, lambda: not self._closed)

    def _release(self) -> None:
        """Close what the thread uses, in the thread: it may still wait for a rank that has died
        when the runner is closed."""
        self._stage_worker.close()
        self._wake_up.close()
        self._waker.close()
        self._opened.close()

    def _poll(self, seconds: float) -> None:
        """Wait until the thread has ended a task or a worker sends a message."""
        ready = dict(self._poller.poll(math.ceil(1000 * seconds)))
        if self._wake_up in ready:
            self._wake_up.recv()
        if self._workers.socket in ready:
            self._workers.receive_all()
            if self._workers.has_failed:
                self.check()

    def _raise_if_unusable(self) -> None:
        if self._error is not None:
            raise ExecutorError(self._error)
        if self._closed:
            raise ExecutorError("the processes of this engine have been ended")
        if self._sending:
            raise ExecutorError("a step has reached some processes only: it was interrupted")
