"""Which engine has which request, and which requests wait for an engine."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.fleet.generation import EngineError, Generation
from sarathi.fleet.replica import EngineHandle
from sarathi.fleet.router import Assignment, LeastWork
from sarathi.scheduler import LatencyModel
from sarathi.scheduler.kv.block_hashes import block_hashes

_HASHED = 128  # tokens, about, of one hash: with one a block, hashing a prompt takes twice as long


class Dispatcher:
    """Sends each request to the engine that is predicted to be done with it first."""

    def __init__(self) -> None:
        self.held: dict[int, Generation] = {}  # by id, until an engine takes requests
        self._engines: dict[int, EngineHandle] = {}
        self._closed: set[int] = set()
        self._router = LeastWork()
        self._assigned: dict[int, Assignment] = {}  # by id of the request

    def add(self, number: int, engine: EngineHandle) -> None:
        """Send requests to an engine that has become ready, those that are held first."""
        assert engine.info is not None
        info = engine.info
        size = _hashed(info.block_size) if info.prefix_caching else 1
        blocks = info.num_blocks * info.block_size // size if info.prefix_caching else 0
        model = LatencyModel(engine.latency)
        self._engines[number] = engine
        self._router.add(number, model, block_size=size, num_blocks=blocks)
        self.open(number)

    def close(self, number: int) -> None:
        """Send no more requests to an engine."""
        self._closed.add(number)

    def open(self, number: int) -> None:
        """Send requests to an engine, again."""
        self._closed.discard(number)
        held, self.held = self.held, {}
        for generation in sorted(held.values(), key=lambda one: one.id):  # oldest first
            self.send(generation)

    def remove(self, number: int) -> list[Generation]:
        """Forget an engine, dead or alive, and give back its open requests.

        Harmless where it is not known.
        """
        engine = self._engines.pop(number, None)
        taken = [] if engine is None else engine.take_open()
        for generation in taken:
            self._router.ended(self._assigned.pop(generation.id))
        self._router.remove(number)
        self._closed.discard(number)
        return taken

    def work(self, number: int) -> float:
        """Seconds until an engine is done with what it has; 0 where it is not known."""
        return self._router.work(number) if number in self._engines else 0.0

    def send(self, generation: Generation) -> None:
        """To an engine, or hold it until there is one."""
        ready = [n for n, one in self._engines.items() if one.error is None]
        ready = [n for n in ready if n not in self._closed]
        if not ready:
            self.held[generation.id] = generation
            return
        hashes = self._hashes(generation.prompt_ids) if len(ready) > 1 else ()
        assignment = self._router.assign(generation.num_tokens, hashes, ready)
        self._assigned[generation.id] = assignment
        self._engines[assignment.engine].submit(generation)

    def forget(self, generation: Generation) -> None:
        """Its caller has ended it."""
        self.held.pop(generation.id, None)
        assignment = self._assigned.pop(generation.id, None)
        if assignment is not None:
            self._router.ended(assignment)
            self._engines[assignment.engine].cancel(generation)

    def fail(self, error: EngineError) -> None:
        """End all requests with an error, wherever they are."""
        lost = list(self.held.values())
        self.held.clear()
        for number in list(self._engines):
            lost += self.remove(number)
        for generation in lost:
            generation.fail(error)

    # -- what engines tell ------------------------------------------------------------------

    def started(self, generation: Generation) -> None:
        self._router.started(self._assigned[generation.id])

    def finished(self, generation: Generation) -> None:
        self._router.ended(self._assigned.pop(generation.id), len(generation.output_ids))

    def _hashes(self, prompt_ids: Sequence[int]) -> Sequence[bytes]:
        sizes = {one.info.block_size for one in self._engines.values() if one.info is not None}
        size = _hashed(min(sizes))  # all have the same model, and so the same
        return list(block_hashes(prompt_ids, size))


def _hashed(block_size: int) -> int:
    """Tokens that one hash stands for: whole blocks."""
    return block_size * max(1, _HASHED // block_size)
