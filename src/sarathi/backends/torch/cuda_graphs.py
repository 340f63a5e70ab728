"""CUDA graphs of decodes: a step of many small kernels is launched at once.

A graph is captured for some numbers of sequences; a step is padded to the next larger one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

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

# Computes a step of the captured shape. Gets its arrays, the previous stage's hidden states for the
# first rows, if there is one, and `last_tokens` of `resolve_tokens`, if a token refers to a slot.
# Returns the output of every row; valid until the next run.
Graph = Callable[[StepArrays, torch.Tensor | None, torch.Tensor | None], torch.Tensor]
# Computes a step on the device. Gets also the hidden states of the previous stage, if there is one.
Forward = Callable[[StepInputs, PlannedAttention, torch.Tensor | None], torch.Tensor]

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
        self._padded = partial(padded, width=width, block_size=block_size, spare_block=spare_block)
        # The largest first: the smaller ones fit into the memory that it has taken.
        self._graphs = {
            size: capture(self._padded(no_decodes(), size=size)) for size in reversed(self._sizes)
        }

    def accepts(self, arrays: StepArrays) -> bool:
        """Return whether a step has decodes only, and no more than the largest graph."""
        return arrays.only_decodes and len(arrays.contexts) <= max(self._sizes, default=0)

    def run(
        self,
        arrays: StepArrays,
        received: torch.Tensor | None,
        last_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run a step that `accepts` returns True for, as `Graph` does, without padding rows."""
        count = len(arrays.contexts)
        size = self._sizes[bisect_left(self._sizes, count)]
        return self._graphs[size](self._padded(arrays, size=size), received, last_tokens)[:count]


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
    """A `Graph`: one captured step, replayed on the inputs of others."""

    def __init__(
        self,
        arrays: StepArrays,
        forward: Forward,
        *,
        attention: Attention,
        received: torch.Tensor | None,
        memory: GraphMemory,
    ) -> None:
        """Capture `forward` on inputs that have the shapes of `arrays`, with `received` as memory
        for the previous stage's hidden states, [sequences, hidden_size]."""
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

    def __call__(
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
