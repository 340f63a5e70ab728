"""One captured step, replayed on the inputs of others."""

from __future__ import annotations

from typing import Protocol

import torch

from sarathi.backends.torch.attention_backend import Attention, PlannedAttention
from sarathi.backends.torch.step_inputs import (
    Carrier,
    Inputs,
    StepArrays,
    num_bytes,
    resolve_tokens,
)

_WARM_UPS = 2  # libraries set themselves up at their first use, which cannot be captured


class Forward(Protocol):
    def __call__(
        self, inputs: Inputs, planned: PlannedAttention, received: torch.Tensor | None
    ) -> torch.Tensor: ...


class GraphMemory:
    """What graphs share, since they never run at the same time."""

    def __init__(self) -> None:
        self.pool: tuple[int, int] = torch.cuda.graph_pool_handle()
        # One for all: libraries keep a workspace for every stream that they have seen.
        self.stream = torch.cuda.Stream()
        self._output: torch.Tensor | None = None

    def output(self, like: torch.Tensor) -> torch.Tensor:
        """Return memory for an output, of the largest graph first.

        In a graph's own memory it could not be used again by another graph.
        """
        if self._output is None:
            self._output = torch.empty_like(like)
        return self._output[: len(like)]


class CudaGraph:
    """See `graphs.Graph`."""

    def __init__(
        self,
        arrays: StepArrays,
        forward: Forward,
        *,
        attention: Attention,
        carrier: Carrier,
        received: torch.Tensor | None,
        memory: GraphMemory,
    ) -> None:
        """Capture `forward` on inputs that have the shapes of `arrays`.

        Args:
            received: room for what the stage before computes, [sequences, hidden_size].
        """
        self._attention = attention
        self._carrier = carrier
        self._received = received
        arrays = attention.prepare(arrays, fixed_shape=True)
        self._buffer = torch.empty(num_bytes(arrays), dtype=torch.uint8, device="cuda")
        inputs = carrier.send(arrays, self._buffer)
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
        inputs = self._carrier.send(arrays, self._buffer)
        if last_tokens is not None:
            resolve_tokens(inputs.token_ids, last_tokens)
        if received is not None:
            assert self._received is not None
            self._received[: len(received)].copy_(received)
        self._graph.replay()
        return self._output
