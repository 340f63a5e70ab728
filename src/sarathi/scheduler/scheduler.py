"""Which requests compute how many tokens in the next iteration: stall-free, or as a baseline."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from operator import add
from typing import NamedTuple

from sarathi.scheduler.batch import DEFERRED, NO_WORK, Batch, Slice
from sarathi.scheduler.budget.latency_model import LatencyModel, Work
from sarathi.scheduler.budget.token_budget import Budget, FixedBudget
from sarathi.scheduler.kv.block_pool import BlockPool, RequestMemory
from sarathi.scheduler.policy import POLICIES, Policy
from sarathi.scheduler.prefill import PrefillAllocator
from sarathi.scheduler.queue.waiting_queue import Order, WaitingQueue
from sarathi.scheduler.request import Request
from sarathi.scheduler.running import NO_DECODES, Decodes, RunningRequests


class AdmissionError(ValueError):
    """A request could never run, however long it waited."""


class Prefills(NamedTuple):
    """The prompts of one iteration."""

    slices: list[Slice]
    work: Work
    allowance: float  # as `Batch` has it
    num_scored: int = 0  # likewise
    num_pooled: int = 0  # likewise


_NO_PREFILLS = Prefills([], NO_WORK, 0.0)


class Scheduler:
    """Forms one batch per iteration out of waiting and running requests.

    The policy is that of Sarathi-Serve (Agrawal et al., OSDI'24, algorithm 3) unless another one
    is given: every decode runs in every iteration, then prompts that have been started, then new
    ones, as far as the budget reaches. A prompt that does not fit is cut.

    Memory: a prompt is admitted when the blocks for all of it are available; they are reserved
    for it and allocated chunk by chunk. An output grows block by block; if none is available, the
    last request in order gives up its blocks and is recomputed later (preemption by recompute).
    The first in order therefore always makes progress.

    Single-threaded: calls must not overlap. `schedule` may be called again before `complete`, for
    the next micro-batch of a pipeline: decodes in flight are left out, while the next chunk of a
    prompt may follow the one before. With `look_ahead` decodes in flight are included: their next
    slice computes the token that is being sampled, whatever it will be. Batches must be computed
    and completed in the order in which they were scheduled; those without slices at any time.
    Times are seconds of any one clock.
    """

    def __init__(
        self,
        pool: BlockPool,
        budget: Budget | None,
        *,
        max_batch_size: int,
        max_model_len: int,
        policy: Policy = POLICIES["sarathi"],
        order: Order | None = None,
        fair: bool = False,
        in_order_share: float = 1.0,
        deterministic_chunk: int | None = None,
        prefix_caching: bool = True,
        latency_model: LatencyModel | None = None,
        micro_batches: int = 1,
        look_ahead: bool = False,
        max_step_tokens: int | None = None,
    ) -> None:
        """Make a scheduler without requests.

        Args:
            budget: None if the policy does without one.
            max_batch_size: requests that may run at a time.
            max_model_len: tokens of prompt and output of a request.
            order: ranks requests; None: first come, first served.
            fair: whether tenants share prompt work equally.
            in_order_share: share of an iteration's prompt work that the first prompt in order may
                take while others could use the rest, which goes to the shortest first. 1: strictly
                in order. No effect on policies that do not cut prompts.
            deterministic_chunk: positions at which prompts are cut, in tokens, whatever else there
                is to compute; None: where the budget ends.
            latency_model: predicts the time of each batch, for recorders and statistics.
            micro_batches: batches in flight at a time, one for each stage of a pipeline; decodes
                are spread evenly over them.
            look_ahead: whether a batch may use the tokens that the one before it samples, so that
                it can be made while that one is computed. For one micro-batch.
            max_step_tokens: of an iteration, decodes included, whatever the budget allows: what
                the executor has memory for. A prompt that is not cut may be longer. None: any.
        """
        if look_ahead and micro_batches > 1:
            raise ValueError(f"look_ahead is for one micro-batch, not for {micro_batches}")
        if micro_batches < 1:
            raise ValueError(f"{micro_batches} micro-batches, expected at least 1")
        if max_batch_size < 1:
            raise ValueError(f"max batch size is {max_batch_size}, expected at least 1")
        self.pool = pool
        self.max_model_len = max_model_len
        self.latency_model = latency_model
        self.num_iterations = 0
        self._policy = policy
        self._budget = _budget(policy, budget, max_model_len)
        self._order = order or Order()
        self._fair = fair
        self._memory = RequestMemory(
            pool,
            reserve_tokens=max_model_len if policy.reserves == "max length" else None,
            # Blocks that were computed in other pieces may differ in their last bits.
            prefix_caching=prefix_caching and deterministic_chunk is None,
        )
        self.waiting = WaitingQueue(fair=fair)
        self.running = RunningRequests(self._memory, self.waiting)
        self.prefill_allocator = PrefillAllocator(
            self.waiting,
            self.running,
            self._memory,
            self._order,
            policy,
            max_batch_size=max_batch_size,
            in_order_share=in_order_share,
            chunk=deterministic_chunk,
        )
        self._micro_batches = micro_batches
        self._deterministic = deterministic_chunk is not None
        self._look_ahead = look_ahead
        self._max_step_tokens = max_step_tokens
        self._requests: dict[int, Request] = {}
        self._ended_ids: list[int] = []
        self._in_flight: deque[Work] = deque()  # of batches, oldest first
        self._last_had_prefills = False
        self._last_tokens = 0  # of the latest batch
        self._num_constrained = 0  # requests with a grammar

    # -- requests ---------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request; `AdmissionError` if it is empty, malformed, or too long."""
        if request.id in self._requests:
            raise AdmissionError(f"request id {request.id} is in use")
        self._check_admissible(request)
        own_target = request.scheduling_params.tbt_target
        target = self._budget.tbt_target
        # A shorter one would take the time for prompts from all other requests.
        request.tbt_target = target if own_target is None else max(own_target, target / 2)
        request.rank = self._order.rank(request)
        self._requests[request.id] = request
        self._num_constrained += request.constrained
        self.waiting.shares.enter(self.waiting.tenant_of(request))
        self.waiting.add(request)

    def cancel(self, request_id: int) -> bool:
        """Remove a request and free its blocks; return False if it has ended or never existed.

        A request in flight keeps its blocks until its batch completes, because the executor is
        still writing to them.
        """
        request = self._requests.get(request_id)
        if request is None or request.cancelled:
            return False
        request.cancelled = True
        if not request.in_flight:
            self._remove(request)
        return True

    def take_ended_ids(self) -> list[int]:
        """Return the ids of the requests that have ended since the last call.

        No batch in flight contains them.
        """
        ended, self._ended_ids = self._ended_ids, []
        return ended

    @property
    def has_work(self) -> bool:
        """Whether there are requests, waiting or running."""
        return bool(self._requests)

    def check(self) -> None:
        """Raise `AssertionError` if blocks, reservations or queues are inconsistent."""
        self._memory.check(self._requests.values())
        if len(self.waiting) + len(self.running) != len(self._requests):
            raise AssertionError("a request is both waiting and running, or neither")
        if any(request.blocks for request in self.waiting.requests()):
            raise AssertionError("a waiting request owns blocks")
        if not all(request.is_decode or request.in_flight for request in self.running.decodes):
            raise AssertionError("a prompt is among the decodes")

    # -- one iteration ----------------------------------------------------------------------

    def schedule(self, now: float) -> Batch | None:
        """Return the batch that begins `now` (seconds).

        None if nothing can be computed before a batch in flight is.
        """
        look_ahead = self._look_ahead and bool(self._in_flight)
        if look_ahead and not self._can_look_ahead():
            return None
        preempted = self._preempt_for_first_waiting(now) if self._order.preempts else []
        policy = self._policy
        prefills_first = policy.first == "prefills" or (
            policy.first == "alternate" and not self._last_had_prefills
        )
        decodes, prefills = NO_DECODES, _NO_PREFILLS
        if prefills_first:
            prefills = self._schedule_prefills(now, NO_WORK, slack=None, admit=True)
        if policy.hybrid or not prefills.slices:
            decodes = self._schedule_decodes(now, look_ahead=look_ahead)
        if not prefills_first and (policy.hybrid or not decodes.slices):
            # After a preemption memory is short: admitting more would only preempt more.
            admit = not decodes.preempted
            slack = decodes.slack
            if slack is not None:
                slack -= self._mask_wait(self._constrained(decodes.slices))
            prefills = self._schedule_prefills(now, decodes.work, slack, admit=admit)
        if not (decodes.slices or prefills.slices or decodes.preempted or preempted):
            return None
        work = Work(*map(add, decodes.work, prefills.work))
        self.num_iterations += 1
        self._last_had_prefills = bool(prefills.slices)
        self._last_tokens = work.tokens
        slices = (*decodes.slices, *prefills.slices)
        if slices:
            self._in_flight.append(work)
        constrained = self._constrained(slices)
        return Batch(
            id=self.num_iterations,
            slices=slices,
            num_decodes=len(decodes.slices),
            preempted=(*preempted, *decodes.preempted),
            num_scored=prefills.num_scored,
            num_pooled=prefills.num_pooled,
            work=work,
            allowance=prefills.allowance,
            predicted=self._predict(work, constrained),
            constrained=constrained,
        )

    def add_drafts(self, batch: Batch, num_drafts: Sequence[int]) -> Batch:
        """Add `num_drafts` draft tokens to each decode of the batch that was just scheduled.

        The engine does not speculate yet: this and `complete` are what it needs of the scheduler.
        Drafts never preempt a request nor exceed its `max_tokens`: fewer are added than asked for
        if blocks are short or the output ends. `complete` then gets those that are accepted.
        """
        if self._look_ahead:
            raise ValueError("drafts do not go with look_ahead: the next position is not known")
        slices = list(batch.slices)
        added = []
        for index, asked in zip(range(batch.num_decodes), num_drafts, strict=True):
            request, start, length, samples = slices[index]
            end = start + length
            count = min(asked, request.stop_criteria.max_tokens - len(request.output_ids) - 1)
            while self._memory.missing_to_grow(request, end + count) > self.pool.num_available:
                count -= 1
            added.append(count)
            if count:
                self._memory.extend(request, end + count)
                request.in_flight += count
                slices[index] = Slice(request, start, length + count, samples)
                if self._fair:
                    self.waiting.charge(request, count)
        total = sum(added)
        if not total:
            return batch
        work = Work(*map(add, batch.work, Work(total, 0.0, 0, total)))
        self._last_tokens = work.tokens
        self._in_flight[-1] = work
        return replace(
            batch,
            slices=tuple(slices),
            num_drafts=tuple(added),
            work=work,
            predicted=self._predict(work, batch.constrained),
        )

    def complete(
        self,
        batch: Batch,
        tokens: Sequence[int],
        now: float,
        counts: Sequence[int] | None = None,
    ) -> list[Request]:
        """Record what the executor computed.

        Args:
            tokens: sampled token ids for the requests of `batch.sampling`, in that order: one for
                each, or more if drafts were accepted. `DEFERRED` for a request that could not be
                sampled yet: it computes its last token again in the next batch (with a
                `deterministic_chunk`, all of its slice), to sample then.
            counts: how many of the tokens each of these requests gets: the accepted drafts and
                the token sampled after them. None: one for each, for batches without drafts.

        Returns:
            The requests that got their tokens, in the same order, and those that end without any,
            but not those that were cancelled meanwhile. Those whose `finish_reason()` is set have
            left the scheduler; their tokens after the end were dropped.
        """
        slices: Sequence[Slice] = batch.slices
        if counts is not None:
            slices, tokens = _accept_drafts(batch, tokens, counts)
        elif batch.num_drafts or len(tokens) != batch.work.samples - batch.num_scored:
            num_samples = batch.work.samples - batch.num_scored
            raise ValueError(f"batch {batch.id} samples {num_samples} tokens, got {len(tokens)}")
        if batch.slices:
            self._in_flight.popleft()
        for index, positions in batch.wanted():
            batch.slices[index].request.wanted_up_to(positions.stop)
        sampled = iter(tokens)
        progressed: list[Request] = []
        block_size, looks_ahead = self.pool.block_size, self._look_ahead
        for index, (request, start, length, samples) in enumerate(slices):
            request.in_flight -= length
            token = next(sampled) if samples else None
            if looks_ahead and samples:
                request.num_pending -= 1
            if request.cancelled:
                if not request.in_flight:
                    self._remove(request)
                continue
            if request.num_computed != start:
                raise RuntimeError(
                    f"batch {batch.id} computed request {request.id} from {start}, but "
                    f"{request.num_computed} of its tokens are computed"
                )
            if token == DEFERRED:
                # A chunk is computed as a whole where bits depend on how a prompt is cut.
                token, length = None, 0 if self._deterministic else length - 1
                request.deadline = now + request.tbt_target  # no schedule could meet the old one
            request.num_computed = end = start + length
            if length > 1 or not end % block_size:
                self._memory.cache_blocks(request)
            if token is None:
                if end == request.num_tokens:  # it samples nothing
                    progressed.append(request)
                    self._remove(request)
                continue
            outputs = request.output_ids
            outputs.append(token)
            request.deadline = now + request.tbt_target
            progressed.append(request)
            criteria = request.stop_criteria
            ends = len(outputs) >= criteria.max_tokens or token in criteria.stop_ids
            if ends and request.finish_reason():
                if request.in_flight:
                    request.cancelled = True  # the slice that looked ahead of its end is dropped
                else:
                    self._remove(request)
            elif index >= batch.num_decodes and not looks_ahead:
                self.running.end_prefill(request)
        return progressed

    def abandon_batches(self) -> None:
        """Forget all batches in flight: their requests are as they were before them."""
        self._in_flight.clear()
        for request in list(self._requests.values()):
            request.in_flight = request.num_pending = 0
            if request.cancelled:
                self._remove(request)
        for request in [r for r in self.running.decodes if not r.is_decode]:
            self.running.resume_prefill(request)

    # -- parts of an iteration --------------------------------------------------------------

    def _schedule_decodes(self, now: float, *, look_ahead: bool) -> Decodes:
        decodes = self.running.schedule_decodes(now, self._micro_batches, look_ahead=look_ahead)
        if self._look_ahead:
            for part in decodes.slices:
                part.request.num_pending += 1
        if self._fair:
            for part in decodes.slices:
                self.waiting.charge(part.request, 1)
        return decodes

    def _schedule_prefills(
        self, now: float, decodes: Work, slack: float | None, *, admit: bool
    ) -> Prefills:
        """Schedule prompts, started and new, until the allowance is used up."""
        allowance = self._budget.open(decodes, slack, self._last_tokens, self._in_flight)
        if self._max_step_tokens is not None:
            allowance.limit(self._max_step_tokens - decodes.tokens)
        slices: list[Slice] = []
        tokens, attention, samples, scored, pooled = 0, 0.0, 0, 0, 0
        allocated = self.prefill_allocator.allocate(allowance, now, admit=admit)
        for request, length in allocated.items():
            start = request.num_scheduled
            self._memory.extend(request, start + length)
            request.in_flight += length
            if request.first_scheduled_at is None:
                request.first_scheduled_at = now
            is_last = start + length == request.num_tokens
            if is_last and not request.stop_criteria.max_tokens:
                is_last = False  # nothing is sampled
            if is_last and self._look_ahead:
                request.num_pending += 1
                self.running.end_prefill(request)
            slices.append(Slice(request, start, length, is_last))
            tokens += length
            attention += length * (start + length / 2)
            samples += is_last
            if request.wanted:
                num_wanted = len(request.wanted_among(start, length))
                if request.pools:
                    pooled += num_wanted
                else:
                    scored += num_wanted
        work = Work(tokens, attention, 0, samples + scored)
        return Prefills(slices, work, allowance.amount, scored, pooled)

    def _preempt_for_first_waiting(self, now: float) -> list[Request]:
        """Preempt the requests that the order lets the first waiting one replace."""
        first = self.waiting.first(self.running.prefills)
        if first is None:
            return []
        preempted = self.prefill_allocator.preemption_candidates(first, now)
        for request in preempted:
            self.running.preempt(request)
        return preempted

    def _can_look_ahead(self) -> bool:
        """Return whether the next batch needs no preemption: requests in flight allow none."""
        first = self.waiting.first(self.running.prefills) if self._order.preempts else None
        if first is not None:
            running = chain(self.running.decodes, self.running.prefills)
            if any(self._order.may_preempt(first, request) for request in running):
                return False
        return self.running.can_look_ahead()

    def _predict(self, work: Work, constrained: int) -> float | None:
        if self.latency_model is None:
            return None
        return self.latency_model.predict(work) + self._mask_wait(constrained)

    def _constrained(self, slices: Sequence[Slice]) -> int:
        """Count the requests that will be sampled with a mask."""
        if not self._num_constrained:
            return 0
        return sum(part.request.constrained for part in slices if part.samples)

    def _mask_wait(self, constrained: int) -> float:
        """Return the seconds that sampling is expected to wait for masks."""
        if not constrained or self.latency_model is None:
            return 0.0
        return constrained * self.latency_model.mask_wait.seconds

    # -- requests that come and go ----------------------------------------------------------

    def _check_admissible(self, request: Request) -> None:
        if not request.prompt_ids:
            raise AdmissionError("the prompt is empty")
        max_tokens = request.stop_criteria.max_tokens
        if max_tokens < 0:
            raise AdmissionError(f"max_tokens is {max_tokens}, expected at least 0")
        tokens = f"{len(request.prompt_ids)} prompt tokens and up to {max_tokens} output tokens"
        if request.max_num_tokens > self.max_model_len:
            raise AdmissionError(
                f"{tokens} exceed the model's length of {self.max_model_len} tokens"
            )
        # The last output token is never computed and needs no memory.
        pool = self.pool
        num_computed = max(request.max_num_tokens - 1, len(request.prompt_ids))
        if pool.blocks_for(num_computed) > pool.num_blocks:
            raise AdmissionError(
                f"{tokens} exceed the KV cache of {pool.num_blocks * pool.block_size} tokens"
            )

    def _remove(self, request: Request) -> None:
        del self._requests[request.id]
        self._num_constrained -= request.constrained
        self._ended_ids.append(request.id)
        if request in self.waiting:
            self.waiting.dequeue(request)
        else:
            self.running.remove(request)
        self.waiting.shares.leave(self.waiting.tenant_of(request))


def _budget(policy: Policy, budget: Budget | None, max_model_len: int) -> Budget:
    """Return the budget of a policy, which may have a limit instead."""
    if policy.accepts_budget and budget is not None:
        return budget
    if policy.requires_budget:
        raise ValueError("the policy needs a token budget")
    return FixedBudget(max_model_len if policy.accepts_budget else sys.maxsize)


def _accept_drafts(
    batch: Batch, tokens: Sequence[int], counts: Sequence[int]
) -> tuple[list[Slice], list[int]]:
    """Append accepted drafts to the outputs of their requests, up to a stop.

    Returns the slices without the other drafts, and the last token of each that samples.
    `ValueError` if the counts do not match the tokens and slices.
    """
    slices, num_drafts = list(batch.slices), batch.num_drafts
    most = [1 + drafts for drafts in num_drafts] + [1] * (len(batch.sampling) - len(num_drafts))
    if (
        len(counts) != len(most)
        or sum(counts) != len(tokens)
        or not all(1 <= count <= limit for count, limit in zip(counts, most, strict=True))
    ):
        raise ValueError(
            f"batch {batch.id} samples up to {most} tokens, got {list(counts)} and {len(tokens)} "
            "in all"
        )
    sampled = iter(tokens)
    last_tokens = []
    for index, count in enumerate(counts):
        new: Sequence[int] = [*islice(sampled, count)]
        if index < len(num_drafts):  # decodes come first, and all of them sample
            request, start, length, samples = slices[index]
            if not request.cancelled:
                new = request.up_to_stop(new)
                request.output_ids.extend(new[:-1])
            rejected = num_drafts[index] - (len(new) - 1)
            request.in_flight -= rejected
            slices[index] = Slice(request, start, length - rejected, samples)
        last_tokens.append(new[-1])
    return slices, last_tokens
