"""Stall-free batching: who computes how many tokens in the next iteration."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from itertools import chain

from sarathi.scheduler.admission import AdmissionError, check_admissible
from sarathi.scheduler.batch import NO_WORK, Batch, Slice
from sarathi.scheduler.budget.latency_model import LatencyModel, Work
from sarathi.scheduler.budget.token_budget import Allowance, Budget, FixedBudget
from sarathi.scheduler.kv.block_pool import BlockPool
from sarathi.scheduler.kv.request_memory import KvMemory
from sarathi.scheduler.policy import POLICIES, Policy
from sarathi.scheduler.prefills import Prefills
from sarathi.scheduler.queue.order import Fcfs, Order
from sarathi.scheduler.queue.waiting_queue import Prompts
from sarathi.scheduler.request import Request
from sarathi.scheduler.running import Running


class Scheduler:
    """Forms one batch an iteration out of waiting and running requests.

    The policy is that of Sarathi-Serve (Agrawal et al., OSDI'24, algorithm 3) unless another one
    is given: every decode runs in every iteration, then prompts that have been started, then new
    ones, as far as the budget reaches. A prompt that does not fit is cut.

    Memory: a prompt is admitted when the blocks for all of it are available, which are reserved
    for it and taken chunk by chunk. An output grows block by block; where none is available the
    last in order gives up its blocks and is computed again later (preemption by recompute). The
    first in order therefore always makes progress.

    Single-threaded: calls must not overlap. `schedule` may be called again before `complete`, for
    the next micro-batch of a pipeline: decodes in flight sit out, while the next chunk of a prompt
    may follow the one before. With `look_ahead` decodes in flight do not sit out: their next slice
    computes the token that is being sampled, whatever it will be. Batches must be computed and
    completed in the order in which they were scheduled, those without slices at any time. Times
    are seconds of any one clock.
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
        """
        Args:
            order: who goes first; None: first come, first served.
            fair: whether tenants share prompt work equally.
            in_order_share: of an iteration's prompt work, what the first prompt in order may take
                while others could use the rest, which goes to the shortest first. 1: strictly in
                order. Policies that do not cut prompts have no use for it.
            deterministic_chunk: where prompts are cut, in tokens, whatever else there is to do;
                None: as the budget says.
            latency_model: predicts the time of each batch, for recorders and statistics.
            micro_batches: how many will be under way at a time, one for each stage of a pipeline;
                decodes are spread evenly over them.
            look_ahead: whether a batch may use the tokens that the one before it samples, so that
                it can be made while that one is computed. For one micro-batch.
            max_step_tokens: of an iteration, decodes included, whatever the budget says: what
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
        self.num_iterations = 0
        self._policy = policy
        self._budget = _budget(policy, budget, max_model_len)
        self._order = order or Fcfs()
        self._fair = fair
        self.latency_model = latency_model
        # Blocks that were computed in other pieces may differ in their last bits.
        prefix_caching = prefix_caching and deterministic_chunk is None
        whole = policy.reserves == "max length"
        self._memory = KvMemory(
            pool, reserve_tokens=max_model_len if whole else None, prefix_caching=prefix_caching
        )
        self.waiting = Prompts(fair=fair)
        self.running = Running(self._memory, self.waiting)
        self.prefills = Prefills(
            self.waiting,
            self._memory,
            self._order,
            policy,
            max_batch_size=max_batch_size,
            in_order_share=in_order_share,
            chunk=deterministic_chunk,
        )
        self._micro_batches = micro_batches
        self._look_ahead = look_ahead
        self._max_step_tokens = max_step_tokens
        self._requests: dict[int, Request] = {}
        self._forgotten: list[int] = []
        self._prefilled = False  # whether the latest batch had prompts in it
        self._latest = 0  # tokens of it
        self._under_way: deque[Work] = deque()  # of batches, in order

    # -- the outside world ------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            AdmissionError: it is empty, malformed, or too long for the model or the KV cache.
        """
        if request.id in self._requests:
            raise AdmissionError(f"request id {request.id} is in use")
        check_admissible(request, self.pool, self.max_model_len)
        own_target = request.scheduling_params.tbt_target
        target = self._budget.tbt_target
        # A shorter one would take everybody's time for prompts.
        request.tbt_target = target if own_target is None else max(own_target, target / 2)
        request.rank = self._order.rank(request)
        self._requests[request.id] = request
        self.waiting.shares.enter(self.waiting.tenant(request))
        self.waiting.add(request)

    def cancel(self, request_id: int) -> bool:
        """Forget a request and free its blocks; False where it has ended or never was.

        A request in flight keeps its blocks until its batch completes, because the executor is
        still writing to them.
        """
        request = self._requests.get(request_id)
        if request is None or request.cancelled:
            return False
        request.cancelled = True
        if not request.in_flight:
            self._forget(request)
        return True

    def abandon_batches(self) -> None:
        """Give up all batches under way: their requests stand where they stood before."""
        self._under_way.clear()
        for request in list(self._requests.values()):
            request.in_flight = request.num_pending = 0
            if request.cancelled:
                self._forget(request)
        for request in [r for r in self.running.decodes if not r.is_decode]:
            self.running.resume_prefill(request)

    def take_ended_ids(self) -> list[int]:
        """Return the ids of the requests that have ended, with no batch under way, since the last
        call."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def check(self) -> None:
        """Raise `AssertionError` where blocks, reservations or queues contradict each other."""
        self._memory.check(self._requests.values())
        if len(self.waiting) + len(self.running) != len(self._requests):
            raise AssertionError("a request is in both queues or in none")
        if any(request.blocks for request in self.waiting.requests()):
            raise AssertionError("a waiting request owns blocks")
        if not all(request.is_decode or request.in_flight for request in self.running.decodes):
            raise AssertionError("a prompt is among the decodes")

    # -- one iteration ----------------------------------------------------------------------

    def schedule(self, now: float) -> Batch | None:
        """The next batch, or None when there is nothing to do, or nothing before a batch under way
        has been completed.

        Args:
            now: seconds; when the iteration begins.
        """
        policy = self._policy
        look_ahead = self._look_ahead and bool(self._under_way)
        if look_ahead and not self._can_look_ahead():
            return None
        decodes: list[Slice] = []
        prefills: list[Slice] = []
        work = NO_WORK
        displaced = self._displace() if self._order.preempts else []
        preempted: list[Request] = []
        prefills_first = policy.first == "prefills" or (
            policy.first == "alternate" and not self._prefilled
        )
        allowance = None
        slack = None
        if prefills_first:
            allowance = self._open(work, None)
            work = self._prefill(allowance, prefills, work, now, admit=True)
        if policy.hybrid or not prefills:
            decodes, context, due, interval, preempted = self.running.decode(
                self._micro_batches, look_ahead=look_ahead
            )
            if decodes:
                count = len(decodes)
                work = work._replace(
                    tokens=work.tokens + count, context=context, samples=work.samples + count
                )
                slack = min(due - now, interval)
                if self._look_ahead:
                    for part in decodes:
                        part.request.num_pending += 1
                if self._fair:
                    for part in decodes:
                        self.waiting.charge(part.request, 1)
            elif self.running.decodes:
                # All are under way in other micro-batches, and come behind this one next time.
                slack = min(request.tbt_target for request in self.running.decodes)
        if not prefills_first and (policy.hybrid or not decodes):
            allowance = self._open(work, slack)
            # After a preemption memory is short: admitting more would only preempt more.
            work = self._prefill(allowance, prefills, work, now, admit=not preempted)
        if not (decodes or prefills or preempted or displaced):
            return None
        self.num_iterations += 1
        self._prefilled = bool(prefills)
        self._latest = work.tokens
        if decodes or prefills:
            self._under_way.append(work)
        return Batch(
            id=self.num_iterations,
            slices=(*decodes, *prefills),
            num_decodes=len(decodes),
            preempted=(*displaced, *preempted),
            work=work,
            allowance=0.0 if allowance is None else allowance.amount,
            predicted=None if self.latency_model is None else self.latency_model.predict(work),
        )

    def complete(self, batch: Batch, tokens: Sequence[int], now: float) -> list[Request]:
        """Record what the executor computed.

        Args:
            tokens: one sampled token id for each request of `batch.sampling`, in that order.

        Returns:
            The requests that got their token, in the same order, without those that were
            cancelled meanwhile. Those whose `finish_reason()` is set have left the scheduler.
        """
        if len(tokens) != batch.work.samples:
            raise ValueError(
                f"batch {batch.id} samples {batch.work.samples} tokens, got {len(tokens)}"
            )
        if batch.slices:
            self._under_way.popleft()
        sampled = iter(tokens)
        progressed: list[Request] = []
        block_size, looks_ahead = self.pool.block_size, self._look_ahead
        for index, (request, start, length, samples) in enumerate(batch.slices):
            request.in_flight -= length
            token = next(sampled) if samples else None
            if looks_ahead and samples:
                request.num_pending -= 1
            if request.cancelled:
                if not request.in_flight:
                    self._forget(request)
                continue
            if request.num_computed != start:
                raise RuntimeError(
                    f"batch {batch.id} computed request {request.id} from {start}, but it stands "
                    f"at {request.num_computed}"
                )
            request.num_computed = end = start + length
            if length > 1 or not end % block_size:
                self._memory.publish(request)
            if token is None:
                continue
            outputs = request.output_ids
            outputs.append(token)
            request.deadline = now + request.tbt_target
            progressed.append(request)
            limits = request.stop_criteria
            ends = len(outputs) >= limits.max_tokens or token in limits.stop_ids
            if ends and request.finish_reason():
                if request.in_flight:
                    request.cancelled = True  # the slice that looked ahead of its end is dropped
                else:
                    self._forget(request)
            elif index >= batch.num_decodes and not self._look_ahead:
                self.running.end_prefill(request)
        return progressed

    def _open(self, decodes: Work, slack: float | None) -> Allowance:
        """The allowance for the prompts of an iteration, beside its decodes."""
        allowance = self._budget.open(decodes, slack, self._latest, self._under_way)
        if self._max_step_tokens is not None:
            allowance.limit(self._max_step_tokens - decodes.tokens)
        return allowance

    def _prefill(
        self, allowance: Allowance, slices: list[Slice], work: Work, now: float, *, admit: bool
    ) -> Work:
        """Prompts, started and new, until the allowance is used up."""
        granted = self.prefills.deal(allowance, now, len(self.running), admit=admit)
        tokens, attention, context, samples = work
        for request, length in granted.items():
            start = request.num_scheduled
            self._memory.extend(request, start + length)
            request.in_flight += length
            if request.first_scheduled_at is None:
                request.first_scheduled_at = now
            last = start + length == request.num_tokens
            if last and self._look_ahead:
                request.num_pending += 1
                self.running.end_prefill(request)
            slices.append(Slice(request, start, length, last))
            tokens += length
            attention += length * (start + length / 2)
            samples += last
        return Work(tokens, attention, context, samples)

    def _can_look_ahead(self) -> bool:
        """Whether nobody must be preempted for the next batch: requests in flight cannot be."""
        first = self.waiting.first_waiting() if self._order.preempts else None
        if first is not None:
            running = chain(self.running.decodes, self.waiting.started)
            if any(self._order.displaces(first, request) for request in running):
                return False
        return self.running.can_look_ahead()

    # -- coming and going -------------------------------------------------------------------

    def _displace(self) -> list[Request]:
        """Make room for the first waiting request at the expense of those that must yield."""
        first = self.waiting.first_waiting()
        victims = [] if first is None else self.prefills.victims(first, self.running)
        for victim in victims:
            self.running.preempt(victim)
        return victims

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        self._forgotten.append(request.id)
        if self.waiting.waits(request):
            self.waiting.leave_line(request)
        else:
            self.running.leave(request)
        self.waiting.shares.leave(self.waiting.tenant(request))


def _budget(policy: Policy, budget: Budget | None, max_model_len: int) -> Budget:
    if policy.accepts_budget and budget is not None:
        return budget
    if policy.requires_budget:
        raise ValueError("the policy needs a token budget")
    return FixedBudget(max_model_len if policy.accepts_budget else sys.maxsize)
