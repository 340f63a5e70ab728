"""The cost of iterations on a measured machine, fitted to the iteration log of a server."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from sarathi.errors import SimulationError
from sarathi.scheduler.budget.latency_model import fit_relative
from sarathi.simulator.cost_model import BatchShape, Jitter
from sarathi.telemetry.iteration_log import IterationLine

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


WANTED = 200  # iterations, of all kinds
_LEAST = 50  # for a fit
_SEGMENT = 50  # iterations that are held out together: consecutive ones are alike
_SEGMENTS = 4  # at least
_LONGEST_GAP = 0.05  # seconds between two iterations; beyond, the engine was idle


class FitError(msgspec.Struct, frozen=True):
    """Of predictions of iterations that were not used to make them: |predicted - real| / real."""

    count: int
    median: float
    p90: float

    def __str__(self) -> str:
        return (
            f"off by {self.median:.0%} in the median and {self.p90:.0%} at P90 "
            f"({self.count} iterations that were held out)"
        )


@dataclass(frozen=True)
class _Observed:
    shape: BatchShape
    model: float  # seconds
    engine: float  # seconds of the rest of the iteration, until the next one
    changed: bool  # other tokens than the iteration before

    @property
    def whole(self) -> float:
        return self.model + self.engine

    def expected(self, cost: MeasuredCost, change: float) -> float:
        whole = cost.overhead(self.shape) + cost.stages(self.shape)[0]
        return whole + (change if self.changed else 0.0)


def fit(logs: Sequence[Sequence[IterationLine]]) -> tuple[MeasuredNoise, FitError]:
    """Return the cost, within the noise around it, and the error of its predictions.

    Args:
        logs: of servers on the same machine with the same model, each from its start to its end.

    Raises:
        SimulationError: there are too few iterations.
    """
    observed = [found for log in logs for found in _observed(log)]
    if len(observed) < _LEAST:
        counts = " and ".join(str(num_iterations(log)) for log in logs) or "0"
        raise SimulationError(
            f"{counts} iterations were measured, expected at least {_LEAST} altogether: measure "
            "for longer, with --seconds, or when the machine is less busy"
        )
    cost, change = _fit(observed)
    size = min(_SEGMENT, len(observed) // _SEGMENTS)
    segments = [observed[at : at + size] for at in range(0, len(observed), size)]
    errors = []
    for own, others in ((0, 1), (1, 0)):
        used = [one for segment in segments[own::2] for one in segment]
        part, part_change = _fit(used)
        for segment in segments[others::2]:
            errors += [abs(one.expected(part, part_change) / one.whole - 1) for one in segment]
    errors.sort()
    noise = MeasuredNoise(
        change=change,
        factors=tuple(
            [
                round(one.whole / one.expected(cost, change), 4)
                for one in observed
                if kind(one.shape) == number
            ]
            for number in range(NUM_KINDS)
        ),
        cost=cost,
    )
    return noise, FitError(len(errors), errors[len(errors) // 2], errors[-len(errors) // 10])


def num_iterations(log: Sequence[IterationLine]) -> int:
    """Return the number of iterations that computed anything."""
    return sum(line.tokens > 0 for line in log)


def _observed(log: Sequence[IterationLine]) -> list[_Observed]:
    found = []
    before = 0
    for line, after in pairwise([*log, None]):
        if line is None or not line.tokens:
            continue
        model = line.parts["execute"]
        engine = line.duration - model
        if after is not None:
            gap = after.offset - line.offset - line.duration
            engine += gap if gap <= _LONGEST_GAP else 0.0
        chunks = tuple((part.start, part.length) for part in line.prompts)
        shape = BatchShape(len(line.decodes), line.context, chunks, line.samples, line.tokens)
        found.append(_Observed(shape, model, engine, line.tokens != before))
        before = line.tokens
    return found


def _fit(observed: Sequence[_Observed]) -> tuple[MeasuredCost, float]:
    """Return the cost, and what a change of the number of tokens adds to it."""
    rows = [
        (1.0, *pieces(s.tokens), s.attention, s.context, s.samples, one.changed)
        for one in observed
        for s in (one.shape,)
    ]
    fixed, *slopes, attention, context, samples, change = fit_relative(
        rows, [one.model for one in observed]
    )
    engine, engine_samples = fit_relative(
        [(1.0, one.shape.samples) for one in observed],
        [max(one.engine, 1e-6) for one in observed],
    )
    cost = MeasuredCost(
        fixed=fixed,
        slopes=tuple(slopes),
        attention=attention,
        context=context,
        samples=samples,
        engine=engine,
        engine_samples=engine_samples,
    )
    return cost, change
