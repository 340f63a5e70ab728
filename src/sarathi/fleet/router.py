"""The choice of an engine for a request: the one with the least predicted work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sarathi.engine.scheduler_factory import TYPICAL_DECODES
from sarathi.scheduler.budget.latency_model import LatencyModel

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

        Args:
            block_size: tokens that a hash of `assign` stands for.
            num_blocks: hashes of prompts that are remembered; 0: none.
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
        best, least, prompt = -1, float("inf"), 0.0
        for number in self._round_robin():
            if among is not None and number not in among:
                continue
            own = self._engines[number].seconds(tokens, hashes)
            work = self.work(number) + own
            if work < least:
                best, least, prompt = number, work, own
        engine = self._engines[best]
        engine.prompts += prompt
        engine.answers += 1
        engine.remember(hashes)
        self._latest = best
        return Assignment(best, prompt)

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
        """Stop counting the request: the engine does not compute it any more.

        Args:
            output_tokens: of the whole answer; None if it is not complete.
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
