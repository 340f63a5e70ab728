"""Gives requests to engines; keeps those that wait for an engine."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.fleet.engine_client import EngineClient
from sarathi.fleet.generation import EngineError, Generation
from sarathi.fleet.router import Assignment, LeastWork
from sarathi.scheduler import LatencyModel
from sarathi.scheduler.kv.block_hashes import block_hashes

_HASH_TOKENS = 128  # of one hash, about: one for every block would double the time of hashing


class Dispatcher:
    """Sends each request to the engine that is predicted to finish it first."""

    def __init__(self) -> None:
        self._waiting: dict[int, Generation] = {}  # by id, until an engine takes requests
        self._engines: dict[int, EngineClient] = {}
        self._paused: set[int] = set()
        self._router = LeastWork()
        self._assigned: dict[int, Assignment] = {}  # by id of the request

    def add(self, number: int, engine: EngineClient) -> None:
        """Send requests to an engine that has become ready, first those that wait."""
        assert engine.info is not None
        info = engine.info
        size = _hash_tokens(info.block_size) if info.prefix_caching else 1
        blocks = info.num_blocks * info.block_size // size if info.prefix_caching else 0
        model = LatencyModel(engine.latency)
        self._engines[number] = engine
        self._router.add(number, model, block_size=size, num_blocks=blocks)
        self.resume(number)

    def pause(self, number: int) -> None:
        """Send no more requests to an engine."""
        self._paused.add(number)

    def resume(self, number: int) -> None:
        """Send requests to an engine again, first those that wait."""
        self._paused.discard(number)
        waiting, self._waiting = self._waiting, {}
        for generation in sorted(waiting.values(), key=lambda one: one.id):  # oldest first
            self.send(generation)

    def remove(self, number: int) -> list[Generation]:
        """Forget an engine, dead or alive, and return its open requests; none if it is unknown."""
        engine = self._engines.pop(number, None)
        open_requests = [] if engine is None else engine.take_open()
        for generation in open_requests:
            self._router.ended(self._assigned.pop(generation.id))
        self._router.remove(number)
        self._paused.discard(number)
        return open_requests

    def work(self, number: int) -> float:
        """Return the seconds until an engine has finished its requests; 0 if it is unknown."""
        return self._router.work(number) if number in self._engines else 0.0

    def send(self, generation: Generation) -> None:
        """Send a request to an engine, or keep it until one is ready."""
        ready = [
            number
            for number, engine in self._engines.items()
            if engine.error is None and number not in self._paused
        ]
        if not ready:
            self._waiting[generation.id] = generation
            return
        hashes = self._hashes(generation.prompt_ids) if len(ready) > 1 else ()
        assignment = self._router.assign(generation.num_tokens, hashes, ready)
        self._assigned[generation.id] = assignment
        self._engines[assignment.engine].submit(generation)

    def cancel(self, generation: Generation) -> None:
        """Forget a request that its caller has ended."""
        self._waiting.pop(generation.id, None)
        assignment = self._assigned.pop(generation.id, None)
        if assignment is not None:
            self._router.ended(assignment)
            self._engines[assignment.engine].cancel(generation)

    def fail(self, error: EngineError) -> None:
        """End all requests with an error, those of engines and those that wait."""
        failed = list(self._waiting.values())
        self._waiting.clear()
        for number in list(self._engines):
            failed += self.remove(number)
        for generation in failed:
            generation.fail(error)

    def on_first_token(self, generation: Generation) -> None:
        self._router.started(self._assigned[generation.id])

    def on_finished(self, generation: Generation) -> None:
        self._router.ended(self._assigned.pop(generation.id), len(generation.output_ids))

    def _hashes(self, prompt_ids: Sequence[int]) -> Sequence[bytes]:
        sizes = {one.info.block_size for one in self._engines.values() if one.info is not None}
        size = _hash_tokens(min(sizes))  # all have the same model, and so the same size
        return list(block_hashes(prompt_ids, size))


def _hash_tokens(block_size: int) -> int:
    """Return the tokens that one hash stands for: whole blocks."""
    return block_size * max(1, _HASH_TOKENS // block_size)
