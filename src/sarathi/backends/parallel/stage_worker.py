"""The part that one process takes in a pipeline: its layers, between its neighbours."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from sarathi.backends.executor import Executor
from sarathi.backends.model_instance import InstancePart, describe
from sarathi.backends.parallel.fingerprint import fingerprint, versions
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.stage_links import Inbox, Outlet
from sarathi.backends.parallel.worker_messages import Connect, Hello
from sarathi.backends.registry import (
    ExecutorOptions,
    create_executor,
    free_memory,
    init_process_group,
    open_store,
)
from sarathi.backends.step import Step
from sarathi.models.model import Model
from sarathi.models.weights import Array
from sarathi.system.cpu_affinity import keep_to_own_cores
from sarathi.system.machine import usable_cores
from sarathi.telemetry.stages import StageTime

if TYPE_CHECKING:
    from sarathi.backends.torch.process_group import ProcessGroup, Rendezvous

_GREETING = 30.0  # seconds; all are there already


class Output(NamedTuple):
    result: Any  # of the last stage the logits, as `Executor.logits`; otherwise hidden states
    stages: tuple[StageTime, ...]  # up to this one


class StageWorker:
    """Loads and computes one place of a layout. The first rank of a stage speaks for all of it:
    it takes hidden states from the stage before and passes on its own."""

    def __init__(
        self,
        model: Model,
        options: ExecutorOptions,
        layout: ParallelLayout,
        place: RankId,
        *,
        host: str | None,
        folder: Path,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        """Open what others connect to; nothing is loaded yet.

        Args:
            host: the address under which others reach this process; None: all are on this machine.
            folder: for the files of sockets.
        """
        self.place = place
        self._model = model
        self._options = options
        self._layout = layout
        self._context = context
        self._stage = layout.stages(model.config)[place.stage]
        self._executor: Executor | None = None
        self._ended: float | None = None  # the step before
        self._warming = ExitStack()
        self._inbox: Inbox | None = None
        self._outlet: Outlet | None = None
        self._store: Rendezvous | None = None
        self._group: ProcessGroup | None = None
        if place.rank == 0 and not self._stage.first:
            self._inbox = Inbox(context, host, folder, f"stage-{place.stage}")
        if place.rank == 0 and layout.tp > 1:
            self._store = open_store(host)
        self.hello = Hello(
            fingerprint=fingerprint(model),
            versions=versions(options.executor),
            host=platform.node(),
            inbox=None if self._inbox is None else self._inbox.endpoint,
            store=None if self._store is None else self._store.address,
        )

    def load(self, connect: Connect, tell: Callable[[float], None]) -> InstancePart:
        """Meet the other ranks of the stage and load the layers. The thread that does so computes
        later on.

        Args:
            tell: called now and then, from any thread, with the share of tensors that are read.

        Raises:
            ExecutorError, ModelError: as executors do, or a rank has not come.
        """
        layout, options, place = self._layout, self._options, self.place
        if place.rank == 0 and connect.following is not None:
            self._outlet = Outlet(self._context, connect.following)
            self._outlet.greet()
        if self._inbox is not None:
            self._inbox.await_greeting(_GREETING)
        threads = options.threads or max(1, usable_cores() // connect.neighbours)
        if options.own_cores:
            keep_to_own_cores(connect.neighbour, connect.neighbours, threads)
        began = time.monotonic()
        if layout.tp > 1:
            store = self._store or connect.store
            assert store is not None, "the first rank has a store, the others its address"
            self._group = init_process_group(store, layout, place, options, connect.neighbour)
        executor = create_executor(
            self._model,
            options,
            layout,
            place,
            threads=threads,
            group=self._group,
            neighbour=connect.neighbour,
            neighbours=connect.neighbours,
            tell=tell,
        )
        seconds = time.monotonic() - began
        memory = free_memory(executor, options, connect.neighbour)
        self._executor = executor
        return describe(executor, place, memory, seconds)

    @property
    def executor(self) -> Executor:
        assert self._executor is not None, "nothing is loaded"
        return self._executor

    def warm_up(self, begins: bool) -> None:
        if begins:
            self._warming.enter_context(self.executor.warming_up())
        else:
            self._warming.close()

    def run(self, step_id: int, step: Step, wanted: Callable[[], bool]) -> Output:
        """Compute a step and pass on what comes of it.

        Args:
            wanted: asked now and then whether to go on waiting for the stage before.

        Raises:
            AbandonedError: it was not wanted any more.
            ExecutorError: the stage before has sent another step.
        """
        received: Array | None = None
        before: tuple[StageTime, ...] = ()
        if self._inbox is not None:
            received, before = self._inbox.receive(step_id, wanted)
        began = time.monotonic()
        compute = self.executor.logits if self._stage.last else self.executor.execute
        result = compute(step, received)
        ended = time.monotonic()
        waited = 0.0 if self._ended is None else began - self._ended
        self._ended = ended
        output = Output(result, (*before, StageTime(waited, ended - began)))
        if self._outlet is not None:
            self._outlet.send(step_id, *output)
        return output

    def close(self) -> None:
        for opened in (self._inbox, self._outlet, self._group):
            if opened is not None:
                opened.close()
