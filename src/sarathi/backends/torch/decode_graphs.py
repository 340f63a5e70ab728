"""CUDA graphs of decodes: a step of many small kernels is launched at once.

A graph is made for some numbers of sequences; a step takes the next larger one, filled up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sarathi.backends.torch.step_inputs import StepArrays, no_decodes, padded

# Close to each other where a row more takes long beside the rest of the step.
_SIZES = (1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, 513, 32))


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Numbers of sequences to capture graphs for, up to `largest`.

    Beyond the greatest of `_SIZES`, launching kernels one by one takes less than computing them.
    """
    sizes = [size for size in _SIZES if size <= largest]
    if largest < _SIZES[-1]:
        sizes.append(largest)
    return tuple(sorted(set(sizes)))


class Graph(Protocol):
    """Computes steps of one shape."""

    def run(
        self,
        arrays: StepArrays,
        received: torch.Tensor | None,
        last_tokens: torch.Tensor | None,
    ) -> torch.Tensor:
        """The output of every row; valid until the next run.

        Args:
            received: what the stage before has computed, for the first rows.
            last_tokens: as `resolve_tokens` takes them; None where no token names a slot.
        """


class DecodeGraphs:
    """Graphs by the number of sequences, all with block tables of the same width."""

    def __init__(
        self,
        sizes: Sequence[int],
        capture: Callable[[StepArrays], Graph],
        *,
        width: int,
        block_size: int,
        spare_block: int,
    ) -> None:
        """
        Args:
            capture: makes a graph of steps that are shaped as the one given.
            width: entries of the longest block table.
            spare_block: a block that no sequence has; rows that fill up write to it.
        """
        self._sizes = sorted(sizes)
        self._width = width
        self._block_size = block_size
        self._spare_block = spare_block
        # The largest first: the smaller ones fit into the memory that it has taken.
        self._graphs = {size: capture(self._nobody(size)) for size in reversed(self._sizes)}

    def takes(self, arrays: StepArrays) -> bool:
        return arrays.only_decodes and len(arrays.contexts) <= max(self._sizes, default=0)

    def run(
        self,
        arrays: StepArrays,
        received: torch.Tensor | None,
        last_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output of a step's tokens, in order; valid until the next run.

        Args:
            arrays: of a step that `takes` has accepted.
            received, last_tokens: as `Graph.run` takes them.
        """
        count = len(arrays.contexts)
        size = self._sizes[bisect_left(self._sizes, count)]
        return self._graphs[size].run(self._filled(arrays, size), received, last_tokens)[:count]

    def _filled(self, arrays: StepArrays, size: int) -> StepArrays:
        return padded(
            arrays,
            size=size,
            width=self._width,
            block_size=self._block_size,
            spare_block=self._spare_block,
        )

    def _nobody(self, size: int) -> StepArrays:
        """Rows that fill up and nothing else."""
        return self._filled(no_decodes(), size)
