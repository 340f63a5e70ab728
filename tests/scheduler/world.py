"""A machine without a model: it keeps what is written to KV blocks, and tokens follow from that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from hypothesis import strategies as st

from sarathi.scheduler import (
    AdmissionError,
    Batch,
    Request,
    Scheduler,
    SchedulingParams,
    StopCriteria,
)

VOCABULARY = 50
PLAIN = SchedulingParams()


def next_token(tokens: Sequence[int]) -> int:
    """What the model says after `tokens`."""
    return blake2b(bytes(tokens), digest_size=1).digest()[0] % VOCABULARY


def continuation(prompt: Sequence[int], limits: StopCriteria) -> list[int]:
    """The output of a request that is alone in the world."""
    output: list[int] = []
    while len(output) < limits.max_tokens:
        output.append(next_token([*prompt, *output]))
        if output[-1] in limits.stop_ids and len(output) > limits.min_tokens:
            break
    return output


class Machine:
    """Runs batches on a KV cache that remembers token and position of every entry.

    Raises `AssertionError` where a slice writes to a block that somebody else uses, or where what
    a request reads is not what its tokens say.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._cache: dict[tuple[int, int], int] = {}  # (block, offset) to token

    def run(self, batch: Batch, users: Callable[[int], int]) -> list[int]:
        """Tokens for `batch.sampling`. `users` tells how many requests use a block."""
        sampled = []
        for request, start, length, samples, _ in batch.slices:
            tokens = request.tokens(0, start + length)
            if len(tokens) < start + length:
                # It looked ahead of a token that was dropped: what it computes is of no use.
                assert request.cancelled
                sampled += [0] * samples
                continue
            for position in range(start, start + length):
                block, offset = self._place(request, position)
                assert users(block) == 1, "a shared block is written to"
                self._cache[block, offset] = tokens[position]
            read = [self._cache.get(self._place(request, p)) for p in range(start + length)]
            assert read == list(tokens), "the cache holds something else"
            if samples:
                sampled.append(next_token(tokens))
        return sampled

    def _place(self, request: Request, position: int) -> tuple[int, int]:
        return request.blocks[position // self._block_size], position % self._block_size


@dataclass(frozen=True)
class Arrival:
    """A request, and the iterations in which it comes and is cancelled."""

    at: int
    family: int  # prompts of one family begin alike
    common: int  # tokens that are the family's
    own: int  # tokens that are not
    output: int
    cancel: int | None = None
    terms: SchedulingParams = PLAIN
    stops: bool = False  # whether some tokens end it

    def request(self, name: int) -> Request:
        prompt = [
            *((7 * self.family + p) % VOCABULARY for p in range(self.common)),
            *((11 * name + p) % VOCABULARY for p in range(self.own)),
        ]
        stop_ids = frozenset(range(5)) if self.stops else frozenset()
        return Request(
            name, prompt, StopCriteria(self.output, 0, stop_ids), float(self.at), self.terms
        )


targets = st.none() | st.floats(0.001, 10.0)
all_terms = st.builds(
    SchedulingParams,
    priority=st.integers(-2, 2),
    tenant=st.sampled_from(["a", "b", "c"]),
    ttft_target=targets,
    tbt_target=targets,
)
workloads = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 20),
        family=st.integers(0, 2),
        common=st.integers(0, 40),
        own=st.integers(1, 40),
        output=st.integers(1, 25),
        cancel=st.none() | st.integers(0, 40),
        terms=all_terms,
        stops=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def play(
    scheduler: Scheduler,
    workload: Sequence[Arrival],
    *,
    seconds: Callable[[Batch], float] = lambda batch: 1.0,
    ended: dict[int, Request] | None = None,
    stages: int = 1,
) -> Iterator[tuple[Batch, float]]:
    """Run a workload to its end; yields each batch and its time, before it is computed.

    Checks at every step that blocks are conserved and that the cache is used rightly, and at the
    end that nothing is lost and all outputs are those of requests that are alone in the world.

    Args:
        seconds: how long a batch takes.
        ended: gets the requests that ended by themselves.
        stages: of a pipeline: so many batches are under way before the first is completed.
    """
    under_way: deque[Batch] = deque()
    machine = Machine(scheduler.pool.block_size)
    requests: dict[int, Request] = {}
    cancelled: set[int] = set()
    finished: dict[int, Request] = {} if ended is None else ended
    last = max(arrival.at for arrival in workload)
    iteration = 0
    now = 0.0
    while scheduler.has_work or iteration <= last:
        for name, arrival in enumerate(workload):
            if arrival.at == iteration:
                request = arrival.request(name)
                request.arrival = now
                try:
                    scheduler.add(request)
                except AdmissionError:
                    continue
                requests[name] = request
            if arrival.cancel == iteration and scheduler.cancel(name):
                cancelled.add(name)
        iteration += 1
        assert iteration < 20_000, "some request never ends"
        batch = scheduler.schedule(now)
        if batch is not None:
            yield batch, now
            under_way.append(batch)
            if len(under_way) < stages:
                continue
        elif not under_way:
            assert not scheduler.has_work, "there is work, and nothing is in flight"
            continue
        batch = under_way.popleft()
        tokens = machine.run(batch, scheduler.pool.num_users)
        now += seconds(batch)
        for request in scheduler.complete(batch, tokens, now):
            if request.finish_reason():
                finished[request.id] = request
        scheduler.check()
    assert finished.keys() | cancelled == requests.keys(), "every request ends"
    for request in finished.values():
        assert request.output_ids == continuation(request.prompt_ids, request.stop_criteria)
    assert scheduler.pool.num_available == scheduler.pool.num_blocks
    assert len(scheduler.running) + len(scheduler.waiting) == 0
