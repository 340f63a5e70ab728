"""How long iterations take on this machine, measured before requests are served.

Where the user gives no target for the time between tokens, it is derived from the fastest
decode-only iteration that this and earlier starts have measured under the same conditions, so that
a busy moment does not become a promise. These measurements are kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import msgspec

from sarathi.backends.model_instance import InstancePart, fingerprint, versions
from sarathi.backends.registry import ExecutorOptions, load_backend
from sarathi.backends.runner import Runner
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.engine.config import EngineConfig
from sarathi.engine.iteration_timing import time_per_stage
from sarathi.engine.scheduler_factory import DerivedTarget, TypicalDecodes, derived_target
from sarathi.engine.startup.kv_cache_size import KvCache
from sarathi.errors import ModelError
from sarathi.models.model import Model
from sarathi.scheduler.budget.latency_model import LatencyModel, Work
from sarathi.system.cache_folder import cache_folder, cached_file, replace_file
from sarathi.system.cpu_contention import CpuTimes, cpu_times, undisturbed, was_quiet
from sarathi.system.machine import processor_name, usable_cores, usable_processors
from sarathi.telemetry.recorder import StageTime

_MAX_SECONDS = 2.0  # of measuring: no further kind of iteration is started beyond
_REPEAT_SECONDS = 1.6  # of measuring, until which all kinds are repeated
_MAX_RUNS = 8  # of each kind
NUM_BLOCKS = 64  # that are used on a CPU, if the cache has as many


class _Kind(NamedTuple):
    """An iteration: decodes of equal length beside one chunk of a prompt."""

    decodes: int
    context: int  # tokens that each decode has in the cache
    chunk: int = 0
    past: int = 0  # tokens of the prompt before the chunk


# The first two are always measured. Decodes with a context never share blocks and come after kinds
# that write to these, if only one token of each: shared blocks would be read from the processor's
# cache, and so would pages never written, which are all the same page. Real contexts are not.
_NUM_REQUIRED = 2
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
# Small chunks take no longer than reading the weights does, which is no measure of large ones.
_GPU_KINDS = (
    _Kind(1, 1),
    _Kind(0, 0, 16),
    _Kind(0, 0, 256),
    _Kind(0, 0, 1024),
    _Kind(32, 2048),
    _Kind(128, 256),
    _Kind(64, 1024),
    _Kind(0, 0, 512, 3584),
    _Kind(32, 1024, 512, 512),
    _Kind(0, 0, 2048),
    _Kind(16, 512, 1024, 2048),
)


class Clocks(NamedTuple):
    """The sources of times, in seconds."""

    wall: Callable[[], float] = time.perf_counter
    own: Callable[[], float] = time.process_time  # of all threads of this process
    machine: Callable[[], CpuTimes] = cpu_times


_CLOCKS = Clocks()


class Profile(NamedTuple):
    """The measured speed of this machine."""

    model: LatencyModel  # of iterations as they are now, under the present load of the machine
    decodes: float  # seconds of typical decodes without other processes
    quiet: bool  # whether no other process computed; otherwise `decodes` is an estimate


class _Runs(NamedTuple):
    """The shortest run of each kind, in seconds."""

    now: dict[Work, float]
    undisturbed: dict[Work, float]
    typical: Work | None  # None if there was no time for it
    quiet: bool


def profile(
    runner: Runner,
    cache: KvCache,
    on_progress: Callable[[str], None],
    typical: TypicalDecodes,
    threads: int | None = None,
    clocks: Clocks = _CLOCKS,
    *,
    gpu: bool = False,
) -> Profile:
    """Measure a few kinds of iterations and fit a latency model to them.

    Takes one or two seconds, or at least the time of two decodes and two chunks of 16 tokens for a
    model that is slow on this machine. Sampling is not included: the model learns its time from
    real iterations. The content of the first KV blocks is lost.

    Args:
        runner: with nothing in flight. With several stages, the times are those of one; see
            `stage_seconds`.
        cache: what it has allocated, and the longest sequence that it takes.
        on_progress: called with a line about each step.
        typical: the decodes that a latency target follows from.
        threads: of this process that compute; None if other processes or a GPU compute, too, so
            that the CPU time of this process is not all of it.
        gpu: whether it computes on GPUs, and the whole cache may be used.
    """
    on_progress("measuring the speed of this machine")
    runs = _measure(runner, cache, typical, threads, clocks, gpu)
    # Threads that wait for each other make the estimate too short: it is for a busy machine alone.
    times = runs.now if runs.quiet else runs.undisturbed
    if runs.typical is not None:
        decodes = times[runs.typical]
    else:
        decodes = LatencyModel.fit(list(times.items())).predict(typical.work)
    # Typical decodes share blocks, which makes reading their contexts too cheap. On a slow machine
    # nothing else may have contexts.
    others = [work for work in runs.now if work != runs.typical]
    fitted = others if any(work.context for work in others) else runs.now
    model = LatencyModel.fit([(work, runs.now[work]) for work in fitted])
    return Profile(model, decodes, runs.quiet)


def stage_seconds(seconds: float, stages: Sequence[StageTime]) -> float:
    """Return what a step adds to the time between two tokens; see `time_per_stage`.

    It took `seconds` from its beginning to its result, with no other step in flight.
    """
    if len(stages) == 1:
        return seconds
    return time_per_stage(stages, max(0.0, seconds - sum(stage.busy for stage in stages)))


def _measure(
    runner: Runner,
    cache: KvCache,
    typical: TypicalDecodes,
    threads: int | None,
    clocks: Clocks,
    gpu: bool,
) -> _Runs:
    """Run iterations of different kinds and return their seconds; see `profile`."""
    clock = clocks.wall
    if not gpu:
        cache = replace(cache, num_blocks=min(cache.num_blocks, NUM_BLOCKS))
    steps: dict[Work, Step] = {}
    now: dict[Work, list[float]] = {}
    alone: dict[Work, list[float]] = {}
    spent: dict[Work, float] = {}  # by the clock

    def run(work: Work) -> None:
        own, start = clocks.own(), clock()
        runner.submit(steps[work])
        stages = runner.result().stages
        elapsed = clock() - start
        spent[work] = spent.get(work, 0.0) + elapsed
        seconds = stage_seconds(elapsed, stages)
        now.setdefault(work, []).append(seconds)
        if threads is not None:
            seconds = undisturbed(seconds, clocks.own() - own, threads)
        alone.setdefault(work, []).append(seconds)

    before, begin = clocks.machine(), clock()
    largest = Work(0, 0.0, 0, 0)
    all_typical = _typical_parts(typical, cache)
    kinds = [_fitting_parts(kind, cache) for kind in (_GPU_KINDS if gpu else _KINDS)]
    kinds.insert(_NUM_REQUIRED, all_typical)
    for index, parts in enumerate(kinds):
        work = _work(parts)
        if not parts or work in steps:  # the same as another kind, once made to fit
            continue
        if index >= _NUM_REQUIRED:
            # In proportion to the largest, which overestimates; each runs twice.
            expected = 2 * spent[largest] * max(1.0, work.tokens / largest.tokens)
            if clock() - begin + expected > _MAX_SECONDS:
                continue
        steps[work] = join_parts(parts, cache.block_size)
        runner.submit(steps[work])  # prepares kernels for the shape
        runner.result()
        run(work)
        largest = max(largest, work)
    # Alternate, with the same time for each kind: when the machine is slow for a moment, by another
    # process or another tenant, all kinds are affected alike, and the shortest run of each is not.
    while clock() - begin < _REPEAT_SECONDS:
        unsure = [work for work, runs in now.items() if len(runs) < _MAX_RUNS]
        if not unsure:
            break
        run(min(unsure, key=lambda work: spent[work]))
    found = _work(all_typical)
    return _Runs(
        {work: min(runs) for work, runs in now.items()},
        {work: min(runs) for work, runs in alone.items()},
        found if found in now else None,
        threads is None or was_quiet(before, clocks.machine(), threads),
    )


def _typical_parts(typical: TypicalDecodes, cache: KvCache) -> list[StepPart]:
    """Return decodes as on a well used machine; none if a context does not fit into the cache.

    They share blocks: writing separate ones takes much longer than reading them. So they are a
    little too fast, by a fifth if keys and values are as large as weights.
    """
    blocks = cache.num_blocks
    each = -(-(typical.context + 1) // cache.block_size)
    if each > blocks or typical.context >= cache.max_model_len:
        return []
    contexts = blocks // each
    return [
        StepPart([0], typical.context, range(first, first + each), samples=True)
        for first in (each * (number % contexts) for number in range(typical.requests))
    ]


def _fitting_parts(kind: _Kind, cache: KvCache) -> list[StepPart]:
    """Return an iteration of a kind, smaller if the cache or the model's length requires it."""
    blocks, block_size, longest = cache.num_blocks, cache.block_size, cache.max_model_len
    for_decodes = blocks - 1 if kind.chunk else blocks
    decodes = min(kind.decodes, for_decodes)
    each = 0  # blocks
    parts = []
    if decodes:
        each = min(-(-(kind.context + 1) // block_size), for_decodes // decodes)
        context = min(kind.context, each * block_size - 1, longest - 1)
        for first in range(0, decodes * each, each):
            parts.append(StepPart([0], context, range(first, first + each), samples=True))
    if kind.chunk:
        free = range(decodes * each, blocks)
        longest = min(len(free) * block_size, longest)
        past = min(kind.past, longest // 2)
        parts.append(StepPart([0] * min(kind.chunk, longest - past), past, free, samples=True))
    return parts


def _work(parts: Sequence[StepPart]) -> Work:
    """Return the work of an iteration; one token counts as a decode, as in the scheduler."""
    tokens, attention, context = 0, 0.0, 0
    for part in parts:
        length = len(part.token_ids)
        tokens += length
        if length == 1:
            # The time of one token of context cannot be separated from that of the decode. If it is
            # all that is measured, on a slow machine, contexts would be given all of it.
            context += part.past if part.past > 1 else 0
        else:
            attention += length * (part.past + length / 2)
    return Work(tokens, attention, context, sum(part.samples for part in parts))


_FORMAT = 1  # incremented when older files can no longer be used


# All that determines how long an iteration takes, except the load of other processes.
Conditions = dict[str, Any]


class MeasuredLatency(msgspec.Struct, frozen=True):
    """The time of a decode-only iteration."""

    # Of one stage of a pipeline. With another time, a file is corrupt.
    seconds: Annotated[float, msgspec.Meta(gt=0, lt=1e5)]
    quiet: bool  # whether no other process computed; otherwise it is an estimate
    starts: Annotated[int, msgspec.Meta(ge=1)] = 1  # that it is the fastest of


class _Entry(msgspec.Struct, frozen=True):
    format: int
    conditions: Conditions
    measured: MeasuredLatency


def measuring_conditions(
    model: Model,
    options: ExecutorOptions,
    config: EngineConfig,
    part: InstancePart,
    typical: TypicalDecodes,
    hosts: list[str],
) -> Conditions:
    """Return what the speed of a loaded engine, of which `part` is one, depends on."""
    return {
        "processor": processor_name(),
        "processors": sorted(usable_processors()),  # that the process may run on
        "cores": usable_cores(),
        "devices": list(load_backend(options).gpu_names),  # empty where processors compute
        "hosts": hosts,  # of all processes; empty where all are on this machine
        "versions": versions(options.executor),
        "model": fingerprint(model),
        "executor": options.executor,
        "precision": part.precision,
        "kv_precision": part.kv_precision,
        "quantization": options.quantization,
        "kernels": part.kernels,
        "deterministic": options.deterministic,
        "threads": options.threads,
        "pp": config.pp,
        "tp": config.tp,
        "engines_here": config.engines_here,
        "requests": typical.requests,  # that decode
        "context": typical.context,  # tokens of each
    }


def promised_target(conditions: Conditions, measured: MeasuredLatency) -> DerivedTarget:
    """Derive the target from the fastest start so far, this one included."""
    fastest = keep_fastest(conditions, measured)
    notes = ""
    if not fastest.quiet:
        notes += ", estimated on a busy machine"
    if fastest.starts > 1:
        notes += f", the fastest of {fastest.starts} starts"
    return derived_target(conditions["pp"] * fastest.seconds, notes)


def keep_fastest(conditions: Conditions, measured: MeasuredLatency) -> MeasuredLatency:
    """Return the best of this measurement and those of earlier starts, and store it.

    A measurement on a quiet machine precedes any estimate; then the faster one counts. A file that
    cannot be read or written is no error: then only this start counts.
    """
    known = _read(conditions)
    if known is not None:
        fastest = min(known, measured, key=lambda one: (not one.quiet, one.seconds))
        measured = MeasuredLatency(fastest.seconds, fastest.quiet, known.starts + measured.starts)
    with suppress(OSError, ModelError):
        entry = _Entry(_FORMAT, conditions, measured)
        replace_file(cache_folder() / _name(conditions), msgspec.json.encode(entry))
    return measured


def _read(conditions: Conditions) -> MeasuredLatency | None:
    try:
        text = cached_file(_name(conditions)).read_bytes()
        entry = msgspec.json.decode(text, type=_Entry)
    except (OSError, ModelError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return entry.measured if (entry.format, entry.conditions) == (_FORMAT, conditions) else None


def _name(conditions: Conditions) -> str:
    digest = hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()
    return f"latency/{digest[:32]}.json"
