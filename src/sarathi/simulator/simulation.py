"""The discrete-event simulation: requests arrive, replicas compute, the clock jumps.

A replica is the real scheduler, and a pipeline whose stages are queues.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from typing import NamedTuple

from sarathi.bench.results import ReplicaUse
from sarathi.bench.workload.workload import Plan
from sarathi.engine.messages import TokenOutput
from sarathi.fleet.router import Assignment, LeastWork
from sarathi.scheduler import AdmissionError, Batch, LatencyModel, Request, Scheduler, StopCriteria
from sarathi.simulator.cost_model import BatchShape, stage_seconds
from sarathi.simulator.setup import Setup
from sarathi.telemetry import RequestRecord, StreamingSummary, Summary, Targets
from sarathi.telemetry.recorder import IterationRecord


class RoundRobin:
    """One replica after the other, and the interface of the other routers.

    A router sees of a request what a real one would: its prompt, not how long its answer will be.
    """

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._turns = cycle(range(replicas))

    def choose(self, request: Request) -> int:
        """Return the index of a replica."""
        return next(self._turns)

    def started(self, replica: int, request: Request) -> None:
        """Record that its first token has been sampled."""

    def ended(self, replica: int, request: Request) -> None:
        """Record that it has ended."""


class LeastOutstanding(RoundRobin):
    """The replica with the fewest requests that have not ended."""

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._open = [0] * replicas

    def choose(self, request: Request) -> int:
        chosen = self._open.index(min(self._open))
        self._open[chosen] += 1
        return chosen

    def ended(self, replica: int, request: Request) -> None:
        self._open[replica] -= 1


class LeastPredicted(RoundRobin):
    """The replica that would finish all its requests first: the fleet's own router, `LeastWork`.

    Prompts have no text here, so prefixes do not attract requests to a replica.
    """

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._router = LeastWork()
        self._assigned: dict[int, Assignment] = {}  # by request id
        for replica in range(replicas):
            self._router.add(replica, model)

    def choose(self, request: Request) -> int:
        assignment = self._assigned[request.id] = self._router.assign(request.num_tokens)
        return assignment.engine

    def started(self, replica: int, request: Request) -> None:
        self._router.started(self._assigned[request.id])

    def ended(self, replica: int, request: Request) -> None:
        self._router.ended(self._assigned.pop(request.id), len(request.output_ids))


ROUTERS: dict[str, type[RoundRobin]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "least_work": LeastPredicted,
}


class BatchRun(NamedTuple):
    """A batch in the pipeline. Times are seconds of the virtual clock."""

    batch: Batch
    began: float
    ended: float  # when it leaves the last stage
    in_stage: float  # see `stage_seconds`


class SimulatedReplica:
    """A scheduler, and the stages that its micro-batches pass one after the other.

    A micro-batch begins as soon as the first stage is free and fewer are in flight than there are
    stages. The engine prepares it, then each stage computes it after the micro-batch before. When
    stages are idle follows from that.
    """

    def __init__(self, setup: Setup, prefix_caching: bool, seed: int) -> None:
        """Make the scheduler of a setup; the seed is that of the noise in times of iterations."""
        self.scheduler = setup.scheduler(prefix_caching)
        self._cost = setup.cost
        # Where no decision depends on it, observing the times changes nothing.
        self._model = self.scheduler.latency_model if setup.learns else None
        self._jitter = None if setup.noise is None else setup.noise.jitter(seed)
        self._free = [0.0] * setup.cost.num_stages  # when each stage is free
        self._in_flight: deque[BatchRun] = deque()
        # What the replica does with its time and memory.
        self._busy = [0.0] * setup.cost.num_stages
        self._overhead = self._active = self._seen = self._block_seconds = 0.0
        self._active_since: float | None = None
        self._iterations = self._tokens = self._decodes = self._most_blocks = 0

    def add(self, request: Request, now: float) -> None:
        """Add a request; raise AdmissionError where it can never run."""
        self.scheduler.add(request)
        if self._active_since is None:
            self._active_since = self._seen = now

    def begin(self, now: float) -> list[float]:
        """Start as many micro-batches as possible, and return the times to look again."""
        times: list[float] = []
        num_stages = len(self._free)
        while len(self._in_flight) < num_stages and self._free[0] <= now:
            batch = self.scheduler.schedule(now)
            if batch is None:
                break
            if not batch.slices:  # a preemption, and nothing more
                self.scheduler.complete(batch, (), now)
                continue
            times.append(self._compute(batch, now))
            if num_stages > 1:
                times.append(self._free[0])
        return times

    def end(self, now: float) -> Iterator[tuple[BatchRun, Sequence[Request]]]:
        """Complete what has left the last stage by now; yield each with the requests it sampled."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        while self._in_flight and self._in_flight[0].ended <= now:
            run = self._in_flight.popleft()
            batch, began, ends, in_stage = run
            blocks = pool.num_blocks - pool.num_free
            self._block_seconds += blocks * (ends - self._seen)
            self._seen = ends
            self._most_blocks = max(self._most_blocks, blocks)
            sampled = scheduler.complete(batch, (0,) * batch.work.samples, ends)
            yield run, sampled
            if self._model is not None:
                # With one stage, an iteration is all that passes between two tokens.
                spent = ends - began if len(self._free) == 1 else in_stage
                self._model.observe(batch.work, spent)
            if not scheduler.has_work and self._active_since is not None:
                self._active += ends - self._active_since
                self._active_since = None

    def _compute(self, batch: Batch, now: float) -> float:
        """Return when the batch leaves the last stage."""
        shape = BatchShape.of(batch)
        cost, free, busy = self._cost, self._free, self._busy
        overhead, seconds = cost.overhead(shape), cost.stages(shape)
        if self._jitter is not None:
            factor = self._jitter(shape)
            overhead, seconds = overhead * factor, [factor * part for part in seconds]
        hop = cost.hop(shape) if len(free) > 1 else 0.0
        at = now + overhead
        for stage, spent in enumerate(seconds):
            if free[stage] > at:
                at = free[stage]
            free[stage] = at = at + spent
            busy[stage] += spent
            at += hop
        self._overhead += overhead
        self._iterations += 1
        self._tokens += shape.tokens
        self._decodes += shape.num_decodes
        in_stage = stage_seconds(overhead, seconds, hop)
        self._in_flight.append(BatchRun(batch, now, free[-1], in_stage))
        return free[-1]

    @property
    def use(self) -> ReplicaUse:
        """What the replica has done with its time and memory, once it is idle."""
        active, blocks = self._active, self.scheduler.pool.num_blocks
        return ReplicaUse(
            iterations=self._iterations,
            tokens=self._tokens,
            decodes=self._decodes,
            preemptions=self.scheduler.running.num_preemptions,
            active=active,
            busy=self._busy,
            bubbles=[max(0.0, active - busy) for busy in self._busy],
            overhead=self._overhead,
            kv_mean=self._block_seconds / (active * blocks) if active else 0.0,
            kv_max=self._most_blocks / blocks,
        )


