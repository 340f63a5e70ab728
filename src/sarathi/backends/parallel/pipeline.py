"""A model that several processes have loaded together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from sarathi.backends.model_instance import InstancePart
from sarathi.backends.parallel.pipeline_runner import PipelineRunner
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.stage_worker import StageWorker
from sarathi.backends.parallel.worker_group import Workers
from sarathi.backends.parallel.worker_messages import (
    Allocate,
    Check,
    Connect,
    Done,
    Hello,
    Loaded,
    ToWorker,
    WarmUp,
)
from sarathi.backends.registry import ExecutorOptions
from sarathi.errors import ExecutorError
from sarathi.models.model import Model
from sarathi.system.processes import Spawner
from sarathi.system.sockets import SocketFolder

CONNECTING = 60.0  # seconds for a process to start, import its libraries and connect


class Pipeline:
    """See `Ensemble`. This process holds the first rank of the last stage, the others are spawned.

    Load it with `load`; `close` ends the processes, whatever has become of it.
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
            path: of the model; every process opens it for itself.

        Raises:
            ModelError: the model cannot be shared out like that.
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
            self._member = StageWorker(
                model,
                options,
                layout,
                layout.engine,
                host=spawner.host,
                folder=folder.path,
                context=context,
            )
            self._workers = Workers(
                path, options, layout, spawner, folder=folder.path, context=context
            )
            self.runner = PipelineRunner(
                layout,
                self._member,
                self._workers,
                context,
                opened.pop_all(),
            )

    def load(
        self,
        progress: Callable[[RankId, float], None],
        loaded: Callable[[InstancePart], None],
        *,
        connecting: float = CONNECTING,
    ) -> None:
        """Connect the processes and let them all load at the same time.

        Args:
            progress: called now and then with the share of its tensors that a process has read.
            loaded: called for each process that is done.
            connecting: seconds for them to start and connect; loading takes as long as it takes.

        Raises:
            ExecutorError: a process does not connect, has found another model, has failed or died.
            ModelError: this one cannot read the model.
        """
        hellos = dict(self._workers.gather(Hello, within=connecting))
        for place, hello in hellos.items():
            self._compare(place, hello)
        engine = self._layout.engine
        hellos[engine] = self._member.hello
        for place in self._layout.workers:
            self._workers.send(self._connect(place, hellos), place)
        share = 0.0

        def tell(value: float) -> None:  # in another thread
            nonlocal share
            share = value

        def look() -> None:
            self.runner.look_at(own)
            progress(engine, share)

        connect = self._connect(engine, hellos)
        own = self.runner.in_thread(lambda: self._member.load(connect, tell))
        messages = self._workers.gather(
            Loaded,
            progress=progress,
            got=lambda place, message: loaded(message.part),
            alongside=look,
        )
        parts = {place: message.part for place, message in messages.items()}
        parts[engine] = self.runner.wait_for(own)
        loaded(parts[engine])
        self.parts = tuple(parts[place] for place in self._layout.places)
        for part in self.parts:
            self._compare_part(part)
        self.runner.use_sampler(self._member.executor.make_sampler())

    def allocate(self, num_blocks: int) -> None:
        """See `Ensemble`."""
        self._together(Allocate(num_blocks), lambda: self._member.executor.allocate(num_blocks))

    def check_computing(self) -> None:
        """See `Ensemble`."""
        self._together(Check(), lambda: self._member.executor.check())

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """See `Ensemble`."""
        self._together(WarmUp(True), lambda: self._member.warm_up(True))
        yield
        self._together(WarmUp(False), lambda: self._member.warm_up(False))

    def close(self) -> None:
        """See `Ensemble`."""
        self.runner.close()

    def _together(self, message: ToWorker, task: Callable[[], None]) -> None:
        """Tell the workers to do something and do the same here."""
        self._workers.send_all(message)
        own = self.runner.in_thread(task)
        self._workers.gather(Done, alongside=lambda: self.runner.look_at(own))
        self.runner.wait_for(own)

    def _connect(self, place: RankId, hellos: Mapping[RankId, Hello]) -> Connect:
        layout = self._layout
        following = None
        if place.rank == 0 and place.stage < layout.pp - 1:
            following = hellos[RankId(place.stage + 1, 0)].inbox
        host = hellos[place].host
        there = [other for other in layout.places if hellos[other].host == host]
        return Connect(
            following=following,
            store=hellos[RankId(place.stage, 0)].store,
            neighbours=len(there),
            neighbour=there.index(place),
        )

    def _compare(self, place: RankId, hello: Hello) -> None:
        own, name = self._member.hello, self._workers.name(place)
        if hello.versions != own.versions:
            raise ExecutorError(f"{name} runs {hello.versions}, the engine {own.versions}")
        if hello.fingerprint != own.fingerprint:
            raise ExecutorError(
                f"{name} has found another model than the engine under {self._path}: the "
                "configurations or the tensors' shapes and types differ"
            )

    def _compare_part(self, part: InstancePart) -> None:
        own = self.parts[self._layout.places.index(self._layout.engine)]
        for option in ("precision", "kv_precision", "block_size"):
            theirs, ours = getattr(part, option), getattr(own, option)
            if theirs != ours:
                raise ExecutorError(
                    f"{self._workers.name(part.place)} has the {option} {theirs}, the engine "
                    f"{ours}: all must have the same, state which"
                )
