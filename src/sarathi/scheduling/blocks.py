"""The pool of KV blocks: the single source of truth for who owns which block."""

from __future__ import annotations

from collections.abc import Iterable

from sarathi.scheduling.request import Request


class BlockPool:
    """Fixed-size blocks of the KV cache, handed out by id.

    Beside free and owned blocks there are *reserved* ones: free, but promised to prompts that
    have been admitted and whose later chunks will need them. Blocks are taken chunk by chunk, and
    yet a started prompt never waits for memory, because `reserved <= free` holds at all times.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens, got {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the warmest block goes first
        self._reserved = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_reserved(self) -> int:
        return self._reserved

    @property
    def num_available(self) -> int:
        """Free blocks that nobody has been promised."""
        return len(self._free) - self._reserved

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
        """Give `request` `count` of the available blocks."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot take {count} of {self.num_available} available blocks")
        request.blocks.extend(self._free.pop() for _ in range(count))

    def release(self, request: Request) -> None:
        self._free.extend(reversed(request.blocks))
        request.blocks.clear()

    def check(self, requests: Iterable[Request]) -> None:
        """Raise `AssertionError` unless every block is free or owned by exactly one request."""
        owned = [block for request in requests for block in request.blocks]
        if sorted(self._free + owned) != list(range(self.num_blocks)):
            raise AssertionError(
                f"{len(self._free)} free and {len(owned)} owned blocks are not the "
                f"{self.num_blocks} of the pool"
            )
        if not 0 <= self._reserved <= len(self._free):
            raise AssertionError(f"{self._reserved} of {len(self._free)} free blocks are reserved")
