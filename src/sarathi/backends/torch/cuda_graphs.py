"""CUDA graphs of decodes: a step of many small kernels is launched at once.

A graph is captured for some numbers of sequences; a step is padded to the next larger one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sarathi.backends.torch.attention_backend import Attention, PlannedAttention
from sarathi.backends.torch.step_inputs import (
    StepArrays,
    StepInputs,
    no_decodes,
    num_bytes,
    padded,
    resolve_tokens,
    upload,
)

_WARM_UPS = 2  # libraries set themselves up at their first use, which cannot be captured
# Close to each other where one more row is a large part of the step's time.
_SIZES = (1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, 513, 32))


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Return the numbers of sequences to capture graphs for, up to `largest`.

    Beyond the greatest of `_SIZES`, launching kernels one by one is faster than computing them.
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
        """Return the output of every row; valid until the next run.

        Args:
            received: hidden states of the previous stage, for the first rows.
            last_tokens: as for `resolve_tokens`; None where no token refers to a slot.
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
        """Capture a graph for each of `sizes`.

        Args:
            capture: makes a graph of steps that have the shapes of its argument.
            width: entries of the longest block table.
            spare_block: a block of no sequence; padding rows write to it.
        """
        self._sizes = sorted(sizes)
        self._width = width
        self._block_size = block_size
        self._spare_block = spare_block
        # The largest first: the smaller ones fit into the memory that it has taken.
        self._graphs = {size: capture(self._padding(size)) for size in reversed(self._sizes)}

    def accepts(self, arrays: StepArrays) -> bool:
        """Return whether a step has decodes only, and no more than the largest graph."""
        return arrays.only_decodes and len(arrays.contexts) <= max(self._sizes, default=0)

    def run(
        self,
        arrays: StepArrays,
        received: torch.Tensor | None,
        last_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output of a step's tokens, in order; valid until the next run.

        Args:
            arrays: of a step that `accepts` returns True for.
            received, last_tokens: as for `Graph.run`.
        """
        count = len(arrays.contexts)
        size = self._sizes[bisect_left(self._sizes, count)]
        return self._graphs[size].run(self._pad(arrays, size), received, last_tokens)[:count]

    def _pad(self, arrays: StepArrays, size: int) -> StepArrays:
        return padded(
            arrays,
            size=size,
            width=self._width,
            block_size=self._block_size,
            spare_block=self._spare_block,
        )

    def _padding(self, size: int) -> StepArrays:
        """Return a step of padding rows only."""
        return self._pad(no_decodes(), size)


class Forward(Protocol):
    """Computes a step on the device."""

    def __call__(
        self, inputs: StepInputs, planned: PlannedAttention, received: torch.Tensor | None
    ) -> torch.Tensor: ...


class GraphMemory:
    """Memory and stream that graphs share, since they never run at the same time."""

    def __init__(self) -> None:
        self.pool: tuple[int, int] = torch.cuda.graph_pool_handle()
        # One for all: libraries keep a workspace for every stream that they are used on.
        self.stream = torch.cuda.Stream()
        self._output: torch.Tensor | None = None

    def output(self, like: torch.Tensor) -> torch.Tensor:
        """Return memory for an output; the largest graph must be the first to call this.

        In a graph's own memory it could not be used again by another graph.
        """
        if self._output is None:
            self._output = torch.empty_like(like)
        return self._output[: len(like)]


class CudaGraph:
    """See `Graph`: one captured step, replayed on the inputs of others."""

    def __init__(
        self,
        arrays: StepArrays,
        forward: Forward,
        *,
        attention: Attention,
        received: torch.Tensor | None,
        memory: GraphMemory,
    ) -> None:
        """Capture `forward` on inputs that have the shapes of `arrays`.

        Args:
            received: memory for the previous stage's hidden states, [sequences, hidden_size].
        """
        self._attention = attention
        self._received = received
        arrays = attention.prepare(arrays, fixed_shape=True)
        self._buffer = torch.empty(num_bytes(arrays), dtype=torch.uint8, device="cuda")
        inputs = upload(arrays, self._buffer.device, self._buffer)
        # Kept, since the graph writes to memory of the plan.
        self._planned = planned = attention.plan(arrays, inputs)
        memory.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(memory.stream):
            for _ in range(_WARM_UPS):
                output = forward(inputs, planned, received)
        torch.cuda.current_stream().wait_stream(memory.stream)
        self._output = memory.output(output)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory.pool, stream=memory.stream):
            self._output.copy_(forward(inputs, planned, received))

    def run(
        self,
        arrays: StepArrays,
        received: torch.Tensor | None,
        last_tokens: torch.Tensor | None,
    ) -> torch.Tensor:
        arrays = self._attention.prepare(arrays, fixed_shape=True)
        inputs = upload(arrays, self._buffer.device, self._buffer)
        if last_tokens is not None:
            resolve_tokens(inputs.token_ids, last_tokens)
        if received is not None:
            assert self._received is not None
            self._received[: len(received)].copy_(received)
        self._graph.replay()
        return self._output
