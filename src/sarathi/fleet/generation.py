"""A submitted request and the stream of its tokens, as the server sees it."""

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
    """The server shuts down before the request has ended."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class RequestLostError(EngineError):
    """The engine died too often while it was computing the request."""


class Generation:
    """A request and its tokens, as they come.

    It outlives the engine that computes it, and holds what another engine needs to continue.
    """

    def __init__(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        scheduling_params: SchedulingParams,
        stopwatch: Stopwatch,
        on_cancel: Callable[[Generation], None],
    ) -> None:
        """Prepare the stream; `Fleet.submit` is what creates one.

        Args:
            request_id: unique among the requests of all engines.
            on_cancel: called once if the caller ends the request before the engine does.
        """
        self.id = request_id
        self.prompt_ids = prompt_ids
        self.params = params
        self.scheduling_params = scheduling_params
        self.output_ids: list[int] = []  # received so far, read or not
        self.has_started = False  # its present engine has generated a token
        self.deaths = 0  # of engines that were computing it
        self._stopwatch = stopwatch
        self._on_cancel = on_cancel
        self._ended = False
        self._outputs: list[TokenOutput] = []
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def arrival(self) -> float:
        """When it was submitted; seconds, time.monotonic of this process."""
        return self._stopwatch.arrival

    @property
    def ended(self) -> bool:
        """Whether no more tokens will come."""
        return self._ended

    @property
    def num_tokens(self) -> int:
        """Tokens that an engine has to compute before it can generate the next one."""
        return len(self.prompt_ids) + len(self.output_ids)

    async def next(self) -> list[TokenOutput]:
        """Wait for tokens and return those since the last call; the last one has a finish reason.

        Raises:
            EngineError: the engine rejected the request, or has died and is not restarted.
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
        """Stop computing and free the KV blocks. Does nothing after the end."""
        self._end_early("cancelled")

    def stop(self) -> None:
        """Do the same as `cancel`, for an answer that a stop string has completed."""
        self._end_early("stop")

    def put(self, output: TokenOutput, now: float) -> None:
        """Add a token of the engine.

        Args:
            now: when it was received, time.monotonic.
        """
        self._stopwatch.token(now, output.scheduling_delay)
        self.output_ids.append(output.token)
        if output.finish_reason is not None:
            self._ended = True
            self._stopwatch.end(output.finish_reason)
        self._outputs.append(output)
        self._wake()

    def fail(self, error: EngineError) -> None:
        """End the request with an error, which `next` raises after the tokens received."""
        self._ended = True
        self._stopwatch.end("failed")
        self._error = error
        self._wake()

    def _end_early(self, outcome: Outcome) -> None:
        if not self._ended:
            self._ended = True
            self._on_cancel(self)
            self._stopwatch.end(outcome)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
