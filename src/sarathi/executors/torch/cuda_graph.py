"""One captured step, replayed on the inputs of others."""

from __future__ import annotations

from typing import Protocol

import torch

from sarathi.executors.torch.attention import Attention, Planned
from sarathi.executors.torch.inputs import Carrier, Inputs, StepArrays, num_bytes, resolve_tokens

_WARM_UPS = 2  # libraries set themselves up at their first use, which cannot be captured


class Forward(Protocol):
    def __call__(
        self, inputs: Inputs, planned: Planned, received: torch.Tensor | None
    ) -> torch.Tensor: ...


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
        pool: tuple[int, int],
    ) -> None:
        """Capture `forward` on inputs that have the shapes of `arrays`.

        Args:
            received: room for what the stage before computes, [sequences, hidden_size].
            pool: memory that graphs share, since they never run at the same time.
        """
        self._attention = attention
        self._carrier = carrier
        self._received = received
        arrays = attention.prepare(arrays, fixed_shape=True)
        self._buffer = torch.empty(num_bytes(arrays), dtype=torch.uint8, device="cuda")
        inputs = carrier.send(arrays, self._buffer)
        # Kept, since the graph writes to memory of the plan.
        self._planned = planned = attention.plan(arrays, inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                forward(inputs, planned, received)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = forward(inputs, planned, received)

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
