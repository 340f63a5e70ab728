"""The interface of cost models: how long the parts of an iteration take, on GPU and host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sarathi.scheduler import Batch


class BatchShape(NamedTuple):
    """Everything that the time of an iteration depends on."""

    num_decodes: int
    context: int  # tokens of the decodes in the KV cache, summed over the decodes
    chunks: tuple[tuple[int, int], ...]  # of prompts: start and length
    samples: int  # rows that sample a token
    tokens: int  # decodes and chunks

    @classmethod
    def of(cls, batch: Batch) -> BatchShape:
        """Return the shape of a scheduled batch."""
        work = batch.work
        chunks = tuple((part.start, part.length) for part in batch.slices[batch.num_decodes :])
        return cls(batch.num_decodes, work.context, chunks, work.samples, work.tokens)

    @classmethod
    def make(
        cls,
        num_decodes: int = 0,
        mean_context: int = 0,
        chunks: tuple[tuple[int, int], ...] = (),
        samples: int | None = None,
    ) -> BatchShape:
        """Return the shape of decodes beside chunks.

        Args:
            mean_context: tokens of each decode in the KV cache.
            samples: None: each decode and each chunk samples a token.
        """
        tokens = num_decodes + sum(length for _, length in chunks)
        rows = num_decodes + len(chunks) if samples is None else samples
        return cls(num_decodes, num_decodes * mean_context, chunks, rows, tokens)

    @property
    def attention(self) -> float:
        """See `Work.attention`."""
        return sum(length * (start + length / 2) for start, length in self.chunks)


class CostModel(Protocol):
    """Seconds of the parts of an iteration. Pure: the same shape takes the same time."""

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""

    def stages(self, shape: BatchShape) -> Sequence[float]:
        """Return how long each pipeline stage computes, all-reduces within it included."""

    def hop(self, shape: BatchShape) -> float:
        """Return the time from one stage to the next; 0 where there is one stage."""

    def overhead(self, shape: BatchShape) -> float:
        """Return the time of the engine before and after the model, when no stage computes."""


Jitter = Callable[[BatchShape], float]  # a factor for the time of an iteration


class Noise(Protocol):
    """How iterations of the same shape differ in time."""

    def jitter(self, seed: int) -> Jitter:
        """Return a source of factors; the same seed gives the same sequence."""


def iteration_seconds(cost: CostModel, shape: BatchShape) -> float:
    """Return the time of an iteration through all stages of an idle pipeline."""
    hops = (cost.num_stages - 1) * cost.hop(shape)
    return cost.overhead(shape) + sum(cost.stages(shape)) + hops


def stage_seconds(overhead: float, stages: Sequence[float], hop: float) -> float:
    """Return what a batch adds to the time between two tokens for each stage that it passes.

    The slowest stage keeps the others waiting; the engine's own time comes before the first, and
    the messages between stages are divided among them.
    """
    first, *others = stages
    if not others:
        return overhead + first
    return max(overhead + first, *others) + hop * len(others) / len(stages)


@dataclass(frozen=True)
class EngineOverhead:
    """Seconds in which no stage computes for the iteration."""

    name: str
    iteration: float = 0.0
    distributed: float = 0.0  # more for each iteration, from two workers on
    sequence: float = 0.0
    prompt_token: float = 0.0
    source: str = ""

    def seconds(self, sequences: int, prompt_tokens: int, workers: int) -> float:
        """Return the overhead of one iteration."""
        fixed = self.iteration + (self.distributed if workers > 1 else 0.0)
        return fixed + self.sequence * sequences + self.prompt_token * prompt_tokens


OVERHEADS = {
    overhead.name: overhead
    for overhead in (
        EngineOverhead("none", source="an engine that takes no time"),
        EngineOverhead(
            "sarathi",
            iteration=0.66e-3,
            sequence=10e-6,
            source="this project's loop, all but the model, greedy: 0.98 ms with 32 running "
            "requests, 1.95 ms with 128 (docs/perf.md, on two cores of a server processor); "
            "its share with several workers is unknown",
        ),
        EngineOverhead(
            "paper",
            iteration=1.0e-3,
            distributed=6.3e-3,
            sequence=50e-6,
            source="profiles of the processor's time published with Vidur, of an engine in Python "
            "that reaches its workers through Ray: 1.0 ms and 0.05 ms a sequence, 6.3 ms with two "
            "workers and more",
        ),
    )
}
