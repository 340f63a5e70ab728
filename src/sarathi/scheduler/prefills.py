"""Deals out what an iteration has for prompts."""

from __future__ import annotations

import math

from sarathi.scheduler.budget.token_budget import Allowance
from sarathi.scheduler.kv.request_memory import KvMemory
from sarathi.scheduler.policy import Policy
from sarathi.scheduler.queue.order import BACKGROUND, Order
from sarathi.scheduler.queue.prefill_selector import PrefillSelector
from sarathi.scheduler.queue.waiting_queue import Prompts, by_rank
from sarathi.scheduler.request import Request
from sarathi.scheduler.running import Running

_MOST_RELEGATIONS = 32  # in an iteration: thousands may become hopeless at once


class Prefills:
    """Who gets how many tokens of prompt computed.

    `in_order_share` of an iteration's allowance goes to prompts in order, the rest to the shortest
    first. So with P tokens an iteration, a prompt of r tokens has its first token after at most

    - (W + r) / (P * share) iterations, W being the tokens of those before it in order, and
    - (V + r) / (P * (1 - share)) iterations, V being the tokens of those shorter than it,

    whichever comes first: neither a huge prompt before it nor a stream of small ones behind it
    holds it up. Where either share is less than a token, it is strictly in order.
    """

    def __init__(
        self,
        prompts: Prompts,
        memory: KvMemory,
        order: Order,
        policy: Policy,
        *,
        max_batch_size: int,
        in_order_share: float,
        chunk: int | None,
    ) -> None:
        if not 0 < in_order_share <= 1:
            raise ValueError(f"in-order share is {in_order_share}, expected above 0 up to 1")
        self.num_relegations = 0
        self.prompt_tokens = 0  # of admitted requests, once each
        self.cached_tokens = 0  # of those, found in the prefix cache
        self._prompts = prompts
        self._memory = memory
        self._order = order
        self._policy = policy
        self._max_batch_size = max_batch_size
        self._in_order_share = in_order_share if policy.chunked and chunk is None else 1.0
        self._chunk = chunk

    def deal(
        self, allowance: Allowance, now: float, num_running: int, *, admit: bool
    ) -> dict[Request, int]:
        """Admit requests and grant tokens to them and to started ones.

        Args:
            num_running: requests that have been admitted.
            admit: whether others may be.

        Returns:
            The tokens that each is to compute next, in this iteration.
        """
        granted: dict[Request, int] = {}
        turns = PrefillSelector(self._prompts, in_order_share=self._in_order_share, admit=admit)
        relegations = 0
        while turn := turns.next(allowance.left):
            request, within, ahead = turn
            waits = self._prompts.waits(request)
            cached = self._memory.cached(request) if waits else []
            start = request.num_scheduled + granted.get(request, 0)
            start += len(cached) * self._memory.pool.block_size
            if relegations < _MOST_RELEGATIONS and self._is_late(request, start, now):
                relegations += 1
                turns.relegate(request)
                continue
            if waits and not self._fits(request, cached, num_running, ahead):
                turns.close()
                continue
            left = allowance.left
            length = self._length(allowance, request, start, within, first=not granted)
            if not length and within < math.inf:
                turns.end_in_order(request)
                continue
            if not length:
                break
            if waits:
                self._admit(request, cached)
                num_running += 1
            granted[request] = granted.get(request, 0) + length
            # Where chunks are fixed, a second one in the same iteration would make one of two.
            cut = self._chunk is None and start + length < request.num_tokens
            turns.took(request, left - allowance.left, cut=cut)
            self._prompts.charge(request, length)
        self.num_relegations += relegations
        return granted

    def victims(self, request: Request, running: Running) -> list[Request]:
        """Who should make way for a request that waits: nobody, or so many that it can run.

        Nobody makes way twice before it has got further than the first time.
        """
        slots = len(running) + 1 - self._max_batch_size
        cached = self._memory.cached(request)
        blocks = self._memory.shortage(request, cached, self._headroom(len(running)))
        if slots <= 0 and blocks <= 0:
            return []
        victims: list[Request] = []
        tenant = self._prompts.tenant(request)
        for victim in sorted(running.idle(), key=by_rank, reverse=True):
            if (
                self._order.displaces(request, victim)
                and self._prompts.tenant(victim) == tenant
                and victim.num_computed > victim.num_recomputed
            ):
                victims.append(victim)
                blocks -= self._memory.held(victim) + self._headroom(1)
                if len(victims) >= slots and blocks <= 0:
                    return victims
        return []

    def _is_late(self, request: Request, start: int, now: float) -> bool:
        return request.rank.lane != BACKGROUND and self._order.hopeless(request, start, now)

    def _fits(
        self, request: Request, cached: list[int], num_running: int, ahead: Request | None
    ) -> bool:
        """Whether a waiting request can be admitted, without passing one that cannot."""
        if num_running >= self._max_batch_size:
            return False
        headroom = self._headroom(num_running)
        if (
            ahead is not None
            and self._memory.shortage(ahead, self._memory.cached(ahead), headroom) > 0
        ):
            return False
        return self._memory.shortage(request, cached, headroom) <= 0

    def _headroom(self, num_running: int) -> int:
        """Blocks to leave when a request is admitted.

        Every running request may soon ask for one more. Without that headroom the newcomer would
        be preempted at once, and computed again and again.
        """
        return num_running if self._policy.reserves == "prompt" else 0

    def _length(
        self, allowance: Allowance, request: Request, start: int, within: float, *, first: bool
    ) -> int:
        """Tokens of a prompt, from `start`, that may run now."""
        remaining = request.num_tokens - start
        if self._chunk is not None:
            # Up to the next mark. What a preempted request had said is computed as it was then.
            prompt = len(request.prompt_ids) - start
            length = min(self._chunk - start % self._chunk, prompt) if prompt > 0 else 1
        elif self._policy.chunked:
            length = allowance.take(remaining, start, within)
            # A share that is too small for a single token is no share.
            return length or (allowance.take(remaining, start) if first else 0)
        else:
            length = remaining
        # Whole or not at all; the first one always, or a long one would wait for ever.
        if not (first or allowance.covers(length, start)):
            return 0
        allowance.charge(length, start)
        return length

    def _admit(self, request: Request, cached: list[int]) -> None:
        self._prompts.start(request)
        self._memory.admit(request, cached)
        if not (request.num_preemptions or request.output_ids):
            request.num_cached = request.num_computed
            self.prompt_tokens += len(request.prompt_ids)
            self.cached_tokens += request.num_cached
