"""The pool of KV blocks: the single source of truth for who owns which block."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from sarathi.scheduler.request import Request


class BlockPool:
    """Fixed-size blocks of the KV cache, handed out by id.

    A block is *used* by one request, or by several whose tokens begin alike; or it is *cached*:
    nobody uses it, but it holds a prefix that somebody may ask for again; or it is empty. Both of
    the latter are free: cached blocks give way when room is needed, the least recently used first.

    Some free blocks are *reserved*: promised to prompts that have been admitted and whose later
    chunks will need them. Blocks are taken chunk by chunk, and yet a started prompt never waits
    for memory, because `reserved <= free` holds at all times.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens, got {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: the warmest block goes first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._users = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}  # of blocks whose content is known
        self._block_of: dict[bytes, int] = {}
        self._reserved = 0

    @property
    def num_free(self) -> int:
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_reserved(self) -> int:
        return self._reserved

    @property
    def num_available(self) -> int:
        """Free blocks that nobody has been promised."""
        return len(self._empty) + len(self._cached) - self._reserved

    def num_users(self, block: int) -> int:
        return self._users[block]

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that `request` lacks to hold its first `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(request.blocks))

    def reserve(self, count: int) -> None:
        """Promise `count` of the available blocks; `unreserve` ends it."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot reserve {count} of {self.num_available} available blocks")
        self._reserved += count

    def unreserve(self, count: int) -> None:
        if not 0 <= count <= self._reserved:
            raise ValueError(f"cannot give back {count} of {self._reserved} reserved blocks")
        self._reserved -= count

    def take(self, request: Request, count: int) -> None:
        """Give `request` `count` of the available blocks, to write to."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot take {count} of {self.num_available} available blocks")
        for _ in range(count):
            block = self._empty.pop() if self._empty else self._evict()
            self._users[block] = 1
            request.blocks.append(block)

    def release(self, request: Request) -> None:
        # From the end: the blocks that others are likelier to begin with are evicted later.
        for block in reversed(request.blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._empty.append(block)
        request.blocks.clear()

    # -- prefixes ---------------------------------------------------------------------------

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest known prefix of a chain of `hashes`."""
        found = []
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` are free."""
        return sum(not self._users[block] for block in blocks)

    def share(self, request: Request, blocks: Sequence[int]) -> None:
        """Give `request`, which owns none, blocks to read: as `find` returned them."""
        if self.num_idle(blocks) > self.num_available:
            raise ValueError("cannot share blocks that have been promised to others")
        for block in blocks:
            self._users[block] += 1
            self._cached.pop(block, None)
        request.blocks.extend(blocks)

    def publish(self, block: int, name: bytes) -> None:
        """Say that a used block is full, and what it holds. It must not be written any more."""
        if name not in self._block_of:  # two requests may compute the same side by side
            self._block_of[name] = block
            self._hash_of[block] = name

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def check(self, requests: Iterable[Request]) -> None:
        """Raise `AssertionError` unless every block is free or used by those who own it."""
        users = Counter(block for request in requests for block in request.blocks)
        if any(users[block] != count for block, count in enumerate(self._users)):
            raise AssertionError("the pool and the requests disagree about who uses which block")
        if sorted([*self._empty, *self._cached, *users]) != list(range(self.num_blocks)):
            raise AssertionError(
                f"{len(self._empty)} empty, {len(self._cached)} cached and {len(users)} used "
                f"blocks are not the {self.num_blocks} of the pool"
            )
        if not 0 <= self._reserved <= self.num_free:
            raise AssertionError(f"{self._reserved} of {self.num_free} free blocks are reserved")
        if not set(self._cached) <= set(self._hash_of):
            raise AssertionError("a cached block holds nothing that is known")
        if self._block_of != {name: block for block, name in self._hash_of.items()}:
            raise AssertionError("a prefix leads to a block that holds something else")
