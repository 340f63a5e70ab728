"""The latency model that an engine on simulated hardware begins with."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.scheduler import LatencyModel, Work
from sarathi.simulator.cost_model import BatchShape, CostModel

_CHUNKS = (1, 16, 64, 128, 256, 512, 1024, 2048)
_DECODES = (1, 8, 32, 64, 128)
_DEPTHS = (0.0, 0.25, 0.5)  # of the longest request


def profile_latency(cost: CostModel, max_batch_size: int, max_model_len: int) -> LatencyModel:
    """Fit a model to iterations of many kinds, as an engine does at its start.

    With several pipeline stages it predicts one stage, since each has its part of the time between
    two tokens.
    """
    shapes = []
    for depth in _DEPTHS:
        past = int(depth * max_model_len)
        for length in _CHUNKS:
            if past + length <= max_model_len:
                shapes.append(BatchShape.make(chunks=((past, length),)))
        for decodes in {min(number, max_batch_size) for number in _DECODES}:
            shapes.append(BatchShape.make(decodes, max(past, 1)))
            for length in (128, 512):
                if past + length <= max_model_len:
                    shapes.append(BatchShape.make(decodes, max(past, 1), ((past, length),)))
    return LatencyModel.fit([(_work(shape), _seconds(cost, shape)) for shape in shapes])


def _seconds(cost: CostModel, shape: BatchShape) -> float:
    """Return the `stage_seconds` of an iteration."""
    return stage_seconds(cost.overhead(shape), cost.stages(shape), cost.hop(shape))


def stage_seconds(overhead: float, stages: Sequence[float], hop: float) -> float:
    """Return what a batch adds to the time between two tokens for each stage that it passes.

    The slowest stage keeps the others waiting; the engine's own time comes before the first, and
    the messages between stages are divided among them.
    """
    first, *others = stages
    if not others:
        return overhead + first
    return max(overhead + first, *others) + hop * len(others) / len(stages)


def _work(shape: BatchShape) -> Work:
    attention = sum(length * (start + length / 2) for start, length in shape.chunks)
    return Work(shape.tokens, attention, shape.context, shape.samples)
