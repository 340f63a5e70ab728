"""Deals out what an iteration has for prompts."""

from __future__ import annotations

from sarathi.scheduling.budget import Allowance
from sarathi.scheduling.memory import Admission, KvMemory
from sarathi.scheduling.order import Order
from sarathi.scheduling.policy import Policy
from sarathi.scheduling.prompts import Prompts
from sarathi.scheduling.request import Request
from sarathi.scheduling.turns import Turns


class Prefills:
    """Who gets how many tokens of prompt computed.

    Of an iteration's allowance the first prompt in order may take `in_order_share`, if it can use
    as much. The others take the rest, the shortest first, and what they leave is the first one's
    again. So with P tokens an iteration, a prompt of r tokens has its first token after at most

    - (W + r) / (P * share) iterations, W being the tokens of those before it in order, and
    - (V + r) / (P * (1 - share)) iterations, V being the tokens of those shorter than it,

    whichever comes first: neither a huge prompt before it nor a stream of small ones behind it
    holds it up.
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
        self, allowance: Allowance, now: float, running: int, *, admit: bool
    ) -> dict[Request, int]:
        """Admit requests and grant tokens to them and to started ones.

        Args:
            running: requests that have been admitted.
            admit: whether others may be.

        Returns:
            The tokens that each is to compute next, in this iteration.
        """
        granted: dict[Request, int] = {}
        turns = Turns(self._prompts, in_order_share=self._in_order_share, admit=admit)
        while turn := turns.next(allowance.left):
            request, within = turn
            admission = None
            cached = request.num_computed + granted.get(request, 0)
            if self._prompts.waits(request):
                admission = self.plan(request, running)
                if admission is None:
                    turns.close()
                    continue
                cached = self._memory.num_tokens(admission)
            if request.rank.lane == 0 and self._order.hopeless(request, cached, now):
                self.num_relegations += 1
                turns.relegate(request)
                continue
            left = allowance.left
            length = self._length(allowance, request, cached, within, first=not granted)
            if not length:
                break
            if admission is not None:
                self._admit(request, admission)
                running += 1
            granted[request] = granted.get(request, 0) + length
            # Where chunks are fixed, a second one in the same iteration would make one of two.
            cut = self._chunk is None and cached + length < request.num_tokens
            turns.took(request, left - allowance.left, cut=cut)
            self._prompts.charge(request, length)
        return granted

    def plan(self, request: Request, running: int) -> Admission | None:
        """How a waiting request could be admitted beside `running` others, None if it cannot."""
        if running >= self._max_batch_size:
            return None
        # Every running request may soon ask for one more block. Without that headroom the
        # newcomer would be preempted at once, and computed again and again.
        headroom = running if self._policy.reserves == "prompt" else 0
        return self._memory.plan(request, headroom)

    def _length(
        self, allowance: Allowance, request: Request, cached: int, within: float, *, first: bool
    ) -> int:
        """Tokens of a prompt that may run now."""
        remaining = request.num_tokens - cached
        if self._chunk is not None:
            # Up to the next mark. What a preempted request had said is computed as it was then.
            prompt = len(request.prompt_ids) - cached
            length = min(self._chunk - cached % self._chunk, prompt) if prompt > 0 else 1
        elif self._policy.chunked:
            # A share that is too small for a single token is no share.
            return allowance.take(remaining, cached, within) or allowance.take(remaining, cached)
        else:
            length = remaining
        # Whole or not at all; the first one always, or a long one would wait for ever.
        if not (first or allowance.covers(length, cached)):
            return 0
        allowance.charge(length, cached)
        return length

    def _admit(self, request: Request, admission: Admission) -> None:
        self._prompts.start(request)
        self._memory.admit(request, admission)
        if not request.num_preemptions:
            request.num_cached = request.num_computed
            self.prompt_tokens += len(request.prompt_ids)
            self.cached_tokens += request.num_cached
