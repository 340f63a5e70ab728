"""What iterations cost on this machine, measured before anyone is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from sarathi.executors.step import Part, Step, join_parts
from sarathi.scheduling.latency_model import LatencyModel, Work

_LIMIT = 2.0  # seconds of measuring that no further kind of iteration should exceed
_REPEATING = 1.6  # seconds of measuring until which all kinds are repeated
_MOST_RUNS = 8
NUM_BLOCKS = 64  # that are used where the cache has as many


class Executor(Protocol):
    """Runs steps; see `OpenVinoExecutor`."""

    max_position: int
    block_size: int
    num_blocks: int

    def execute(self, step: Step) -> object: ...


class _Kind(NamedTuple):
    """An iteration: decodes of equal length beside one chunk of a prompt."""

    decodes: int
    context: int  # tokens that each decode has in the cache
    chunk: int = 0
    past: int = 0  # tokens of the prompt before the chunk


# The first two are indispensable. Decodes with a context never share blocks and come after what
# writes to them, be it one token of each: shared blocks would be read from the processor's cache,
# and so would pages never written, which are all one and the same. Real contexts are not.
_INDISPENSABLE = 2
_KINDS = (
    _Kind(1, 1),
    _Kind(0, 0, 16),
    _Kind(0, 0, 64),
    _Kind(0, 0, 256),
    _Kind(NUM_BLOCKS, 1),
    _Kind(16, 120),
    _Kind(8, 250),
    _Kind(32, 20),
    _Kind(0, 0, 256, 768),
    _Kind(8, 90, 64),
    _Kind(0, 0, 64, 960),
)


def profile(
    executor: Executor,
    report: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyModel:
    """Measure a few kinds of iterations and fit a model to them.

    Takes one or two seconds; a model that is slow on this machine, the time of two decodes and two
    chunks of 16 tokens at least. Sampling is not in it: what that takes is learnt from real
    iterations. The content of the first KV blocks is lost.

    Args:
        report: called with a line about what begins.
        clock: seconds.
    """
    report("measuring the speed of this machine")
    return LatencyModel.fit(measure(executor, clock))


def measure(
    executor: Executor, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[Work, float]]:
    """Iterations of different kinds and their seconds; see `profile`."""
    steps: dict[Work, Step] = {}
    times: dict[Work, list[float]] = {}

    def run(work: Work) -> None:
        start = clock()
        executor.execute(steps[work])
        times[work].append(clock() - start)

    begin = clock()
    largest = Work(0, 0.0, 0, 0)
    for index, kind in enumerate(_KINDS):
        parts = _fitting_parts(kind, executor)
        work = _work(parts)
        if work in steps:  # the same as another kind, once made to fit
            continue
        if index >= _INDISPENSABLE:
            # In proportion to the largest, which overestimates; each runs twice.
            expected = 2 * times[largest][0] * max(1.0, work.tokens / largest.tokens)
            if clock() - begin + expected > _LIMIT:
                continue
        steps[work] = join_parts(parts, executor.block_size)
        executor.execute(steps[work])  # prepares kernels for the shape
        times[work] = []
        run(work)
        largest = max(largest, work)
    # In turns, each kind getting the same time: a spell in which the machine is slow, by another
    # process or another tenant, then hits all kinds alike, and the shortest run of each misses it.
    while clock() - begin < _REPEATING:
        unsure = [work for work, runs in times.items() if len(runs) < _MOST_RUNS]
        if not unsure:
            break
        run(min(unsure, key=lambda work: sum(times[work])))
    return [(work, min(runs)) for work, runs in times.items()]


def _fitting_parts(kind: _Kind, executor: Executor) -> list[Part]:
    """An iteration of a kind, smaller where the cache or the model's length asks for it."""
    blocks = min(executor.num_blocks, NUM_BLOCKS)
    for_decodes = blocks - 1 if kind.chunk else blocks
    decodes = min(kind.decodes, for_decodes)
    each = 0  # blocks
    parts = []
    if decodes:
        each = min(-(-(kind.context + 1) // executor.block_size), for_decodes // decodes)
        context = min(kind.context, each * executor.block_size - 1, executor.max_position - 1)
        for first in range(0, decodes * each, each):
            parts.append(Part([0], context, range(first, first + each), samples=True))
    if kind.chunk:
        rest = range(decodes * each, blocks)
        room = min(len(rest) * executor.block_size, executor.max_position)
        past = min(kind.past, room // 2)
        parts.append(Part([0] * min(kind.chunk, room - past), past, rest, samples=True))
    return parts


def _work(parts: Sequence[Part]) -> Work:
    """One token is a decode, as the scheduler sees it."""
    tokens, attention, context = 0, 0.0, 0
    for part in parts:
        length = len(part.token_ids)
        tokens += length
        if length == 1:
            context += part.past
        else:
            attention += length * (part.past + length / 2)
    return Work(tokens, attention, context, sum(part.samples for part in parts))
