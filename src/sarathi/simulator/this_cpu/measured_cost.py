"""The cost of iterations on a machine that was measured, and the noise around it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from sarathi.simulator.cost_model import BatchShape, Jitter

# Tokens at which the cost of one more may change: few share the reading of weights.
KNOTS = (4, 16, 64)
NUM_KINDS = 3
_REPLAYED = 100  # iterations between two jumps to a random position
LARGE = 512  # tokens, beyond what a latency budget gives an iteration on a processor


class MeasuredCost(msgspec.Struct, frozen=True, kw_only=True):
    """A `CostModel` of one stage. Times are seconds.

    The time of a batch on the model is

        fixed + sum over pieces of slope * tokens in the piece
              + attention * A + context * C + samples * S

    where A sums `length * (start + length / 2)` over chunks of prompts, C are the cached tokens of
    the decodes, and S the rows that sample a token. The pieces of tokens are bounded by `KNOTS`.
    """

    fixed: float
    slopes: tuple[float, ...]  # one more than there are knots
    attention: float
    context: float
    samples: float
    engine: float  # of the loop around the model, for each iteration
    engine_samples: float  # of that, for each token sampled

    @property
    def num_stages(self) -> int:
        return 1

    def stages(self, shape: BatchShape) -> Sequence[float]:
        """Return the seconds of the only stage."""
        seconds = (
            self.fixed
            + self.attention * shape.attention
            + self.context * shape.context
            + self.samples * shape.samples
        )
        for slope, tokens in zip(self.slopes, pieces(shape.tokens), strict=True):
            seconds += slope * tokens
        return (seconds,)

    def hop(self, shape: BatchShape) -> float:
        """Return 0: there is one stage."""
        return 0.0

    def overhead(self, shape: BatchShape) -> float:
        """Return the seconds of the loop around the model."""
        return self.engine + self.engine_samples * shape.samples


def kind(shape: BatchShape) -> int:
    """Return 0 for an iteration of decodes alone, 1 with chunks, 2 with many whole prompts."""
    if not shape.chunks:
        return 0
    return 1 if shape.tokens <= LARGE else 2


def pieces(tokens: int) -> list[int]:
    """Return how many of the tokens lie between each two knots."""
    ends = (0, *KNOTS, max(tokens, KNOTS[-1]))
    return [max(0, min(tokens, end) - begin) for begin, end in pairwise(ends)]


class MeasuredNoise(msgspec.Struct, frozen=True, kw_only=True):
    """How real iterations differed from the cost, in their order.

    They are replayed from random positions, since a machine that is slow stays so for a while:
    independent samples would give times between tokens too short a tail.
    """

    change: float  # seconds that an iteration of other tokens than the one before takes longer
    factors: tuple[list[float], ...]  # by `kind` of iterations: what a fit misses differs by it
    cost: MeasuredCost

    def jitter(self, seed: int) -> Jitter:
        """Return a replay of the factors; the same seed gives the same sequence."""
        rng = random.Random(seed)
        replays = [_replay(factors, rng) for factors in self.factors]
        latest = 0

        def factor(shape: BatchShape) -> float:
            nonlocal latest
            replayed = next(replays[kind(shape)])
            if shape.tokens == latest:
                return replayed
            latest = shape.tokens
            whole = self.cost.overhead(shape) + self.cost.stages(shape)[0]
            return replayed * (1 + self.change / whole)

        return factor


def _replay(factors: Sequence[float], rng: random.Random) -> Iterator[float]:
    """Iterate over a list for ever, and jump to a random position now and then."""
    factors = factors or (1.0,)
    while True:
        at = rng.randrange(len(factors))
        for step in range(1, _REPLAYED + 1):
            yield factors[(at + step) % len(factors)]
