"""Names for the content of KV blocks, so that prompts that begin alike find it again."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_DIGEST_SIZE = 16  # bytes: two contents with one name are out of the question, even on purpose


def block_hashes(tokens: Sequence[int], block_size: int, parent: bytes = b"") -> Iterator[bytes]:
    """A hash for each full block of `tokens`.

    Hashes are chained: each stands for its block's tokens and all tokens before them, as the keys
    and values in it depend on those too.

    Args:
        parent: the hash of the block before the first one, empty at the beginning of a request.
    """
    for end in range(block_size, len(tokens) + 1, block_size):
        content = array("q", tokens[end - block_size : end]).tobytes()
        parent = blake2b(parent + content, digest_size=_DIGEST_SIZE).digest()
        yield parent
