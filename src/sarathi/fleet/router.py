"""Gives requests to engines: each to the one with the least predicted work.

Requests wait here while no engine can take them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sarathi.engine.scheduler_factory import TYPICAL_DECODES
from sarathi.fleet.engine_client import EngineClient, EngineError, Generation
from sarathi.scheduler.budget.latency_model import LatencyModel
from sarathi.scheduler.kv.block_pool import block_hashes

_HASH_TOKENS = 128  # of one hash, about: one for every block would double the time of hashing
_INITIAL_OUTPUT = 256.0  # tokens that an answer is taken to have until the first ones have ended


@dataclass(eq=False, slots=True)
class Assignment:
    """The engine of one request, and its predicted work."""

    engine: int
    prompt: float  # predicted seconds of its prompt; 0 once it has been computed


class LeastWork:
    """Chooses the engine that is predicted to finish its requests and the new one first.

    Among equals it is round robin. A prompt counts with the time that the engine's latency model
    predicts, until its first token; an answer with that of as many tokens as answers had on average
    so far. The beginning of a prompt does not count if the engine has computed it for an earlier
    one, as far as the router remembers.
    """

    def __init__(self) -> None:
        self._engines: dict[int, _Engine] = {}
        self._ended = 0
        self._tokens = 0
        self._latest = -1

    def add(
        self, engine: int, model: LatencyModel, *, block_size: int = 1, num_blocks: int = 0
    ) -> None:
        """Add an engine without requests, or replace it by one.

        `num_blocks` hashes of prompts are remembered, each of `block_size` tokens.
        """
        self._engines[engine] = _Engine(model, block_size, num_blocks)

    def remove(self, engine: int) -> None:
        """Remove an engine; does nothing if it is unknown."""
        self._engines.pop(engine, None)

    def assign(
        self, tokens: int, hashes: Sequence[bytes] = (), among: Collection[int] | None = None
    ) -> Assignment:
        """Choose an engine for a request and count the request as its work.

        Args:
            tokens: to compute before the first new one.
            hashes: of the first of these tokens, see `block_hashes`.
            among: engines to choose from, at least one of those added; None: all.
        """
        numbers = [n for n in self._round_robin() if among is None or n in among]
        prompts = {number: self._engines[number].seconds(tokens, hashes) for number in numbers}
        best = min(numbers, key=lambda number: self.work(number) + prompts[number])
        engine = self._engines[best]
        engine.prompts += prompts[best]
        engine.answers += 1
        engine.remember(hashes)
        self._latest = best
        return Assignment(best, prompts[best])

    def work(self, engine: int) -> float:
        """Return the predicted seconds until an engine has finished its requests."""
        per_answer = self._tokens / self._ended if self._ended else _INITIAL_OUTPUT
        one = self._engines[engine]
        return one.prompts + per_answer * one.per_token * one.answers

    def started(self, assignment: Assignment) -> None:
        """Stop counting the prompt: its first token has come."""
        engine = self._engines.get(assignment.engine)
        if engine is not None:
            engine.prompts = max(0.0, engine.prompts - assignment.prompt)
        assignment.prompt = 0.0

    def ended(self, assignment: Assignment, output_tokens: int | None = None) -> None:
        """Stop counting a request that the engine does not compute any more.

        `output_tokens` are those of the whole answer; None if it is not complete.
        """
        self.started(assignment)
        engine = self._engines.get(assignment.engine)
        if engine is not None:
            engine.answers -= 1
        if output_tokens is not None:
            self._ended += 1
            self._tokens += output_tokens

    def _round_robin(self) -> list[int]:
        """Return all engines, beginning after the one that was chosen last."""
        numbers = sorted(self._engines)
        after = sum(number <= self._latest for number in numbers)
        return numbers[after:] + numbers[:after]


@dataclass(eq=False, slots=True)
class _Engine:
    model: LatencyModel
    block_size: int
    num_blocks: int
    prompts: float = 0.0  # predicted seconds of those without a token
    answers: int = 0  # that have not ended
    per_token: float = 0.0  # seconds
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)  # latest last

    def __post_init__(self) -> None:
        self.per_token = self.model.predict(TYPICAL_DECODES.work) / TYPICAL_DECODES.requests

    def seconds(self, tokens: int, hashes: Sequence[bytes]) -> float:
        """Return the predicted seconds of the part of a prompt that this engine has to compute."""
        known = 0
        for name in hashes:
            if name not in self.blocks:
                break
            known += self.block_size
        known = min(known, tokens - 1)  # the last token is always computed
        return self.model.prompt_cost(tokens - known, known, True)

    def remember(self, hashes: Sequence[bytes]) -> None:
        """Note that the engine has the beginning of a prompt in its prefix cache."""
        if not self.num_blocks:
            return
        blocks = self.blocks
        # The rest of a prompt is useless without its beginning, which is therefore forgotten last.
        for name in reversed(hashes):
            blocks[name] = None
            blocks.move_to_end(name)
        while len(blocks) > self.num_blocks:
            blocks.popitem(last=False)


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
        hashes: Sequence[bytes] = ()
        if len(ready) > 1:
            # All have the same model, and so the same size of blocks.
            sizes = [one.info.block_size for one in self._engines.values() if one.info is not None]
            hashes = list(block_hashes(generation.prompt_ids, _hash_tokens(min(sizes))))
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
        failed, self._waiting = list(self._waiting.values()), {}
        for number in list(self._engines):
            failed += self.remove(number)
        for generation in failed:
            generation.fail(error)

    def on_first_token(self, generation: Generation) -> None:
        self._router.started(self._assigned[generation.id])

    def on_finished(self, generation: Generation) -> None:
        self._router.ended(self._assigned.pop(generation.id), len(generation.output_ids))


def _hash_tokens(block_size: int) -> int:
    """Return the tokens that one hash stands for: whole blocks."""
    return block_size * max(1, _HASH_TOKENS // block_size)
