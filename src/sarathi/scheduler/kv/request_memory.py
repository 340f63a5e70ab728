"""KV memory of requests: admission, growth, shared prefixes and release."""

from __future__ import annotations

from collections.abc import Collection

from sarathi.scheduler.kv.block_pool import BlockPool, block_hashes
from sarathi.scheduler.request import Request


class RequestMemory:
    """Reserves blocks for requests at admission and allocates them chunk by chunk."""

    def __init__(
        self, pool: BlockPool, *, reserve_tokens: int | None = None, prefix_caching: bool = True
    ) -> None:
        """Manage the blocks of `pool`.

        Args:
            reserve_tokens: reserved for every request at admission; None: its tokens so far.
            prefix_caching: whether requests share blocks of the same prefix.
        """
        self.pool = pool
        self._reserve_tokens = reserve_tokens
        self._prefix_caching = prefix_caching

    def cached_prefix(self, request: Request) -> list[int]:
        """Return the cached blocks that a waiting request begins with."""
        if not self._prefix_caching:
            return []
        self._hash_blocks(request)
        # The last token is always computed: the next one is sampled from it.
        full = (request.num_tokens - 1) // self.pool.block_size
        return self.pool.find_prefix(request.block_hashes[:full])

    def missing_blocks(self, request: Request, cached: list[int], headroom: int) -> int:
        """Return how many blocks are missing to admit a request; 0 or less if it can be admitted.

        `headroom` blocks are to stay available.
        """
        needed = self._blocks_to_reserve(request, cached) + self.pool.count_free(cached) + headroom
        return needed - self.pool.num_available

    def admit(self, request: Request, cached: list[int]) -> None:
        """Give a request its cached prefix, and reserve blocks for the rest of its prompt."""
        request.num_reserved = self._blocks_to_reserve(request, cached)
        self.pool.share(request, cached)
        self.pool.reserve(request.num_reserved)
        request.num_published = len(cached)
        request.num_computed = len(cached) * self.pool.block_size

    def num_blocks(self, request: Request) -> int:
        """Return how many blocks would become available without a request."""
        own = sum(self.pool.num_users(block) == 1 for block in request.blocks)
        return own + request.num_reserved

    def missing_to_grow(self, request: Request, num_tokens: int) -> int:
        """Return how many blocks for `num_tokens` tokens a request neither has nor has reserved."""
        return max(0, self.pool.missing(request, num_tokens) - request.num_reserved)

    def extend(self, request: Request, num_tokens: int) -> None:
        """Give a request the blocks for its first `num_tokens` tokens, reserved ones first."""
        missing = self.pool.missing(request, num_tokens)
        if missing:
            own = min(missing, request.num_reserved)
            request.num_reserved -= own
            self.pool.unreserve(own)
            self.pool.allocate(request, missing)

    def publish(self, request: Request) -> None:
        """Put the full blocks of a request that have been computed into the prefix cache."""
        full = request.num_computed // self.pool.block_size
        if self._prefix_caching and full > request.num_published:
            self._hash_blocks(request)
            for index in range(request.num_published, full):
                self.pool.publish(request.blocks[index], request.block_hashes[index])
            request.num_published = full

    def release(self, request: Request) -> None:
        """Free all blocks of a request: nothing of it is computed any more."""
        self.pool.unreserve(request.num_reserved)
        self.pool.release(request)
        request.num_computed = request.num_reserved = request.num_published = 0

    def check(self, requests: Collection[Request]) -> None:
        """Raise `AssertionError` if blocks or reservations are inconsistent."""
        self.pool.check(requests)
        if sum(request.num_reserved for request in requests) != self.pool.num_reserved:
            raise AssertionError("the pool and its user disagree about reserved blocks")

    def _blocks_to_reserve(self, request: Request, cached: list[int]) -> int:
        pool = self.pool
        if self._reserve_tokens is None:
            return pool.blocks_for(request.num_tokens) - len(cached)
        return min(pool.blocks_for(self._reserve_tokens), pool.num_blocks) - len(cached)

    def _hash_blocks(self, request: Request) -> None:
        """Extend a request's chain of hashes to all of its full blocks."""
        hashes = request.block_hashes
        size = self.pool.block_size
        start = len(hashes) * size
        if request.num_tokens - start >= size:
            rest = request.tokens(start, request.num_tokens - start)
            hashes.extend(block_hashes(rest, size, hashes[-1] if hashes else b""))
