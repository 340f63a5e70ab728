"""Prefill: which prompts are computed in an iteration, and how many tokens of each."""

from __future__ import annotations

import math
from typing import NamedTuple

from sarathi.scheduler.budget.token_budget import Allowance
from sarathi.scheduler.kv.block_pool import RequestMemory
from sarathi.scheduler.policy import Policy
from sarathi.scheduler.queue.waiting_queue import RELEGATED, Order, WaitingQueue
from sarathi.scheduler.request import Rank, Request, by_rank
from sarathi.scheduler.running import RunningRequests

# Rows of logits of an iteration besides those to sample from: 4 bytes each for every token of the
# vocabulary, and decodes beside them wait for their log probabilities.
MAX_SCORED_ROWS = 128

_MAX_RELEGATIONS = 32  # in an iteration: thousands may miss their deadline at once


class PrefillAllocator:
    """Admits prompts and allocates tokens of each iteration to them.

    `in_order_share` of an iteration's allowance goes to prompts in order, the rest to the shortest
    first. So with P tokens an iteration, a prompt of r tokens has its first token after at most

    - (W + r) / (P * share) iterations, W being the tokens of those before it in order, and
    - (V + r) / (P * (1 - share)) iterations, V being the tokens of those shorter than it,

    whichever comes first: neither a huge prompt before it nor a stream of small ones behind it
    holds it up. If either share is less than a token, the order is strict.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        running: RunningRequests,
        memory: RequestMemory,
        order: Order,
        policy: Policy,
        *,
        max_batch_size: int,
        in_order_share: float,
        chunk: int | None,
    ) -> None:
        """Make the allocator of a scheduler; `chunk` is its `deterministic_chunk`."""
        if not 0 < in_order_share <= 1:
            raise ValueError(f"in-order share is {in_order_share}, expected above 0 up to 1")
        self.num_relegations = 0
        self.prompt_tokens = 0  # of admitted requests, once each
        self.cached_tokens = 0  # of those, found in the prefix cache
        self._waiting = waiting
        self._running = running
        self._memory = memory
        self._order = order
        self._policy = policy
        self._max_batch_size = max_batch_size
        self._in_order_share = in_order_share if policy.chunked and chunk is None else 1.0
        self._chunk = chunk

    def allocate(self, allowance: Allowance, now: float, *, admit: bool) -> dict[Request, int]:
        """Return the tokens of each prompt in this iteration; with `admit`, of waiting ones, too.

        These are admitted.
        """
        allocated: dict[Request, int] = {}
        selector = PrefillSelector(
            self._waiting, self._running, in_order_share=self._in_order_share, admit=admit
        )
        relegations = 0
        scorable = MAX_SCORED_ROWS
        while candidate := selector.next(allowance.remaining):
            request, max_cost, overtaken = candidate
            is_waiting = request in self._waiting
            cached = self._memory.cached_prefix(request) if is_waiting else []
            start = request.num_scheduled + allocated.get(request, 0)
            start += len(cached) * self._memory.pool.block_size
            if relegations < _MAX_RELEGATIONS and self._is_late(request, start, now):
                relegations += 1
                self._relegate(request)
                selector.sort_started(request)
                continue
            if is_waiting and not self._can_admit(request, cached, overtaken):
                selector.admit = False
                continue
            most = self._most_tokens(request, start, scorable)
            if not most:
                if is_waiting:
                    selector.admit = False
                else:
                    selector.record(request, 0.0, is_cut=False)
                continue
            before = allowance.remaining
            length = self._take(allowance, request, start, most, max_cost, first=not allocated)
            if not length and max_cost < math.inf:
                selector.stop_in_order(request)
                continue
            if not length:
                break
            if is_waiting:
                self._admit(request, cached)
            allocated[request] = allocated.get(request, 0) + length
            if request.wanted and not request.pools:
                scorable -= len(request.wanted_among(start, length))
            # With fixed chunks, a second one in the same iteration would merge with the first.
            is_cut = self._chunk is None and length < most
            selector.record(request, before - allowance.remaining, is_cut=is_cut)
            self._waiting.charge(request, length)
        self.num_relegations += relegations
        return allocated

    def preemption_candidates(self, request: Request, now: float) -> list[Request]:
        """Return the requests to preempt so that a waiting one can be admitted, none if that fails.

        Nothing is preempted for a request that `allocate` would relegate, nor a request again
        before it has progressed further than the first time.
        """
        excess = len(self._running) + 1 - self._max_batch_size
        cached = self._memory.cached_prefix(request)
        headroom = self._headroom(len(self._running))
        blocks = self._memory.missing_blocks(request, cached, headroom)
        if excess <= 0 and blocks <= 0:
            return []
        if self._is_late(request, len(cached) * self._memory.pool.block_size, now):
            return []
        candidates: list[Request] = []
        tenant = self._waiting.tenant_of(request)
        for candidate in sorted(self._running.idle(), key=by_rank, reverse=True):
            if (
                self._order.may_preempt(request, candidate)
                and self._waiting.tenant_of(candidate) == tenant
                and candidate.num_computed > candidate.computed_at_preemption
            ):
                candidates.append(candidate)
                blocks -= self._memory.num_blocks(candidate) + self._headroom(1)
                if len(candidates) >= excess and blocks <= 0:
                    return candidates
        return []

    def _is_late(self, request: Request, start: int, now: float) -> bool:
        """Return whether a prompt, computed up to `start`, is to be relegated."""
        if request.rank.priority_class == RELEGATED:
            return False
        return self._order.misses_deadline(request, start, now)

    def _relegate(self, request: Request) -> None:
        """Order a request after all those that are not relegated."""
        rank = request.rank._replace(priority_class=RELEGATED)
        if request in self._waiting:
            self._waiting.dequeue(request)
            request.rank = rank
            self._waiting.add(request)
        else:
            request.rank = rank
            self._running.prefills.sort(key=by_rank)

    def _can_admit(self, request: Request, cached: list[int], overtaken: Request | None) -> bool:
        """Return whether a slot and memory are free, for the request it overtakes as well."""
        if len(self._running) >= self._max_batch_size:
            return False
        memory, headroom = self._memory, self._headroom(len(self._running))
        if overtaken is not None:
            others = memory.cached_prefix(overtaken)
            if memory.missing_blocks(overtaken, others, headroom) > 0:
                return False
        return memory.missing_blocks(request, cached, headroom) <= 0

    def _admit(self, request: Request, cached: list[int]) -> None:
        self._waiting.dequeue(request)
        self._running.add(request)
        self._memory.admit(request, cached)
        if not (request.num_preemptions or request.output_ids):
            request.num_cached = request.num_computed
            self.prompt_tokens += len(request.prompt_ids)
            self.cached_tokens += request.num_cached

    def _headroom(self, num_running: int) -> int:
        """Return the blocks to leave free when a request is admitted.

        Every running request may soon ask for one more. Without headroom the new request would be
        preempted at once, and computed again and again.
        """
        return num_running if self._policy.reserves == "prompt" else 0

    def _most_tokens(self, request: Request, start: int, scorable: int) -> int:
        """Return how many tokens of a prompt, from `start`, have no more than `scorable` rows of
        logits that are wanted. Where chunks are fixed, one is taken whole, whatever it has."""
        remaining = request.num_tokens - start
        if not request.wanted or request.pools:
            return remaining
        wanted = request.wanted_among(start, remaining)
        if len(wanted) <= scorable or (self._chunk is not None and scorable == MAX_SCORED_ROWS):
            return remaining
        return 0 if self._chunk is not None else wanted.start + scorable - start

    def _take(
        self,
        allowance: Allowance,
        request: Request,
        start: int,
        most: int,
        max_cost: float,
        *,
        first: bool,
    ) -> int:
        """Take up to `most` tokens of a prompt, from `start`, out of the allowance; return how
        many."""
        scored = bool(request.wanted) and not request.pools
        if self._chunk is not None:
            # Up to the next multiple. Outputs of a preempted request are recomputed one by one, as
            # they were computed at first.
            prompt = len(request.prompt_ids) - start
            length = min(self._chunk - start % self._chunk, prompt) if prompt > 0 else 1
        elif self._policy.chunked:
            length = allowance.take(most, start, max_cost, scored=scored)
            # A share that is too small for a single token is no share.
            return length or (allowance.take(most, start, scored=scored) if first else 0)
        else:
            length = most
        # Whole or not at all; the first one always, or a long one would never run.
        if not (first or allowance.covers(length, start, scored=scored)):
            return 0
        allowance.charge(length, start, scored=scored)
        return length


class PrefillCandidate(NamedTuple):
    """The next prompt of an iteration."""

    request: Request
    max_cost: float  # of its tokens, in the unit of the allowance
    overtaken: Request | None = None  # a waiting request before it in order, if it waits as well


class _TenantState:
    """What a tenant has left in this iteration."""

    def __init__(self) -> None:
        self.started: list[Request] = []  # by rank, without those that have been selected
        self.in_order: float | None = None  # rest of the in-order share; None: not yet selected
        self.cut: Request | None = None  # the request that was cut at the end of that share


class PrefillSelector:
    """Selects prompts within one iteration: always of the least served tenant.

    Of a tenant, prompts are selected in order until the in-order share is used up, then the
    shortest first. The prompt that is cut at the end of that share is among the latter, too.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        running: RunningRequests,
        *,
        in_order_share: float,
        admit: bool,
    ) -> None:
        """Start an iteration; with `admit`, waiting requests are selected, too."""
        self._waiting = waiting
        self._share = in_order_share
        self.admit = admit
        self._tenants: dict[str, _TenantState] = {}
        for request in running.prefills:
            # A chunk may follow the one before into a pipeline: each stage computes them in order.
            if request.num_scheduled < request.num_tokens and not request.cancelled:
                self._state(waiting.tenant_of(request)).started.append(request)

    def next(self, remaining: float) -> PrefillCandidate | None:
        """Select the next prompt, with what remains of the allowance; None if there is none."""
        # Waiting requests are looked up as they are needed: there may be thousands.
        ready = [name for name, state in self._tenants.items() if state.started or state.cut]
        tenant = self._waiting.shares.least_served(ready, waiting=self.admit)
        if tenant is None:
            return None
        self._waiting.shares.select(tenant)
        state = self._state(tenant)
        if state.in_order is None:
            state.in_order = self._share * remaining if self._share < 1 and remaining else math.inf
        queue = self._waiting.queue_of(tenant) if self.admit else None
        candidates = state.started[:1]
        if queue is not None:
            candidates.append(queue.first())
        if state.in_order > 0:
            return PrefillCandidate(min(candidates, key=by_rank), state.in_order)
        if state.cut is not None:
            candidates.append(state.cut)
        priority_class = min(request.rank.priority_class for request in candidates)
        candidates = [*state.started, *(() if state.cut is None else (state.cut,))]
        if queue is not None:
            candidates.append(queue.shortest())
        shortest = min(
            (r for r in candidates if r.rank.priority_class == priority_class), key=_by_length
        )
        is_waiting = queue is not None and shortest is queue.shortest()
        first = queue.first() if queue is not None and is_waiting else None
        return PrefillCandidate(shortest, math.inf, None if first is shortest else first)

    def record(self, request: Request, cost: float, *, is_cut: bool) -> None:
        """Note that tokens were allocated to a request, and whether it could use more of them."""
        state = self._state_of(request)
        assert state.in_order is not None
        if request in state.started:
            state.started.remove(request)
        if request is state.cut:
            state.cut = None
        elif state.in_order > 0:
            state.in_order -= cost
            if is_cut:
                state.in_order = 0.0
                state.cut = request

    def stop_in_order(self, request: Request) -> None:
        """Give up the rest of the in-order share, which does not pay for a token of `request`."""
        self._state_of(request).in_order = 0.0

    def sort_started(self, request: Request) -> None:
        """Restore the order of started prompts, after the rank of `request` has changed."""
        self._state_of(request).started.sort(key=by_rank)

    def _state_of(self, request: Request) -> _TenantState:
        return self._state(self._waiting.tenant_of(request))

    def _state(self, tenant: str) -> _TenantState:
        return self._tenants.setdefault(tenant, _TenantState())


def _by_length(request: Request) -> tuple[int, Rank]:
    # Of the whole prompt: by remaining tokens, a long prompt would pass short ones at its end.
    return request.num_tokens, request.rank
