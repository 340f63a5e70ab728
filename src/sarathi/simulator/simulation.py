"""Requests come, replicas compute, and the clock jumps from one event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from sarathi.bench.results import ReplicaUse
from sarathi.bench.workload.workload import Plan, PlannedRequest
from sarathi.scheduler import AdmissionError, Request, StopCriteria
from sarathi.simulator.request_recording import Record, Recording, ReplicaObserver, Watcher
from sarathi.simulator.routing import ROUTERS
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_replica import SimulatedReplica
from sarathi.telemetry import RequestRecord, Summary, Targets

_TELL_EVERY = 256  # requests that ended
_PLACE = 2**32  # token ids of one conversation, so that they are those of no other

Tell = Callable[[int, float], None]  # requests that have ended, seconds of the virtual clock


@dataclass(frozen=True)
class SimulationOutcome:
    """Times are seconds of the virtual clock, which begins with the plan."""

    summary: Summary  # warm-up excluded
    records: list[RequestRecord]  # in the order in which they ended
    every: int  # of so many requests, the records hold one
    replicas: list[ReplicaUse]


def simulate(
    setup: Setup,
    plan: Plan,
    *,
    seed: int = 0,
    targets: Targets | None = None,
    most_records: int = 4096,
    tell: Tell | None = None,
    watcher: Watcher | None = None,
    record: Record | None = None,
) -> SimulationOutcome:
    """Run a plan to its end.

    Args:
        seed: of the noise in the times of iterations, where the setup has any.
        targets: for goodput.
        most_records: that are kept, evenly from all requests.
        tell: is called now and then.
        watcher: is told of every batch.
        record: is told of every iteration of the first replica, as recorders of an engine are.
    """
    recording = Recording(len(plan), plan.num_warm_up, targets, most_records)
    router = ROUTERS[setup.router](setup.num_replicas, setup.rehearsed())
    shares = bool(plan.turns.any())
    replicas = [
        SimulatedReplica(
            setup.scheduler(prefix_caching=shares),
            setup.cost,
            ReplicaObserver(index, recording, router, watcher, None if index else record),
            learns=setup.learns,
            jitter=setup.jitter(seed * setup.num_replicas + index),
        )
        for index in range(setup.num_replicas)
    ]
    events: list[tuple[float, int, int]] = []  # time, a number that breaks ties, replica
    numbers = count()

    coming = _requests(plan, shares)
    request = next(coming, None)
    told = 0
    changed: set[int] = set()  # replicas
    while request is not None or events:
        if request is not None and (not events or request.arrival <= events[0][0]):
            now = request.arrival
            index = router.choose(request)
            recording.comes(request)
            try:
                replicas[index].add(request, now)
            except AdmissionError as error:
                router.started(index, request)
                router.ended(index, request)
                recording.refused(request, str(error))
            request = next(coming, None)
        else:
            now, _, index = heapq.heappop(events)
            replicas[index].end(now)
        changed.add(index)
        # Whoever comes at the same instant is in the same batch.
        if request is None or request.arrival > now:
            for index in changed:
                for time in replicas[index].begin(now):
                    heapq.heappush(events, (time, next(numbers), index))
            changed.clear()
        if tell is not None and recording.ended - told >= _TELL_EVERY:
            told = recording.ended
            tell(told, now)
    for replica in replicas:
        replica.scheduler.check()
    if recording.ended != len(plan):
        raise RuntimeError(f"{len(plan) - recording.ended} of {len(plan)} requests never ended")
    return SimulationOutcome(
        summary=recording.summary.result(plan.measured_seconds),
        records=recording.records,
        every=recording.every,
        replicas=[
            replica.usage.result(replica.scheduler.running.num_preemptions) for replica in replicas
        ],
    )


def _requests(plan: Plan, shares: bool) -> Iterator[Request]:
    """
    Args:
        shares: whether token ids matter, since prompts begin alike.
    """
    for index, planned in enumerate(plan):
        yield _request(index, planned, _PLACE * planned.conversation if shares else 0)


def _request(index: int, planned: PlannedRequest, first_id: int) -> Request:
    # All that was said before in a conversation is the beginning of the prompt.
    prompt = range(first_id, first_id + planned.prompt_tokens)
    return Request(index, prompt, StopCriteria(planned.output_tokens), planned.at)
