"""e. The paper's experiment: the same requests under its policies, at several rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from perf.gpu_check.context import Context
from perf.gpu_check.deadline import Deadline
from perf.gpu_check.loaded import LoadedEngine, find_engine
from perf.gpu_check.playback import play
from perf.gpu_check.settings import Settings
from perf.gpu_check.speed import Speed, find_speed
from sarathi.bench.workload.workload import Plan, Workload
from sarathi.engine.config import EngineConfig
from sarathi.telemetry import Summary, summarise

_WORKLOAD = "sharegpt"
_SEED = 0
_LENGTHS_FROM = 512  # requests, whose lengths the capacity is estimated from
_DRAIN = 0.5  # of a point's time, that its last answers may take after the last arrival
_LEAST_ARRIVALS = 0.3  # of a point's time, in which requests arrive in any case
_DRAWN_OUT = 2.0  # times as long as decodes alone that iterations with prompts take
_LEAST_SECONDS = 0.2  # of a point


@dataclass(frozen=True)
class Load:
    """The requests of one rate: the same for all policies."""

    rate: float  # requests a second
    share: float  # of the estimated capacity
    plan: Plan


@dataclass(frozen=True)
class Point:
    """One policy under one load."""

    policy: str
    config: EngineConfig
    load: Load
    summary: Summary


def run(context: Context) -> None:
    """Run every policy at every rate on the engine that is loaded.

    Raises:
        RuntimeError: a point failed; the others have been measured.
    """
    engine, speed = find_engine(context), find_speed(context)
    policies = policies_of(context.settings, engine)
    shares = context.settings.load_shares
    each = context.deadline.left / (len(policies) * len(shares))
    seconds = min(context.settings.point_seconds, each)
    loads = make_loads(context, engine, speed, seconds)
    errors = []
    # One rate after the other, so that a check that runs out of time has whole comparisons.
    points = [(load, name, config) for load in loads for name, config in policies.items()]
    for index, (load, name, config) in enumerate(points):
        limit = context.deadline.left / (len(points) - index)
        context.progress(f"{name}: {len(load.plan)} requests at {load.rate:g}/s")
        try:
            point = measure_point(engine, name, config, load, context.deadline.part(2 * limit))
        except (RuntimeError, ValueError) as error:  # such as no memory for an iteration
            errors.append(f"{name} at {load.rate:g}/s: {error}")
            context.note(errors[-1])
            continue
        context.findings.points.append(point)
        unfinished = point.summary.requests - point.summary.completed
        if unfinished:
            context.note(
                f"{name} at {load.rate:g}/s: {unfinished} of {point.summary.requests} requests "
                "did not finish in time and are in no latency"
            )
        context.data("points", [point_fields(one) for one in context.findings.points])
    if errors:
        raise RuntimeError(errors[0])


def policies_of(settings: Settings, engine: LoadedEngine) -> Mapping[str, EngineConfig]:
    """Return the configurations that are compared, by name."""
    size = settings.max_batch_size
    budget, target = settings.token_budget, engine.tbt_target
    return {
        f"sarathi, budget {budget}": EngineConfig(token_budget=budget, max_batch_size=size),
        f"sarathi, target {1e3 * target:.0f} ms": EngineConfig(
            tbt_target=target, max_batch_size=size
        ),
        "vllm": EngineConfig(policy="vllm", max_batch_size=size),
        "orca": EngineConfig(policy="orca", max_batch_size=size),
    }


def make_loads(context: Context, engine: LoadedEngine, speed: Speed, seconds: float) -> list[Load]:
    """Plan the requests of each rate, so that a point takes about `seconds`.

    Rates are shares of an estimated capacity. Answers are scaled down where waiting for the last
    of them would take most of a point's time.
    """
    settings = context.settings
    decode = _DRAWN_OUT * speed.decodes[-1].seconds
    for scale in settings.output_scales:
        workload = Workload.from_options(
            workload=_WORKLOAD, prompt_scale=settings.prompt_scale, output_scale=scale
        )
        sampled = workload.plan(1.0, _LENGTHS_FROM, 0, _SEED, engine.max_model_len)
        drain = float(sampled.outputs.max()) * decode
        if drain <= _DRAIN * seconds:
            break
    arriving = max(_LEAST_SECONDS, _LEAST_ARRIVALS * seconds, seconds - drain)
    capacity = estimated_capacity(sampled, speed)
    context.progress(f"estimated capacity: {capacity:.3g} requests a second")
    if scale != settings.output_scales[0]:
        context.note(f"answers have {scale:g} times the tokens of {_WORKLOAD}, to save time")
    context.data("output_scale", scale)
    context.data("prompt_scale", settings.prompt_scale)
    context.data("estimated_capacity", capacity)
    loads = []
    for share in settings.load_shares:
        rate = _rounded(share * capacity)
        count = max(1, min(settings.most_requests, round(rate * arriving)))
        plan = workload.plan(rate, count, 0, _SEED, engine.max_model_len)
        loads.append(Load(rate, share, plan))
    return loads


def estimated_capacity(plan: Plan, speed: Speed) -> float:
    """Return the requests a second that the engine computes if prompts and decodes alternate."""
    prompts = max(prompt.tokens_per_second for prompt in speed.prompts)
    batch = speed.decodes[-1]
    decode = batch.seconds / batch.requests
    return 1 / (float(plan.prompts.mean()) / prompts + float(plan.outputs.mean()) * decode)


def measure_point(
    engine: LoadedEngine, name: str, config: EngineConfig, load: Load, deadline: Deadline
) -> Point:
    """Play the requests of a load to an engine of that configuration."""
    core = engine.core(config)
    records = play(core, load.plan, engine.vocab_size, _SEED, deadline)
    summary = summarise(records, send_time=load.plan.measured_seconds)
    return Point(name, config, load, summary)


def point_fields(point: Point) -> dict[str, Any]:
    """Return a point as it is written to the file."""
    return {
        "policy": point.policy,
        "rate": point.load.rate,
        "share_of_capacity": point.load.share,
        "requests": len(point.load.plan),
        "summary": msgspec.to_builtins(point.summary),
    }


def _rounded(rate: float) -> float:
    """To two digits."""
    return round(rate, 1 - math.floor(math.log10(rate)))
