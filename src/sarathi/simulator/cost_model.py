"""What the simulator asks of whoever knows how long things take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from sarathi.scheduler import Batch


class BatchShape(NamedTuple):
    """All that the time of an iteration depends on."""

    num_decodes: int
    context: int  # tokens of the decodes in the KV cache, of all together
    chunks: tuple[tuple[int, int], ...]  # of prompts: start and length
    samples: int  # rows that give a token
    tokens: int  # decodes and chunks

    @classmethod
    def of(cls, batch: Batch) -> BatchShape:
        work = batch.work
        chunks = tuple((part.start, part.length) for part in batch.slices[batch.num_decodes :])
        return cls(batch.num_decodes, work.context, chunks, work.samples, work.tokens)


class CostModel(Protocol):
    """Seconds of the parts of an iteration. Pure: the same shape takes the same time."""

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""

    def stages(self, shape: BatchShape) -> Sequence[float]:
        """How long each pipeline stage computes, all-reduces within it included."""

    def hop(self, shape: BatchShape) -> float:
        """From one stage to the next; nothing where there is one stage."""

    def overhead(self, shape: BatchShape) -> float:
        """In which the engine prepares and finishes an iteration and no stage computes for it."""


Jitter = Callable[[BatchShape], float]  # a factor for the time of an iteration


class Noise(Protocol):
    """How iterations of the same shape differ in time."""

    def jitter(self, seed: int) -> Jitter:
        """The same seed gives the same factors one after the other."""
