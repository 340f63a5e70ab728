"""The discrete-event simulation: requests arrive, replicas compute, the clock jumps."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from sarathi.bench.results import ReplicaUse
from sarathi.bench.workload.workload import Plan
from sarathi.engine.messages import TokenOutput
from sarathi.scheduler import AdmissionError, Batch, Request, Scheduler, StopCriteria
from sarathi.simulator.routing import ROUTERS
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_replica import CompletedBatch, SimulatedReplica
from sarathi.telemetry import RequestRecord, StreamingSummary, Summary, Targets
from sarathi.telemetry.recorder import IterationRecord

_PROGRESS_EVERY = 256  # requests that ended
_MAX_PROMPT = 2**32  # distance of token ids, so that conversations have none in common

OnProgress = Callable[[int, float], None]  # requests that have ended, seconds of the virtual clock
OnBatch = Callable[[int, Batch, float, float], None]  # replica, batch, when it began and ended
OnIteration = Callable[[IterationRecord], None]


@dataclass(frozen=True)
class SimulationOutcome:
    """Times are seconds of the virtual clock, which begins with the plan."""

    summary: Summary  # warm-up excluded
    records: list[RequestRecord]  # in the order in which they ended
    every: int  # the records hold one of so many requests
    replicas: list[ReplicaUse]


def simulate(
    setup: Setup,
    plan: Plan,
    seed: int = 0,
    targets: Targets | None = None,
    most_records: int = 4096,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
    on_iteration: OnIteration | None = None,
) -> SimulationOutcome:
    """Run a plan to its end.

    Args:
        seed: of the noise in the times of iterations, where the setup has any.
        targets: for goodput.
        most_records: that are kept, evenly from all requests.
        on_progress: called every few hundred requests.
        on_batch: called with every batch.
        on_iteration: called with every iteration of the first replica, as recorders of an engine
            are.
    """
    recording = _Recording(len(plan), plan.num_warm_up, targets, most_records)
    router = ROUTERS[setup.router](setup.num_replicas, setup.profile())
    shares = bool(plan.turns.any())
    replicas = [
        SimulatedReplica(setup, shares, seed * setup.num_replicas + index)
        for index in range(setup.num_replicas)
    ]
    events: list[tuple[float, int, int]] = []  # time, a number that breaks ties, replica
    numbers = count()

    arriving = _requests(plan, shares)
    request = next(arriving, None)
    reported = 0
    changed: set[int] = set()  # replicas
    while request is not None or events:
        if request is not None and (not events or request.arrival <= events[0][0]):
            now = request.arrival
            index = router.choose(request)
            recording.add(request)
            try:
                replicas[index].add(request, now)
            except AdmissionError as error:
                router.started(index, request)
                router.ended(index, request)
                recording.end(request, now, str(error))
            request = next(arriving, None)
        else:
            now, _, index = heapq.heappop(events)
            for completed in replicas[index].end(now):
                for sampled in completed.sampled:
                    number = recording.add_token(sampled.id, completed.ended)
                    if number == 1:
                        router.started(index, sampled)
                    if number == sampled.stop_criteria.max_tokens:
                        router.ended(index, sampled)
                        recording.end(sampled, completed.ended)
                if on_batch is not None:
                    on_batch(index, completed.batch, completed.began, completed.ended)
                if on_iteration is not None and index == 0:
                    on_iteration(_iteration(completed, replicas[index].scheduler))
        changed.add(index)
        # Requests that arrive at the same instant are in the same batch.
        if request is None or request.arrival > now:
            for index in changed:
                for time in replicas[index].begin(now):
                    heapq.heappush(events, (time, next(numbers), index))
            changed.clear()
        if on_progress is not None and recording.ended - reported >= _PROGRESS_EVERY:
            reported = recording.ended
            on_progress(reported, now)
    for replica in replicas:
        replica.scheduler.check()
    if recording.ended != len(plan):
        raise RuntimeError(f"{len(plan) - recording.ended} of {len(plan)} requests never ended")
    return SimulationOutcome(
        summary=recording.summary.result(plan.measured_seconds),
        records=recording.records,
        every=recording.every,
        replicas=[replica.use for replica in replicas],
    )


def _requests(plan: Plan, shares: bool) -> Iterator[Request]:
    """Return the requests of a plan.

    Args:
        shares: whether token ids matter, since prompts have common beginnings: what was said in a
            conversation so far is the beginning of the next prompt.
    """
    for index, planned in enumerate(plan):
        first_id = _MAX_PROMPT * planned.conversation if shares else 0
        prompt = range(first_id, first_id + planned.prompt_tokens)
        yield Request(index, prompt, StopCriteria(planned.output_tokens), planned.at)


class _Recording:
    """Makes records of requests, in memory that only grows with those that have not ended."""

    def __init__(
        self, num_requests: int, warm_up: int, targets: Targets | None, most_records: int
    ) -> None:
        """Begin with no requests.

        Args:
            num_requests: that will arrive, the warm-up included.
            warm_up: the first so many are in no figure.
            most_records: that are kept whole; of more requests, every second, third and so on.
        """
        self.records: list[RequestRecord] = []
        self.summary = StreamingSummary(targets)
        self.every = -(-max(1, num_requests - warm_up) // most_records)
        self.ended = 0
        self._warm_up = warm_up
        self._tokens: dict[int, list[float]] = {}  # times, by request id

    def add(self, request: Request) -> None:
        self._tokens[request.id] = []

    def add_token(self, request_id: int, now: float) -> int:
        """Record a token of a request; return how many there are by now."""
        times = self._tokens[request_id]
        times.append(now)
        return len(times)

    def end(self, request: Request, now: float, refusal: str | None = None) -> None:
        """Record that a request has got its last token, or why it was refused."""
        self.ended += 1
        tokens = self._tokens.pop(request.id)
        index = request.id - self._warm_up
        if index < 0:
            return
        record = RequestRecord(
            arrival=request.arrival,
            prompt_tokens=len(request.prompt_ids),
            output_tokens=request.stop_criteria.max_tokens,
            tokens=tokens,
            end=now,
            scheduling_delay=request.scheduling_delay,
            cached_tokens=request.num_cached,
            failure=None if refusal is None else "refused",
            detail=refusal,
        )
        self.summary.add(index, record)
        if index % self.every == 0:
            self.records.append(record)


def _iteration(completed: CompletedBatch, scheduler: Scheduler) -> IterationRecord:
    """Return what an engine would pass to its recorders."""
    batch, pool = completed.batch, scheduler.pool
    return IterationRecord(
        batch=batch,
        outputs=[TokenOutput(r.id, r.output_ids[-1], r.finish_reason()) for r in batch.sampling],
        begin=completed.began,
        end=completed.ended,
        parts=(("execute", completed.ended),),
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        free_blocks=pool.num_free,
        cached_blocks=pool.num_cached,
        total_blocks=pool.num_blocks,
    )
