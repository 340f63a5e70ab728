"""This machine as simulated hardware: a cost fitted to iteration logs, its file, its setup."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from sarathi.engine.config import EngineConfig
from sarathi.engine.scheduler_factory import TYPICAL_DECODES
from sarathi.errors import SimulationError
from sarathi.scheduler.budget.latency_model import fit_relative
from sarathi.simulator.cost_model import BatchShape, Jitter
from sarathi.simulator.setup import Setup, engine_options
from sarathi.system.cache_folder import cache_folder, cached_file, replace_file
from sarathi.telemetry.iteration_log import IterationLine

# Tokens at which the cost of one more may change: few share the reading of weights.
KNOTS = (4, 16, 64)
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

    def whole(self, shape: BatchShape) -> float:
        """Return the seconds of an iteration."""
        return self.overhead(shape) + self.stages(shape)[0]

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
            return replayed * (1 + self.change / self.cost.whole(shape))

        return factor


def _replay(factors: Sequence[float], rng: random.Random) -> Iterator[float]:
    """Iterate over a list for ever, and jump to a random position now and then."""
    factors = factors or (1.0,)
    while True:
        at = rng.randrange(len(factors))
        for step in range(1, 101):
            yield factors[(at + step) % len(factors)]


WANTED = 200  # iterations, of all kinds
_LEAST = 50  # for a fit
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
        return cost.whole(self.shape) + (change if self.changed else 0.0)


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
    size = min(50, len(observed) // 4)  # held out together: consecutive iterations are alike
    segments = [observed[at : at + size] for at in range(0, len(observed), size)]
    errors = []
    for own, others in ((0, 1), (1, 0)):
        used = [one for segment in segments[own::2] for one in segment]
        part, part_change = _fit(used)
        for segment in segments[others::2]:
            errors += [abs(one.expected(part, part_change) / one.whole - 1) for one in segment]
    errors.sort()
    factors: tuple[list[float], ...] = ([], [], [])
    for one in observed:
        factors[kind(one.shape)].append(round(one.whole / one.expected(cost, change), 4))
    noise = MeasuredNoise(change=change, factors=factors, cost=cost)
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
    shapes = [one.shape for one in observed]
    fixed, *slopes, attention, context, samples, change = fit_relative(
        [
            (1.0, *pieces(s.tokens), s.attention, s.context, s.samples, one.changed)
            for one, s in zip(observed, shapes, strict=True)
        ],
        [one.model for one in observed],
    )
    engine, engine_samples = fit_relative(
        [(1.0, shape.samples) for shape in shapes], [max(one.engine, 1e-6) for one in observed]
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


NOTEWORTHY = 0.05  # share of the processors that other programs may have
_FORMAT = 1  # increased when older files can no longer be read


class MeasuredMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a machine, as it is kept in a file."""

    format: int = _FORMAT
    model: str  # as it was typed
    machine: str
    measured: str  # date
    num_blocks: int
    block_size: int
    max_model_len: int
    noise: MeasuredNoise  # and the cost
    error: FitError
    others: float | None = None  # share of the processors that other programs had; None: unknown


def machine_path(model: str, new: bool = False) -> Path:
    """Return where to read a model's file from, unless the user says otherwise.

    Args:
        new: where to write it; files that were delivered with the machine may be read-only.

    Raises:
        ModelError: as `cache_folder`.
    """
    name = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.") or "model"
    file = f"this-cpu/{name}.json"
    return cache_folder() / file if new else cached_file(file)


def save_machine(machine: MeasuredMachine, path: Path) -> None:
    """Write the file of a machine; raise SimulationError where it cannot be written."""
    try:
        replace_file(path, msgspec.json.encode(machine))
    except OSError as error:
        raise SimulationError(f"{path} cannot be written: {error.strerror or error}") from None


def load_machine(path: Path, model: str, machine: str) -> MeasuredMachine:
    """Read the file of a machine.

    Args:
        machine: this machine, as `describe_machine` returns it.

    Raises:
        SimulationError: there is none, or it is of another model or machine.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=MeasuredMachine)
    except FileNotFoundError:
        raise SimulationError(
            f"{model} was not measured on this machine yet: measure it with "
            f"`sarathi calibrate {model}`, which takes some minutes"
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SimulationError(f"{path} cannot be read: {error}") from None
    if found.format != _FORMAT:
        raise SimulationError(
            f"{path} has format {found.format}, this version reads {_FORMAT}: measure again"
        )
    for what, had, wanted in (("model", found.model, model), ("machine", found.machine, machine)):
        if had != wanted:
            raise SimulationError(f"{path} is of the {what} {had}, not of {wanted}: measure again")
    return found


def cpu_setup(
    machine: MeasuredMachine,
    config: EngineConfig,
    *,
    max_model_len: int | None = None,
    price: float | None = None,
) -> Setup:
    """Return a setup of the machine that was measured.

    Args:
        max_model_len: tokens; None: as it was measured.

    Raises:
        SimulationError: a request of that length would not fit into the KV blocks.
    """
    longest = machine.max_model_len if max_model_len is None else max_model_len
    blocks = f"{machine.num_blocks} KV blocks of {machine.block_size} tokens"
    most = machine.num_blocks * machine.block_size
    if longest > most:
        raise SimulationError(
            f"max_model_len is {longest}, expected at most {most}: the server that was measured "
            f"had {blocks}"
        )
    accuracy = f"iterations: {machine.error}"
    if machine.others is not None and machine.others >= NOTEWORTHY:
        accuracy += (
            f"; other programs had {machine.others:.0%} of the processors while it was measured"
        )
    return Setup(
        description={
            "model": machine.model,
            "device": "this-cpu",
            "machine": machine.machine,
            **engine_options(config, longest),
        },
        cost=machine.noise.cost,
        config=config,
        num_blocks=machine.num_blocks,
        block_size=machine.block_size,
        max_model_len=longest,
        num_replicas=1,
        devices_per_replica=1,
        router="round_robin",
        accuracy=accuracy,
        memory=f"{blocks}, as measured",
        price=price,
        noise=machine.noise,
        typical_decodes=TYPICAL_DECODES,  # the engine's own
    )
