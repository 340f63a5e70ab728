"""The pool of KV blocks, and the memory of each request in it.

The pool is the single source of truth for the owners of each block. The prefix cache finds blocks
by hashes of their content.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b

from sarathi.scheduler.request import Request

_DIGEST_SIZE = 16  # bytes; collisions are out of the question, even deliberate ones


def block_hashes(tokens: Sequence[int], block_size: int, parent: bytes = b"") -> Iterator[bytes]:
    """Yield a hash for each full block of `tokens`.

    Hashes are chained: each covers its block's tokens and all tokens before them, because the keys
    and values of the block depend on those too. `parent` is the hash of the block before the first.
    """
    for end in range(block_size, len(tokens) + 1, block_size):
        content = array("q", tokens[end - block_size : end]).tobytes()
        parent = blake2b(parent + content, digest_size=_DIGEST_SIZE).digest()
        yield parent


class BlockPool:
    """Fixed-size blocks of the KV cache, allocated by id.

    A block is *used* by one request, or by several that share a prefix; or *cached*: no request
    uses it, but it holds a prefix that later requests may share; or empty. Cached and empty blocks
    are free: cached ones are evicted when no empty block is left, least recently used first.

    Some free blocks are *reserved* for later chunks of admitted prompts. Blocks are allocated
    chunk by chunk, and yet a started prompt never waits for memory, because `reserved <= free`
    holds at all times.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens, got {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: the last freed goes first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._users = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}  # of blocks whose content is known
        self._block_of: dict[bytes, int] = {}
        self._reserved = 0

    @property
    def num_free(self) -> int:
        """Blocks that no request uses, cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Free blocks that hold a prefix."""
        return len(self._cached)

    @property
    def num_reserved(self) -> int:
        """Free blocks that are reserved."""
        return self._reserved

    @property
    def num_available(self) -> int:
        """Free blocks that are not reserved."""
        return len(self._empty) + len(self._cached) - self._reserved

    def num_users(self, block: int) -> int:
        """Return how many requests use a block."""
        return self._users[block]

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def missing(self, request: Request, num_tokens: int) -> int:
        """Return how many more blocks `request` needs for its first `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(request.blocks))

    def reserve(self, count: int) -> None:
        """Reserve `count` of the available blocks."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot reserve {count} of {self.num_available} available blocks")
        self._reserved += count

    def unreserve(self, count: int) -> None:
        """Make `count` reserved blocks available again."""
        if not 0 <= count <= self._reserved:
            raise ValueError(f"cannot give back {count} of {self._reserved} reserved blocks")
        self._reserved -= count

    def allocate(self, request: Request, count: int) -> None:
        """Give `count` of the available blocks to `request`, to write to."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot allocate {count} of {self.num_available} available blocks")
        for _ in range(count):
            block = self._empty.pop() if self._empty else self._evict()
            self._users[block] = 1
            request.blocks.append(block)

    def release(self, request: Request) -> None:
        """Free the blocks of `request`, or its share in them."""
        # From the end, so that the blocks likeliest to be shared are evicted last.
        for block in reversed(request.blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._empty.append(block)
        request.blocks.clear()

    def find_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks that hold the longest cached prefix of a chain of `hashes`."""
        found = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def count_free(self, blocks: Sequence[int]) -> int:
        """Return how many of `blocks` are free."""
        return sum(not self._users[block] for block in blocks)

    def share(self, request: Request, blocks: Sequence[int]) -> None:
        """Give the blocks that `find_prefix` returned to `request`, which has none, to read."""
        if self.count_free(blocks) > self.num_available:
            raise ValueError("cannot share blocks that are reserved")
        for block in blocks:
            self._users[block] += 1
            self._cached.pop(block, None)
        request.blocks.extend(blocks)

    def add_to_cache(self, block: int, block_hash: bytes) -> None:
        """Put a full block into the prefix cache. It must not be written to any more."""
        if block_hash not in self._block_of:  # two requests may compute the same side by side
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def check(self, requests: Iterable[Request]) -> None:
        """Raise `AssertionError` unless every block is free or used by the right requests."""
        users = Counter(block for request in requests for block in request.blocks)
        if any(users[block] != count for block, count in enumerate(self._users)):
            raise AssertionError("the pool and the requests disagree about the users of a block")
        if sorted([*self._empty, *self._cached, *users]) != list(range(self.num_blocks)):
            raise AssertionError(
                f"{len(self._empty)} empty, {len(self._cached)} cached and {len(users)} used "
                f"blocks are not the {self.num_blocks} of the pool"
            )
        if not 0 <= self._reserved <= self.num_free:
            raise AssertionError(f"{self._reserved} of {self.num_free} free blocks are reserved")
        if not set(self._cached) <= set(self._hash_of):
            raise AssertionError("a cached block has no hash")
        if self._block_of != {found: block for block, found in self._hash_of.items()}:
            raise AssertionError("a hash leads to a block with another one")


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
        full = request.max_cached // self.pool.block_size
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
        request.num_cached_blocks = len(cached)
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

    def cache_blocks(self, request: Request) -> None:
        """Put the full blocks of a request that have been computed into the prefix cache."""
        full = request.num_computed // self.pool.block_size
        if self._prefix_caching and full > request.num_cached_blocks:
            self._hash_blocks(request)
            for index in range(request.num_cached_blocks, full):
                self.pool.add_to_cache(request.blocks[index], request.block_hashes[index])
            request.num_cached_blocks = full

    def release(self, request: Request) -> None:
        """Free all blocks of a request: nothing of it is computed any more."""
        self.pool.unreserve(request.num_reserved)
        self.pool.release(request)
        request.num_computed = request.num_reserved = request.num_cached_blocks = 0

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
