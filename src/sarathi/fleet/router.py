"""Which of several engines gets a request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sarathi.scheduler.budget.latency_model import LatencyModel, Work

_TYPICAL = Work(32, 0.0, 32 * 512, 32)  # of decodes
_PRESUMED_OUTPUT = 256.0  # tokens, until the first answers have ended


@dataclass(eq=False, slots=True)
class Assignment:
    """One request and the engine that got it."""

    engine: int
    prompt: float  # seconds that its prompt was predicted to take; 0 once it has been computed


class LeastWork:
    """The engine that would be done first with all it has and the request itself, as far as can
    be foreseen. Among equals, it goes round.

    A prompt counts with the time that the engine's latency model gives it, until its first token;
    an answer with that of as many tokens as answers had on average so far. Of a prompt counts what
    the engine has not computed for others that began alike, so far as is remembered.
    """

    def __init__(self) -> None:
        self._engines: dict[int, _Engine] = {}
        self._ended = 0
        self._tokens = 0
        self._latest = -1

    def add(
        self, engine: int, model: LatencyModel, *, block_size: int = 1, num_blocks: int = 0
    ) -> None:
        """Let an engine take part, or anew after it has lost all it had.

        Args:
            block_size: tokens that a hash of `assign` stands for.
            num_blocks: of a prompt's hashes, so many are remembered; 0: none.
        """
        self._engines[engine] = _Engine(model, block_size, num_blocks)

    def remove(self, engine: int) -> None:
        """Harmless where it takes no part."""
        self._engines.pop(engine, None)

    def assign(
        self, tokens: int, hashes: Sequence[bytes] = (), among: Collection[int] | None = None
    ) -> Assignment:
        """
        Args:
            tokens: to compute before the first new one.
            hashes: as `block_hashes` gives them, of the first of these tokens.
            among: engines to choose from, at least one that takes part; None: all.
        """
        best, least, prompt = -1, float("inf"), 0.0
        for number in self._in_turn():
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
        """Seconds until an engine would be done with all that it has."""
        per_answer = self._tokens / self._ended if self._ended else _PRESUMED_OUTPUT
        one = self._engines[engine]
        return one.prompts + per_answer * one.per_token * one.answers

    def started(self, assignment: Assignment) -> None:
        """The first token has come."""
        engine = self._engines.get(assignment.engine)
        if engine is not None:
            engine.prompts = max(0.0, engine.prompts - assignment.prompt)
        assignment.prompt = 0.0

    def ended(self, assignment: Assignment, output_tokens: int | None = None) -> None:
        """The engine has it no more.

        Args:
            output_tokens: of the whole answer; None where it was not the end of it.
        """
        self.started(assignment)
        engine = self._engines.get(assignment.engine)
        if engine is not None:
            engine.answers -= 1
        if output_tokens is not None:
            self._ended += 1
            self._tokens += output_tokens

    def _in_turn(self) -> list[int]:
        """All engines, from the one after the latest that got something."""
        numbers = sorted(self._engines)
        after = sum(number <= self._latest for number in numbers)
        return numbers[after:] + numbers[:after]


@dataclass(eq=False, slots=True)
class _Engine:
    model: LatencyModel
    block_size: int
    num_blocks: int
    prompts: float = 0.0  # seconds of those assigned that have no token yet
    answers: int = 0  # that have not ended
    per_token: float = 0.0  # seconds
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)  # latest last

    def __post_init__(self) -> None:
        self.per_token = self.model.predict(_TYPICAL) / _TYPICAL.tokens

    def seconds(self, tokens: int, hashes: Sequence[bytes]) -> float:
        """What of a prompt this engine would have to compute."""
        known = 0
        for name in hashes:
            if name not in self.blocks:
                break
            known += self.block_size
        known = min(known, tokens - 1)  # the last one is computed in any case
        return self.model.prompt_cost(tokens - known, known, True)

    def remember(self, hashes: Sequence[bytes]) -> None:
        if not self.num_blocks:
            return
        blocks = self.blocks
        # Without its beginning, the rest of a prompt is worth nothing: that is forgotten last.
        for name in reversed(hashes):
            blocks[name] = None
            blocks.move_to_end(name)
        while len(blocks) > self.num_blocks:
            blocks.popitem(last=False)
