"""A KV cache that keeps the tokens themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sarathi.backends.step import Step


class TokenCache:
    """What executors know of a sequence: only what steps have written to its KV blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._tokens = np.full((num_blocks, block_size), -1)

    def write(self, step: Step) -> Iterator[tuple[int, np.ndarray]]:
        """Write the tokens of a step; yield each row with its sequence up to that token."""
        size = self._tokens.shape[1]
        for index, past in enumerate(step.past_lens.tolist()):
            begin, end = step.query_starts[index : index + 2].tolist()
            first, last = step.block_starts[index : index + 2].tolist()
            blocks = step.block_ids[first:last]
            for row in range(begin, end):
                position = past + row - begin
                self._tokens[blocks[position // size], position % size] = step.token_ids[row]
                known = self._tokens[blocks].reshape(-1)[: position + 1]
                assert (known >= 0).all()
                yield row, known
