"""Times of tokens, until a request ends and becomes a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sarathi.engine.messages import TokenOutput
from sarathi.scheduler import Batch, Request, Scheduler
from sarathi.simulator.routing import Router
from sarathi.telemetry import RequestRecord, StreamingSummary, Targets
from sarathi.telemetry.recorder import IterationRecord

Watcher = Callable[[int, Batch, float, float], None]  # replica, batch, when it began and ended
Record = Callable[[IterationRecord], None]


class Recording:
    """What becomes of all requests, in memory that only grows with those that have not ended."""

    def __init__(
        self, num_requests: int, warm_up: int, targets: Targets | None, most_records: int
    ) -> None:
        """
        Args:
            num_requests: that will come, the warm-up included.
            warm_up: the first so many are in no figure.
            most_records: that are kept whole; of more requests, every second, third and so on.
        """
        self.records: list[RequestRecord] = []
        self.summary = StreamingSummary(targets)
        self.every = -(-max(1, num_requests - warm_up) // most_records)
        self.ended = 0
        self._warm_up = warm_up
        self._tokens: dict[int, list[float]] = {}  # times, by request id

    def comes(self, request: Request) -> None:
        self._tokens[request.id] = []

    def progressed(self, requests: Sequence[Request], now: float) -> list[Request]:
        """Each of them has got a token. Returns those for which it was the first or the last."""
        tokens = self._tokens
        turned = []
        for request in requests:
            times = tokens[request.id]
            times.append(now)
            number = len(times)
            if number == 1 or number == request.stop_criteria.max_tokens:
                turned.append(request)
        return turned

    def ends(self, request: Request, now: float) -> None:
        self._keep(
            request.id,
            RequestRecord(
                arrival=request.arrival,
                prompt_tokens=len(request.prompt_ids),
                output_tokens=request.stop_criteria.max_tokens,
                tokens=self._tokens.pop(request.id),
                end=now,
                scheduling_delay=request.scheduling_delay,
                cached_tokens=request.num_cached,
            ),
        )

    def refused(self, request: Request, reason: str) -> None:
        del self._tokens[request.id]
        self._keep(
            request.id,
            RequestRecord(
                arrival=request.arrival,
                prompt_tokens=len(request.prompt_ids),
                output_tokens=request.stop_criteria.max_tokens,
                end=request.arrival,
                failure="refused",
                detail=reason,
            ),
        )

    def _keep(self, name: int, record: RequestRecord) -> None:
        self.ended += 1
        index = name - self._warm_up
        if index < 0:
            return
        self.summary.add(index, record)
        if index % self.every == 0:
            self.records.append(record)


class ReplicaObserver:
    """Tells a recording, a router and whoever looks on what one replica did."""

    def __init__(
        self,
        replica: int,
        recording: Recording,
        router: Router,
        watcher: Watcher | None,
        record: Record | None,
    ) -> None:
        self._replica = replica
        self._recording = recording
        self._router = router
        self._watcher = watcher
        self._record = record

    def progressed(self, requests: Sequence[Request], now: float) -> None:
        for request in self._recording.progressed(requests, now):
            number = len(request.output_ids)
            if number == 1:
                self._router.started(self._replica, request)
            if number == request.stop_criteria.max_tokens:
                self._router.ended(self._replica, request)
                self._recording.ends(request, now)

    def computed(self, batch: Batch, began: float, ended: float, scheduler: Scheduler) -> None:
        if self._watcher is not None:
            self._watcher(self._replica, batch, began, ended)
        if self._record is not None:
            self._record(_iteration(batch, began, ended, scheduler))


def _iteration(batch: Batch, began: float, ended: float, scheduler: Scheduler) -> IterationRecord:
    """As an engine would tell its recorders."""
    return IterationRecord(
        batch=batch,
        outputs=[TokenOutput(r.id, r.output_ids[-1], r.finish_reason()) for r in batch.sampling],
        begin=began,
        end=ended,
        parts=(("execute", ended),),
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        free_blocks=scheduler.pool.num_free,
        cached_blocks=scheduler.pool.num_cached,
        total_blocks=scheduler.pool.num_blocks,
    )
