"""A model that several processes load and run together: one or more for each stage."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import zmq

from sarathi.backends.executor import check_step_for
from sarathi.backends.model_instance import InstancePart
from sarathi.backends.parallel import worker_messages as messages
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.stage_worker import StageOutput, StageWorker
from sarathi.backends.parallel.worker_group import WorkerGroup
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.runner import NO_SLOTS, StepResult, sample_and_score
from sarathi.backends.step import I64, Step, StepError
from sarathi.errors import ExecutorError
from sarathi.models.model import Model
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.sampler import RequestSlots, StepSampler
from sarathi.system.processes import Spawner
from sarathi.system.sockets import new_socket, socket_folder

CONNECT_TIMEOUT = 60.0  # seconds for a process to start, import its libraries and connect
_CHECK_INTERVAL = 0.2  # seconds between checks of the workers
_CLOSE_TIMEOUT = 1.0  # seconds for the thread to end, which may wait for a message in vain
_WAKE_UP = "inproc://computed"

T = TypeVar("T")


class TaskThread:
    """A thread that executes one task after the other. Unlike a `ThreadPoolExecutor`, it keeps no
    process alive: a task may never end, such as waiting for a rank that has died."""

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


class Pipeline:
    """See `SingleProcess`, and `Runner`: it runs its steps itself. This process is rank 0 of the
    last stage, the others are spawned.

    Every step is sent to all processes at once; the stages pass hidden states on. A thread computes
    the part of this process, so that the next step can be prepared meanwhile. Only that thread uses
    the executor here. Load it with `load`; `close` ends the processes, even after a failure.
    """

    looks_ahead = False

    def __init__(
        self,
        path: Path,
        model: Model,
        options: ExecutorOptions,
        layout: ParallelLayout,
        spawner: Spawner,
    ) -> None:
        """Start the processes, each of which opens the model at `path`; `ModelError` if the model
        cannot be divided like that."""
        layout.check(model.config)
        self.max_position = options.max_position
        self.parts: tuple[InstancePart, ...] = ()
        self.depth = layout.pp
        self._path = path
        self._layout = layout
        self._sampler: StepSampler | None = None  # of the executor, once it is loaded
        self._num_submitted = 0
        # With the slots of the rows, and what is asked of the others.
        self._in_flight: deque[tuple[Future[StageOutput], I64, ScoredRows | None]] = deque()
        self._sending = False
        self._closed = False
        self._error: str | None = None
        self._checked = 0.0  # when the workers were checked last
        folder = socket_folder()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ExitStack() as opened:
            opened.callback(folder.cleanup)
            opened.callback(context.destroy, linger=0)
            self._stage_worker = StageWorker(
                model,
                options,
                layout,
                layout.engine_rank,
                host=spawner.host,
                folder=Path(folder.name),
                context=context,
            )
            self._workers = WorkerGroup(
                path, options, layout, spawner, folder=Path(folder.name), context=context
            )
            # The thread sends a message after every task: a socket can be polled together with that
            # of the workers.
            self._wake_up = new_socket(context, zmq.PULL)
            self._wake_up.bind(_WAKE_UP)
            waker = new_socket(context, zmq.PUSH)
            waker.connect(_WAKE_UP)
            # Closed in the thread, which may still wait for a rank that has died when this object
            # is closed.
            for used in (waker, self._wake_up, self._stage_worker):
                opened.callback(used.close)
            self._thread = TaskThread(
                "stage", on_done=lambda: waker.send(b""), on_end=opened.pop_all().close
            )
        self._poller = zmq.Poller()
        for socket in (self._wake_up, self._workers.socket):
            self._poller.register(socket, zmq.POLLIN)

    def load(
        self,
        on_progress: Callable[[RankId, float], None],
        on_loaded: Callable[[InstancePart], None],
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        """Connect the processes and let them all load at the same time.

        Args:
            on_progress: called now and then with the share of the weights a process has read.
            on_loaded: called when a process has loaded its part.
            connect_timeout: seconds for them to start and connect; loading has no bound.

        Raises:
            ExecutorError: a process does not connect, has found another model, has failed or died.
            ModelError: this one cannot read the model.
        """
        hellos: dict[RankId, messages.Hello] = {}
        for greeting in self._workers.answers(messages.Hello, connect_timeout):
            match greeting:
                case rank_id, messages.Hello() as hello:
                    hellos[rank_id] = hello
        for rank_id, hello in hellos.items():
            self._compare(rank_id, hello)
        engine = self._layout.engine_rank
        hellos[engine] = self._stage_worker.hello
        for rank_id in self._layout.worker_ranks:
            self._workers.send(self._connect(rank_id, hellos), to=rank_id)
        connect = self._connect(engine, hellos)
        shares = [0.0]  # of the weights that this process has read, so far
        own = self._thread.submit(lambda: self._stage_worker.load(connect, shares.append))
        parts: dict[RankId, InstancePart] = {}
        for answer in self._workers.answers(messages.Loaded):
            self._raise_error(own)
            on_progress(engine, shares[-1])
            match answer:
                case rank_id, messages.Loaded(part=part):
                    parts[rank_id] = part
                    on_loaded(part)
                case rank_id, messages.Loading(share=share):
                    on_progress(rank_id, share)
        parts[engine] = self._wait_for(own)
        on_loaded(parts[engine])
        self.parts = tuple(parts[rank_id] for rank_id in self._layout.ranks)
        for part in self.parts:
            self._compare_part(part, parts[engine])
        self._sampler = self._stage_worker.executor.make_sampler()

    @property
    def runner(self) -> Pipeline:
        return self

    def allocate(self, num_blocks: int) -> None:
        self._call_all(messages.MethodCall("allocate", [num_blocks]))

    def check_computing(self) -> None:
        self._call_all(messages.MethodCall("check"))

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        self._call_all(messages.MethodCall("start_warming_up"))
        yield
        self._call_all(messages.MethodCall("stop_warming_up"))

    def _call_all(self, call: messages.MethodCall) -> None:
        """Let every process's `StageWorker` carry out a call, and wait for all of them."""
        self._workers.send(call)
        own = self._thread.submit(lambda: self._stage_worker.call(call))
        for _ in self._workers.answers(messages.Done):
            self._raise_error(own)
        self._wait_for(own)

    @property
    def sampler_slots(self) -> RequestSlots:
        assert self._sampler is not None, "the executor is not loaded"
        return self._sampler

    @property
    def is_free(self) -> bool:
        in_flight = len(self._in_flight)
        if in_flight >= self.depth or self._closed:
            return False
        if not in_flight:
            return True
        self._workers.receive_all()
        return self._workers.num_first_stage_done >= self._num_submitted

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        self._raise_if_unusable()
        check_step_for(self._stage_worker.executor, step)
        if len(self._in_flight) >= self.depth:
            raise StepError(f"{self.depth} steps are in flight already, no more can be")
        step_id = self._num_submitted
        self._num_submitted += 1
        self._sending = True
        self._workers.send(messages.RunStep(step_id, step))
        task = partial(self._stage_worker.run, step_id, step, lambda: not self._closed)
        self._in_flight.append((self._thread.submit(task), slots, scored))
        self._sending = False

    def wait(self, seconds: float) -> bool:
        self._raise_if_unusable()
        was_free = self.is_free
        end = time.monotonic() + seconds
        while not (self._in_flight and self._in_flight[0][0].done()):
            if not was_free and self.is_free:
                return False
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._poll(min(left, _CHECK_INTERVAL))
        return True

    def result(self) -> StepResult:
        output, slots, scored = self._output()
        assert self._sampler is not None, "the executor is not loaded"
        start = time.monotonic()
        sampled, scores = sample_and_score(self._sampler, output.result, slots, scored)
        sampling = time.monotonic() - start
        return StepResult(sampled, output.stages, sampling, scores, output.pooled)

    def _output(self) -> tuple[StageOutput, I64, ScoredRows | None]:
        """Wait for the oldest step in flight."""
        self._raise_if_unusable()
        future, slots, scored = self._in_flight[0]
        while not future.done():
            self._poll(_CHECK_INTERVAL)
        output = self._wait_for(future)
        self._in_flight.popleft()
        return output, slots, scored

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

    def _raise_error(self, future: Future[T]) -> None:
        """Raise what a task of the thread has raised, if it has; does not wait for it."""
        if future.done() and future.exception() is not None:
            self._wait_for(future)

    def _wait_for(self, future: Future[T]) -> T:
        """Return the result of a task of the thread, or raise the failure that caused its own. If
        a worker has failed or died, the task may never end."""
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

    def _poll(self, seconds: float) -> None:
        """Wait until the thread has ended a task or a worker sends a message."""
        ready = dict(self._poller.poll(math.ceil(1000 * seconds)))
        if self._wake_up in ready:
            self._wake_up.recv()
        if self._workers.socket in ready:
            self._workers.receive_all()
        if self._workers.has_failed or time.monotonic() > self._checked + _CHECK_INTERVAL:
            self.check()

    def _raise_if_unusable(self) -> None:
        if self._error is not None:
            raise ExecutorError(self._error)
        if self._closed:
            raise ExecutorError("the processes of this engine have been ended")
        if self._sending:
            raise ExecutorError("a step has reached some processes only: it was interrupted")

    def _connect(
        self, rank_id: RankId, hellos: Mapping[RankId, messages.Hello]
    ) -> messages.Connect:
        layout = self._layout
        next_stage = None
        if rank_id.rank == 0 and rank_id.stage < layout.pp - 1:
            next_stage = hellos[RankId(rank_id.stage + 1, 0)].inbox
        host = hellos[rank_id].host
        local_ranks = [other for other in layout.ranks if hellos[other].host == host]
        return messages.Connect(
            next_stage=next_stage,
            rendezvous=hellos[RankId(rank_id.stage, 0)].rendezvous,
            local_world_size=len(local_ranks),
            local_rank=local_ranks.index(rank_id),
        )

    def _compare(self, rank_id: RankId, hello: messages.Hello) -> None:
        own, name = self._stage_worker.hello, self._workers.name(rank_id)
        if hello.versions != own.versions:
            raise ExecutorError(f"{name} runs {hello.versions}, the engine {own.versions}")
        if hello.fingerprint != own.fingerprint:
            raise ExecutorError(
                f"{name} has found another model than the engine under {self._path}: the "
                "configurations or the tensors' shapes and types differ"
            )

    def _compare_part(self, part: InstancePart, own: InstancePart) -> None:
        for option in ("precision", "kv_precision", "block_size"):
            theirs, ours = getattr(part, option), getattr(own, option)
            if theirs != ours:
                raise ExecutorError(
                    f"{self._workers.name(part.rank_id)} has the {option} {theirs}, the engine "
                    f"{ours}: all must have the same, state which"
                )
