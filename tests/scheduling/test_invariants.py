"""What holds in every schedule, whatever arrives, is cancelled or runs out of memory."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.scheduling import (
    AdmissionError,
    Batch,
    BlockPool,
    FixedBudget,
    Limits,
    Request,
    Scheduler,
)

STOP = 0


@dataclass(frozen=True)
class Event:
    """What happens before an iteration."""

    prompts: list[tuple[int, int, int]]  # prompt tokens, max_tokens, tokens until it stops itself
    cancel: int | None  # request id


events = st.lists(
    st.builds(
        Event,
        prompts=st.lists(
            st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(1, 40)), max_size=3
        ),
        cancel=st.none() | st.integers(0, 20),
    ),
    max_size=30,
)


@dataclass(frozen=True)
class Machine:
    budget: int
    blocks: int
    block_size: int
    max_batch_size: int

    def scheduler(self) -> Scheduler:
        return Scheduler(
            BlockPool(self.blocks, self.block_size),
            FixedBudget(self.budget),
            max_batch_size=self.max_batch_size,
            max_model_len=80,
        )


machines = st.builds(
    Machine,
    budget=st.integers(1, 40),
    blocks=st.integers(3, 40),
    block_size=st.sampled_from([1, 4, 16]),
    max_batch_size=st.integers(1, 8),
)


@given(machines, events)
@settings(max_examples=400, deadline=None)
def test_every_schedule_keeps_the_promises(machine: Machine, events: list[Event]) -> None:
    sched = machine.scheduler()
    requests: dict[int, Request] = {}
    stops_after: dict[int, int] = {}
    cancelled: set[int] = set()
    ended: set[int] = set()
    iterations = 0
    pending = list(reversed(events))
    while pending or sched.has_work:
        event = pending.pop() if pending else Event([], None)
        for prompt, max_tokens, stop in event.prompts:
            name = len(requests)
            new = Request(name, range(prompt), Limits(max_tokens, 0, frozenset({STOP})), 0.0)
            try:
                sched.add(new)
            except AdmissionError:
                continue
            requests[name] = new
            stops_after[name] = stop
        if event.cancel is not None and sched.cancel(event.cancel):
            cancelled.add(event.cancel)
        if not sched.has_work:
            continue

        before = {r.id: (r.num_computed, r.is_decode) for r in sched.running}
        batch = sched.schedule()
        assert batch is not None, "there is work, and nothing is in flight"
        check_batch(machine, sched, batch, before)
        tokens = [STOP if len(r.output_ids) + 1 >= stops_after[r.id] else 1 for r in batch.sampling]
        for progressed in sched.complete(batch, tokens):
            if progressed.finish_reason():
                ended.add(progressed.id)
        sched.check()
        iterations += 1
        assert iterations < 20_000, "some request never ends"

    assert ended | cancelled == set(requests), "every request ends"
    for name in ended:
        outputs = requests[name].output_ids
        limit = requests[name].limits.max_tokens
        assert len(outputs) == min(limit, stops_after[name]), "preemption lengthened an output"
    assert sched.pool.num_free == machine.blocks
    assert sched.pool.num_reserved == 0


def check_batch(
    machine: Machine, sched: Scheduler, batch: Batch, before: dict[int, tuple[int, bool]]
) -> None:
    decodes = batch.slices[: batch.num_decodes]
    prefills = batch.slices[batch.num_decodes :]
    preempted = {r.id for r in batch.preempted}

    # No decode waits, unless it has just lost its blocks.
    due = {name for name, (_, is_decode) in before.items() if is_decode}
    assert {part.request.id for part in decodes} == due - preempted
    assert all(part.length == 1 and part.samples for part in decodes)

    # Prompts get what the decodes leave of the budget, and all of it while any can run.
    left = max(0, machine.budget - len(decodes))
    granted = sum(part.length for part in prefills)
    assert granted <= left
    assert all(part.length >= 1 for part in batch.slices)
    if granted < left:
        assert all(part.samples for part in prefills), "a prompt was cut with budget to spare"
        started = [r for r in sched.running if not r.in_flight]
        assert not started, "a started prompt waits with budget to spare"

    # First come, first served: nobody overtakes a started prompt, and no later arrival runs
    # while an earlier one waits, except where the earlier one has just been preempted.
    ran = [part.request.id for part in prefills]
    assert ran == sorted(ran)
    if sched.waiting and not preempted:
        assert max(r.id for r in sched.running) < min(r.id for r in sched.waiting)

    # Progress is contiguous and memory covers it.
    for request, start, length, samples in batch.slices:
        assert start == request.num_computed
        assert start + length <= request.num_tokens
        assert samples == (start + length == request.num_tokens)
        assert len(request.blocks) * machine.block_size >= start + length
    assert len(sched.running) <= machine.max_batch_size
    sched.pool.check([*sched.running, *sched.waiting])

    # The earliest arrival is never preempted, so that it and then everybody else ends.
    if batch.preempted:
        assert min(r.id for r in sched.running) < min(preempted)
