"""Hashes of the content of KV blocks, by which the prefix cache finds them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_DIGEST_SIZE = 16  # bytes; collisions are out of the question, even deliberate ones


def block_hashes(tokens: Sequence[int], block_size: int, parent: bytes = b"") -> Iterator[bytes]:
    """Yield a hash for each full block of `tokens`.

    Hashes are chained: each covers its block's tokens and all tokens before them, because the keys
    and values of the block depend on those too.

    Args:
        parent: hash of the block before the first one; empty at the beginning of a request.
    """
    for end in range(block_size, len(tokens) + 1, block_size):
        content = array("q", tokens[end - block_size : end]).tobytes()
        parent = blake2b(parent + content, digest_size=_DIGEST_SIZE).digest()
        yield parent
