"""A model that several processes load together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from sarathi.backends.executor_options import ExecutorOptions
from sarathi.backends.model_instance import InstancePart
from sarathi.backends.parallel.pipeline_runner import PipelineRunner
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.stage_worker import StageWorker
from sarathi.backends.parallel.worker_group import WorkerGroup
from sarathi.backends.parallel.worker_messages import (
    Connect,
    Done,
    Hello,
    Loaded,
    MethodCall,
    encode,
)
from sarathi.errors import ExecutorError
from sarathi.models.model import Model
from sarathi.system.processes import Spawner
from sarathi.system.sockets import SocketFolder

CONNECT_TIMEOUT = 60.0  # seconds for a process to start, import its libraries and connect


class Pipeline:
    """See `ModelInstance`. This process is rank 0 of the last stage, the others are spawned.

    Load it with `load`; `close` ends the processes, even after a failure.
    """

    def __init__(
        self,
        path: Path,
        model: Model,
        options: ExecutorOptions,
        layout: ParallelLayout,
        spawner: Spawner,
    ) -> None:
        """Start the processes.

        Args:
            path: of the model, which every process opens.

        Raises:
            ModelError: the model cannot be divided like that.
        """
        layout.check(model.config)
        self.config = model.config
        self.max_position = options.max_position
        self.parts: tuple[InstancePart, ...] = ()
        self._path = path
        self._layout = layout
        folder = SocketFolder()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ExitStack() as opened:
            opened.callback(folder.remove)
            opened.callback(context.destroy, linger=0)
            self._stage_worker = StageWorker(
                model,
                options,
                layout,
                layout.engine_rank,
                host=spawner.host,
                folder=folder.path,
                context=context,
            )
            self._workers = WorkerGroup(
                path, options, layout, spawner, folder=folder.path, context=context
            )
            self.runner = PipelineRunner(
                layout,
                self._stage_worker,
                self._workers,
                context,
                opened.pop_all(),
            )

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
        hellos = dict(self._workers.gather(Hello, timeout=connect_timeout))
        for rank_id, hello in hellos.items():
            self._compare(rank_id, hello)
        engine = self._layout.engine_rank
        hellos[engine] = self._stage_worker.hello
        for rank_id in self._layout.worker_ranks:
            self._workers.send(encode(self._connect(rank_id, hellos)), to=rank_id)
        share = 0.0

        def set_share(value: float) -> None:  # in another thread
            nonlocal share
            share = value

        def report_own() -> None:
            self.runner.raise_error(own)
            on_progress(engine, share)

        connect = self._connect(engine, hellos)
        own = self.runner.in_thread(lambda: self._stage_worker.load(connect, set_share))
        messages = self._workers.gather(
            Loaded,
            on_progress=on_progress,
            on_message=lambda rank_id, message: on_loaded(message.part),
            on_poll=report_own,
        )
        parts = {rank_id: message.part for rank_id, message in messages.items()}
        parts[engine] = self.runner.wait_for(own)
        on_loaded(parts[engine])
        self.parts = tuple(parts[rank_id] for rank_id in self._layout.ranks)
        for part in self.parts:
            self._compare_part(part)
        self.runner.use_sampler(self._stage_worker.executor.make_sampler())

    def allocate(self, num_blocks: int) -> None:
        self._call_all(MethodCall("allocate", [num_blocks]))

    def check_computing(self) -> None:
        self._call_all(MethodCall("check"))

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        self._call_all(MethodCall("start_warming_up"))
        yield
        self._call_all(MethodCall("stop_warming_up"))

    def close(self) -> None:
        self.runner.close()

    def _call_all(self, call: MethodCall) -> None:
        """Call a method of every process's `StageWorker`, and wait for all of them."""
        self._workers.send(encode(call))
        own = self.runner.in_thread(lambda: self._stage_worker.call(call))
        self._workers.gather(Done, on_poll=lambda: self.runner.raise_error(own))
        self.runner.wait_for(own)

    def _connect(self, rank_id: RankId, hellos: Mapping[RankId, Hello]) -> Connect:
        layout = self._layout
        next_stage = None
        if rank_id.rank == 0 and rank_id.stage < layout.pp - 1:
            next_stage = hellos[RankId(rank_id.stage + 1, 0)].inbox
        host = hellos[rank_id].host
        local_ranks = [other for other in layout.ranks if hellos[other].host == host]
        return Connect(
            next_stage=next_stage,
            rendezvous=hellos[RankId(rank_id.stage, 0)].rendezvous,
            local_world_size=len(local_ranks),
            local_rank=local_ranks.index(rank_id),
        )

    def _compare(self, rank_id: RankId, hello: Hello) -> None:
        own, name = self._stage_worker.hello, self._workers.name(rank_id)
        if hello.versions != own.versions:
            raise ExecutorError(f"{name} runs {hello.versions}, the engine {own.versions}")
        if hello.fingerprint != own.fingerprint:
            raise ExecutorError(
                f"{name} has found another model than the engine under {self._path}: the "
                "configurations or the tensors' shapes and types differ"
            )

    def _compare_part(self, part: InstancePart) -> None:
        own = self.parts[self._layout.ranks.index(self._layout.engine_rank)]
        for option in ("precision", "kv_precision", "block_size"):
            theirs, ours = getattr(part, option), getattr(own, option)
            if theirs != ours:
                raise ExecutorError(
                    f"{self._workers.name(part.rank_id)} has the {option} {theirs}, the engine "
                    f"{ours}: all must have the same, state which"
                )
