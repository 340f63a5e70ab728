"""A machine without a model: it stores what is written to KV blocks; tokens follow from that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    """The token that the model samples after `tokens`."""
    return blake2b(bytes(tokens), digest_size=1).digest()[0] % VOCABULARY


def continuation(prompt: Sequence[int], criteria: StopCriteria) -> list[int]:
    """The output of a request that runs alone."""
    output: list[int] = []
    while len(output) < criteria.max_tokens:
        output.append(next_token([*prompt, *output]))
        if output[-1] in criteria.stop_ids and len(output) > criteria.min_tokens:
            break
    return output


class Machine:
    """Runs batches on a KV cache that stores the token of every entry.

    Raises `AssertionError` if a slice writes to a block that another request uses, or if a request
    reads entries that are not those of its tokens.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._cache: dict[tuple[int, int], int] = {}  # (block, offset) to token

    def run(
        self, batch: Batch, users: Callable[[int], int], drafts: Mapping[int, Sequence[int]]
    ) -> tuple[list[int], list[int]]:
        """Compute a batch and verify its drafts.

        Args:
            users: returns how many requests use a block.
            drafts: proposed tokens by request id; a slice computes the first so many.

        Returns:
            The tokens for `batch.sampling`, and how many there are of each.
        """
        sampled: list[int] = []
        counts: list[int] = []
        for index, (request, start, length, samples) in enumerate(batch.slices):
            num_drafts = batch.num_drafts[index] if index < len(batch.num_drafts) else 0
            tokens = list(request.tokens(0, start + length))
            tokens += drafts.get(request.id, ())[:num_drafts]
            if len(tokens) < start + length:
                # It looked ahead of a token that was dropped: its result is not used.
                assert request.cancelled
                sampled += [0] * samples
                counts += [1] * samples
                continue
            for position in range(start, start + length):
                block, offset = self._entry(request, position)
                assert users(block) == 1, "a shared block is written to"
                self._cache[block, offset] = tokens[position]
            read = [self._cache.get(self._entry(request, p)) for p in range(start + length)]
            assert read == list(tokens), "the cache holds something else"
            if samples:
                accepted = [next_token(tokens[: start + length - num_drafts])]
                while len(accepted) <= num_drafts:
                    known = start + length - num_drafts + len(accepted)
                    if accepted[-1] != tokens[known - 1]:
                        break
                    accepted.append(next_token(tokens[:known]))
                sampled += accepted
                counts.append(len(accepted))
        return sampled, counts

    def _entry(self, request: Request, position: int) -> tuple[int, int]:
        return request.blocks[position // self._block_size], position % self._block_size


@dataclass(frozen=True)
class Arrival:
    """A request, and the iterations in which it comes and is cancelled."""

    at: int
    family: int  # prompts of one family share a prefix
    common: int  # tokens that are the family's
    own: int  # tokens that are not
    output: int
    cancel: int | None = None
    params: SchedulingParams = PLAIN
    stops: bool = False  # whether some tokens end it
    scored: bool = False  # whether the logits of its whole prompt are wanted

    def request(self, name: int) -> Request:
        prompt = [
            *((7 * self.family + p) % VOCABULARY for p in range(self.common)),
            *((11 * name + p) % VOCABULARY for p in range(self.own)),
        ]
        stop_ids = frozenset(range(5)) if self.stops else frozenset()
        request = Request(
            name, prompt, StopCriteria(self.output, 0, stop_ids), float(self.at), self.params
        )
        if self.scored:
            request.wanted = range(len(prompt) - 1)
        return request


targets = st.none() | st.floats(0.001, 10.0)
all_params = st.builds(
    SchedulingParams,
    priority=st.integers(-2, 2),
    tenant=st.sampled_from(["a", "b", "c"]),
    ttft_target=targets,
    tbt_target=targets,
)
arrivals = partial(
    st.builds,
    Arrival,
    at=st.integers(0, 20),
    family=st.integers(0, 2),
    common=st.integers(0, 40),
    own=st.integers(1, 40),
    output=st.integers(1, 25),
    cancel=st.none() | st.integers(0, 40),
    params=all_params,
    stops=st.booleans(),
)
workloads = st.lists(arrivals(), min_size=1, max_size=12)
scored_workloads = st.lists(
    arrivals(output=st.integers(0, 25), scored=st.booleans()), min_size=1, max_size=12
)


def play(
    scheduler: Scheduler,
    workload: Sequence[Arrival],
    *,
    seconds: Callable[[Batch], float] = lambda batch: 1.0,
    ended: dict[int, Request] | None = None,
    stages: int = 1,
    drafter: Callable[[Request], Sequence[int]] | None = None,
) -> Iterator[tuple[Batch, float]]:
    """Run a workload to its end; yields each batch and its time, before it is computed.

    Checks at every step that blocks are conserved and that the cache is used rightly, and at the
    end that nothing is lost and all outputs are those of requests that run alone.

    Args:
        seconds: how long a batch takes.
        ended: gets the requests that ended by themselves.
        stages: of a pipeline: so many batches are in flight before the first is completed.
        drafter: proposes tokens of requests that decode.
    """
    in_flight: deque[tuple[Batch, dict[int, Sequence[int]]]] = deque()
    machine = Machine(scheduler.pool.block_size)
    requests: dict[int, Request] = {}
    cancelled: set[int] = set()
    finished: dict[int, Request] = {} if ended is None else ended
    scored: dict[int, list[int]] = {}  # positions whose logits have come
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
            drafts: dict[int, Sequence[int]] = {}
            if drafter is not None:
                decodes = [part.request for part in batch.slices[: batch.num_decodes]]
                drafts = {request.id: drafter(request) for request in decodes}
                batch = scheduler.add_drafts(batch, [len(drafts[r.id]) for r in decodes])
            yield batch, now
            in_flight.append((batch, drafts))
            if len(in_flight) < stages:
                continue
        elif not in_flight:
            assert not scheduler.has_work, "there is work, and nothing is in flight"
            continue
        batch, drafts = in_flight.popleft()
        tokens, counts = machine.run(batch, scheduler.pool.num_users, drafts)
        now += seconds(batch)
        for index, positions in batch.wanted():
            scored.setdefault(batch.slices[index].request.id, []).extend(positions)
        for request in scheduler.complete(batch, tokens, now, counts if drafter else None):
            if request.finish_reason():
                finished[request.id] = request
        scheduler.check()
    assert finished.keys() | cancelled == requests.keys(), "every request ends"
    for request in finished.values():
        assert request.output_ids == continuation(request.prompt_ids, request.stop_criteria)
        last_scored = len(request.prompt_ids) - 1 if workload[request.id].scored else 0
        assert scored.get(request.id, []) == list(range(last_scored)), "each row once and in order"
    assert scheduler.pool.num_available == scheduler.pool.num_blocks
    assert len(scheduler.running) + len(scheduler.waiting) == 0
