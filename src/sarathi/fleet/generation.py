"""One submitted request, as whoever submitted it sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from sarathi.engine.messages import TokenOutput
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.telemetry.request_latencies import Outcome, Stopwatch


class EngineError(RuntimeError):
    """The engine cannot answer: it is still loading, has died, or refused the request."""


class ShuttingDownError(EngineError):
    """The server ends before the request does."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class RequestLostError(EngineError):
    """The engine died too often while it had the request."""


class Generation:
    """A request and its tokens, as they come.

    It outlives the engine that computes it: what another engine needs to go on is here.
    """

    def __init__(
        self,
        number: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        terms: SchedulingParams,
        stopwatch: Stopwatch,
        forget: Callable[[Generation], None],
    ) -> None:
        """
        Args:
            number: its id, among all that engines may know.
            forget: called once where the caller ends the request before the engine does.
        """
        self.id = number
        self.prompt_ids = prompt_ids
        self.params = params
        self.terms = terms
        self.output_ids: list[int] = []  # that have come, read or not
        self.begun = False  # the engine that has it now has given a token
        self.deaths = 0  # engines that died while they had it
        self._stopwatch = stopwatch
        self._forget = forget
        self._ended = False
        self._outputs: list[TokenOutput] = []
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def arrival(self) -> float:
        """Seconds, time.monotonic of this process."""
        return self._stopwatch.arrival

    @property
    def ended(self) -> bool:
        """Whether no more tokens will come."""
        return self._ended

    @property
    def num_tokens(self) -> int:
        """What an engine has to compute before the next token."""
        return len(self.prompt_ids) + len(self.output_ids)

    async def next(self) -> list[TokenOutput]:
        """The tokens since the last call, at least one; the last has a finish reason.

        Raises:
            EngineError: the engine refused the request or died for good.
        """
        if not self._outputs and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._outputs:
            assert self._error is not None
            raise self._error
        outputs, self._outputs = self._outputs, []
        return outputs

    def cancel(self) -> None:
        """Stop computing and free the KV blocks. Harmless after the end, or twice."""
        self._end_early("cancelled")

    def stop(self) -> None:
        """The same, for an answer that is complete because a stop string came."""
        self._end_early("stop")

    def put(self, output: TokenOutput, now: float) -> None:
        """
        Args:
            now: when it came, time.monotonic.
        """
        self._stopwatch.token(now, output.scheduling_delay)
        self.output_ids.append(output.token)
        if output.finish_reason is not None:
            self._ended = True
            self._stopwatch.end(output.finish_reason)
        self._outputs.append(output)
        self._wake()

    def fail(self, error: EngineError) -> None:
        self._ended = True
        self._stopwatch.end("failed")
        self._error = error
        self._wake()

    def _end_early(self, outcome: Outcome) -> None:
        if not self._ended:
            self._ended = True
            self._forget(self)
            self._stopwatch.end(outcome)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
