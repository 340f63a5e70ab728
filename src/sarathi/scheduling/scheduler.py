"""Stall-free batching: who computes how many tokens in the next iteration."""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Sequence

from sarathi.scheduling.batch import Batch, Slice
from sarathi.scheduling.blocks import BlockPool
from sarathi.scheduling.budget import FixedBudget, TokenBudget
from sarathi.scheduling.policy import POLICIES, Policy
from sarathi.scheduling.request import Request


class AdmissionError(ValueError):
    """A request could never run, however long it waited."""


def _order(request: Request) -> tuple[float, int]:
    """First come, first served."""
    return request.arrival, request.id


class Scheduler:
    """Forms one batch an iteration out of waiting and running requests.

    The policy is that of Sarathi-Serve (Agrawal et al., OSDI'24, algorithm 3) unless another one
    is given: every decode runs in every iteration, then prompts that have been started, then new
    ones, first come, first served, as far as the token budget reaches. A prompt that does not fit
    is cut.

    Memory: a prompt is admitted when the blocks for all of it are available, which are reserved
    for it and taken chunk by chunk. An output grows block by block; where none is available the
    latest arrival gives up its blocks and is computed again later (preemption by recompute).
    The earliest arrival therefore always makes progress.

    Single-threaded: calls must not overlap. `schedule` may be called again before `complete`, in
    which case requests in flight sit out.
    """

    def __init__(
        self,
        pool: BlockPool,
        budget: FixedBudget | None,
        *,
        max_batch_size: int,
        max_model_len: int,
        policy: Policy = POLICIES["sarathi"],
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max batch size is {max_batch_size}, expected at least 1")
        if budget is None and policy.budgeted:
            raise ValueError("the policy needs a token budget")
        self.pool = pool
        self.budget = budget
        self.max_batch_size = max_batch_size
        self.max_model_len = max_model_len
        self.policy = policy
        self.waiting: list[Request] = []  # both lists are kept first come, first served
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._requests: dict[int, Request] = {}
        self._reserved: dict[int, int] = {}  # blocks promised to each admitted prompt
        self._batches = 0
        self._prefilled = False  # whether the latest batch had prompts in it

    # -- the outside world ------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            AdmissionError: it is empty, malformed, or too long for the model or the KV cache.
        """
        if request.id in self._requests:
            raise AdmissionError(f"request id {request.id} is in use")
        if not request.prompt_ids:
            raise AdmissionError("the prompt is empty")
        if request.limits.max_tokens < 1:
            raise AdmissionError(f"max_tokens is {request.limits.max_tokens}, expected at least 1")
        if request.max_num_tokens > self.max_model_len:
            raise AdmissionError(
                f"{len(request.prompt_ids)} prompt tokens and up to {request.limits.max_tokens} "
                f"output tokens exceed the model's length of {self.max_model_len} tokens"
            )
        # The last output token is never computed, so it needs no room.
        if self.pool.blocks_for(request.max_num_tokens - 1) > self.pool.num_blocks:
            raise AdmissionError(
                f"{len(request.prompt_ids)} prompt tokens and up to {request.limits.max_tokens} "
                f"output tokens exceed the KV cache of "
                f"{self.pool.num_blocks * self.pool.block_size} tokens"
            )
        self._requests[request.id] = request
        insort(self.waiting, request, key=_order)

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
        for request in list(self._requests.values()):
            request.in_flight = False
            if request.cancelled:
                self._forget(request)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def check(self) -> None:
        """Raise `AssertionError` where blocks, reservations or queues contradict each other."""
        self.pool.check(self._requests.values())
        if sum(self._reserved.values()) != self.pool.num_reserved:
            raise AssertionError("the pool and the scheduler disagree about reserved blocks")
        if len(self.waiting) + len(self.running) != len(self._requests):
            raise AssertionError("a request is in both queues or in none")
        if any(request.blocks for request in self.waiting):
            raise AssertionError("a waiting request owns blocks")

    # -- one iteration ----------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """The next batch, or None when there is nothing to do."""
        policy = self.policy
        budget = self._open_budget()
        decodes: list[Slice] = []
        prefills: list[Slice] = []
        preempted: list[Request] = []
        prefills_first = policy.first == "prefills" or (
            policy.first == "alternate" and not self._prefilled
        )
        if prefills_first:
            self._schedule_prefills(budget, prefills, admit=True)
        if policy.hybrid or not prefills:
            self._schedule_decodes(budget, decodes, preempted)
        if not prefills_first and (policy.hybrid or not decodes):
            # After a preemption memory is short: admitting more would only preempt more.
            self._schedule_prefills(budget, prefills, admit=not preempted)
        if not (decodes or prefills or preempted):
            return None
        self._batches += 1
        self._prefilled = bool(prefills)
        return Batch(self._batches, (*decodes, *prefills), len(decodes), tuple(preempted))

    def complete(self, batch: Batch, tokens: Sequence[int]) -> list[Request]:
        """Record what the executor computed.

        Args:
            tokens: one sampled token id for each request of `batch.sampling`, in that order.

        Returns:
            The requests that got their token, in the same order, without those that were
            cancelled meanwhile. Those whose `finish_reason()` is set have left the scheduler.
        """
        expected = sum(part.samples for part in batch.slices)
        if len(tokens) != expected:
            raise ValueError(f"batch {batch.id} samples {expected} tokens, got {len(tokens)}")
        sampled = iter(tokens)
        progressed: list[Request] = []
        for request, start, length, samples in batch.slices:
            request.in_flight = False
            token = next(sampled) if samples else None
            if request.cancelled:
                self._forget(request)
                continue
            if request.num_computed != start:
                raise RuntimeError(
                    f"batch {batch.id} computed request {request.id} from {start}, but it stands "
                    f"at {request.num_computed}"
                )
            request.num_computed = start + length
            if token is None:
                continue
            request.output_ids.append(token)
            progressed.append(request)
            if request.finish_reason():
                self._forget(request)
        return progressed

    def _schedule_decodes(
        self, budget: TokenBudget, slices: list[Slice], preempted: list[Request]
    ) -> None:
        index = 0
        while index < len(self.running):
            request = self.running[index]
            index += 1
            if request.in_flight or not request.is_decode:
                continue
            while self._lacking(request, request.num_tokens) > self.pool.num_available:
                victim = self._latest_from(index - 1)
                self._preempt(victim)
                preempted.append(victim)
                if victim is request:
                    break
            else:
                budget.charge(1)
                self._put(slices, request, 1)

    def _schedule_prefills(self, budget: TokenBudget, slices: list[Slice], *, admit: bool) -> None:
        """Started prompts, then new ones if any may be admitted, until the budget is used up."""
        for request in self.running:
            if not request.in_flight and not request.is_decode:
                if not (length := self._grant(budget, request, slices)):
                    return
                self._put(slices, request, length)
        while admit and self.waiting and len(self.running) < self.max_batch_size:
            request = self.waiting[0]
            reserve = self._reserve_for(request)
            if reserve + self._headroom > self.pool.num_available:
                return
            if not (length := self._grant(budget, request, slices)):
                return
            self.waiting.pop(0)
            self.pool.reserve(reserve)
            self._promise(request, reserve)
            insort(self.running, request, key=_order)
            self._put(slices, request, length)

    def _open_budget(self) -> TokenBudget:
        if self.policy.budgeted and self.budget is not None:
            return self.budget.open()
        whole = self.policy.prompt_limit == "model length"
        return TokenBudget(self.max_model_len if whole else sys.maxsize)

    def _grant(self, budget: TokenBudget, request: Request, slices: list[Slice]) -> int:
        """Tokens of a prompt that may run now."""
        remaining = request.remaining
        if self.policy.chunked:
            return budget.take(remaining)
        # Whole or not at all; the first one always, or a long one would wait for ever.
        if remaining > budget.left and slices:
            return 0
        budget.charge(remaining)
        return remaining

    def _reserve_for(self, request: Request) -> int:
        if self.policy.reserves == "prompt":
            return self.pool.blocks_for(request.num_tokens)
        return min(self.pool.blocks_for(self.max_model_len), self.pool.num_blocks)

    @property
    def _headroom(self) -> int:
        """Blocks to leave when a prompt is admitted.

        Every running request may soon ask for one more. Without that headroom the newcomer would
        be preempted at once, and computed again and again.
        """
        return len(self.running) if self.policy.reserves == "prompt" else 0

    def _put(self, slices: list[Slice], request: Request, length: int) -> None:
        """Schedule the next `length` tokens of a request and give it the blocks they need."""
        start = request.num_computed
        missing = self.pool.missing(request, start + length)
        if missing:
            reserved = self._reserved.get(request.id, 0)
            own = min(missing, reserved)
            self.pool.unreserve(own)
            self.pool.take(request, missing)
            self._promise(request, reserved - own)
        request.in_flight = True
        slices.append(Slice(request, start, length, start + length == request.num_tokens))

    def _lacking(self, request: Request, num_tokens: int) -> int:
        """Blocks that a request needs for `num_tokens` tokens, beyond its own and its reserved."""
        missing = self.pool.missing(request, num_tokens)
        return max(0, missing - self._reserved.get(request.id, 0)) if missing else 0

    def _promise(self, request: Request, count: int) -> None:
        if count:
            self._reserved[request.id] = count
        else:
            self._reserved.pop(request.id, None)

    # -- leaving ----------------------------------------------------------------------------

    def _latest_from(self, index: int) -> Request:
        """The latest arrival among `running[index:]` whose blocks nobody is using."""
        return next(r for r in reversed(self.running[index:]) if not r.in_flight)

    def _preempt(self, request: Request) -> None:
        self._release(request)
        self.running.remove(request)
        request.num_computed = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        insort(self.waiting, request, key=_order)

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        self._release(request)
        (self.running if request in self.running else self.waiting).remove(request)

    def _release(self, request: Request) -> None:
        self.pool.unreserve(self._reserved.pop(request.id, 0))
        self.pool.release(request)