_PROGRESS_EVERY = 256  # requests that ended

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
        on_iteration: called with iterations of the first replica, as an engine's recorders are.
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
            try:
                replicas[index].add(request, now)
            except AdmissionError as error:
                router.started(index, request)
                router.ended(index, request)
                recording.end(request, now, str(error))
            request = next(arriving, None)
        else:
            now, _, index = heapq.heappop(events)
            for run, with_token in replicas[index].end(now):
                for sampled in with_token:
                    number = recording.add_token(sampled.id, run.ended)
                    if number == 1:
                        router.started(index, sampled)
                    if number == sampled.stop_criteria.max_tokens:
                        router.ended(index, sampled)
                        recording.end(sampled, run.ended)
                if on_batch is not None:
                    on_batch(index, run.batch, run.began, run.ended)
                if on_iteration is not None and index == 0:
                    on_iteration(_iteration(run, replicas[index].scheduler))
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
    """Yield the requests of a plan.

    Token ids matter where prompts share beginnings: what was said in a conversation so far is the
    beginning of the next prompt.
    """
    for index, planned in enumerate(plan):
        first_id = 2**32 * planned.conversation if shares else 0  # they have no ids in common
        prompt = range(first_id, first_id + planned.prompt_tokens)
        yield Request(index, prompt, StopCriteria(planned.output_tokens), planned.at)


class _Recording:
    """Makes records of requests, in memory that only grows with those that have not ended."""

    def __init__(
        self, num_requests: int, warm_up: int, targets: Targets | None, most_records: int
    ) -> None:
        """Begin with no requests, of which the first `warm_up` are in no figure.

        Of more than `most_records`, every second, third and so on is kept whole.
        """
        self.records: list[RequestRecord] = []
        self.summary = StreamingSummary(targets)
        self.every = -(-max(1, num_requests - warm_up) // most_records)
        self.ended = 0
        self._warm_up = warm_up
        self._tokens: defaultdict[int, list[float]] = defaultdict(list)  # times, by request id

    def add_token(self, request_id: int, now: float) -> int:
        """Record a token of a request; return how many there are by now."""
        times = self._tokens[request_id]
        times.append(now)
        return len(times)

    def end(self, request: Request, now: float, refusal: str | None = None) -> None:
        """Record that a request has got its last token, or why it was refused."""
        self.ended += 1
        tokens = self._tokens.pop(request.id, [])
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


def _iteration(run: BatchRun, scheduler: Scheduler) -> IterationRecord:
    """Return what an engine would pass to its recorders."""
    batch, pool = run.batch, scheduler.pool
    return IterationRecord(
        batch=batch,
        outputs=[TokenOutput(r.id, r.output_ids[-1], r.finish_reason()) for r in batch.sampling],
        begin=run.began,
        end=run.ended,
        parts=(("execute", run.ended),),
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        free_blocks=pool.num_free,
        cached_blocks=pool.num_cached,
        total_blocks=pool.num_blocks,
    )
