"""KV memory of requests: admission, growth, prefixes that are shared, and giving it all back."""

from __future__ import annotations

from collections.abc import Iterable

from sarathi.scheduler.kv.block_hashes import block_hashes
from sarathi.scheduler.kv.block_pool import BlockPool
from sarathi.scheduler.request import Request


class KvMemory:
    """Promises blocks to requests and keeps the promises."""

    def __init__(
        self, pool: BlockPool, *, reserve_tokens: int | None = None, prefix_caching: bool = True
    ) -> None:
        """
        Args:
            reserve_tokens: promised to every request at admission; None: its tokens so far.
            prefix_caching: whether prompts that begin alike share blocks.
        """
        self.pool = pool
        self._reserve_tokens = reserve_tokens
        self._prefix_caching = prefix_caching
        self._promised: dict[int, int] = {}  # blocks, by request id

    def cached(self, request: Request) -> list[int]:
        """The blocks of a waiting request's prefix that are known."""
        if not self._prefix_caching:
            return []
        self._name_blocks(request)
        # The last token is computed in any case: the next one is sampled from it.
        full = (request.num_tokens - 1) // self.pool.block_size
        return self.pool.find(request.block_hashes[:full])

    def shortage(self, request: Request, cached: list[int], headroom: int) -> int:
        """Blocks that are missing to admit a request; 0 or less if it can be.

        Args:
            headroom: blocks that must be left.
        """
        needed = self._reserve(request, cached) + self.pool.num_idle(cached) + headroom
        return needed - self.pool.num_available

    def admit(self, request: Request, cached: list[int]) -> None:
        """Let a request begin, after its cached prefix, with room for all of its prompt."""
        reserve = self._reserve(request, cached)
        self.pool.share(request, cached)
        self.pool.reserve(reserve)
        self._promise(request, reserve)
        request.num_published = len(cached)
        request.num_computed = len(cached) * self.pool.block_size

    def held(self, request: Request) -> int:
        """Blocks that would become available without a request."""
        own = sum(self.pool.num_users(block) == 1 for block in request.blocks)
        return own + self._promised.get(request.id, 0)

    def _reserve(self, request: Request, cached: list[int]) -> int:
        pool = self.pool
        if self._reserve_tokens is None:
            return pool.blocks_for(request.num_tokens) - len(cached)
        return min(pool.blocks_for(self._reserve_tokens), pool.num_blocks) - len(cached)

    def lacking(self, request: Request, num_tokens: int) -> int:
        """Blocks that a request needs for `num_tokens` tokens, beyond its own and its promised."""
        missing = self.pool.missing(request, num_tokens)
        return max(0, missing - self._promised.get(request.id, 0)) if missing else 0

    def extend(self, request: Request, num_tokens: int) -> None:
        """Give a request the blocks for its first `num_tokens` tokens, promised ones first."""
        missing = self.pool.missing(request, num_tokens)
        if missing:
            promised = self._promised.get(request.id, 0)
            own = min(missing, promised)
            self.pool.unreserve(own)
            self.pool.take(request, missing)
            self._promise(request, promised - own)

    def publish(self, request: Request) -> None:
        """Make what has been computed of a request known to others, as far as blocks are full."""
        full = request.num_computed // self.pool.block_size
        if self._prefix_caching and full > request.num_published:
            self._name_blocks(request)
            for index in range(request.num_published, full):
                self.pool.publish(request.blocks[index], request.block_hashes[index])
            request.num_published = full

    def release(self, request: Request) -> None:
        self.pool.unreserve(self._promised.pop(request.id, 0))
        self.pool.release(request)
        request.num_computed = 0
        request.num_published = 0

    def check(self, requests: Iterable[Request]) -> None:
        """Raise `AssertionError` where blocks or promises contradict each other."""
        self.pool.check(requests)
        if sum(self._promised.values()) != self.pool.num_reserved:
            raise AssertionError("the pool and its user disagree about reserved blocks")

    def _promise(self, request: Request, count: int) -> None:
        if count:
            self._promised[request.id] = count
        else:
            self._promised.pop(request.id, None)

    def _name_blocks(self, request: Request) -> None:
        """Extend a request's chain of hashes to all of its full blocks."""
        hashes = request.block_hashes
        size = self.pool.block_size
        start = len(hashes) * size
        if request.num_tokens - start >= size:
            rest = request.tokens(start, request.num_tokens - start)
            hashes.extend(block_hashes(rest, size, hashes[-1] if hashes else b""))
