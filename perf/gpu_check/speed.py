"""How fast the engine computes: iterations of decodes, and prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from perf.gpu_check.ceilings import Ceilings
from perf.gpu_check.context import Context
from perf.gpu_check.decodes import decoding, greedy, random_prompts
from perf.gpu_check.idle import HostTimes, IdleShares, idle_shares
from perf.gpu_check.loaded import LoadedEngine, find_engine
from perf.gpu_check.settings import Settings
from sarathi.backends.footprint import num_parameters
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.models.model_config import ModelConfig

_NEEDED = 2.0  # seconds that a measurement takes, about


@dataclass(frozen=True)
class DecodeSpeed:
    """Iterations of one batch of decodes."""

    requests: int
    context: int  # tokens of each
    seconds: float  # of an iteration, median
    host: dict[str, float]  # seconds of an iteration, by what the host does


@dataclass(frozen=True)
class PromptSpeed:
    """Prompts under one token budget."""

    budget: int
    length: int  # tokens of each prompt
    tokens_per_second: float


@dataclass(frozen=True)
class Speed:
    """All of it."""

    decodes: tuple[DecodeSpeed, ...]
    prompts: tuple[PromptSpeed, ...]
    idle: IdleShares | None  # of the GPU; None where there is none, or no profile of it


def find_speed(context: Context) -> Speed:
    """Return the engine's speed, measured once a check."""
    found = context.findings.speed
    if found is None:
        found = measure_speed(context)
        context.findings.speed = found
    return found


def measure_speed(context: Context) -> Speed:
    """Time decodes and prompts.

    Raises:
        DeadlineError: there is no time left for the first measurements.
    """
    engine, settings = find_engine(context), context.settings
    decodes = []
    idle = None
    for count in settings.decode_batches:
        wanted = count * (settings.decode_context + 2 * settings.iterations)
        if wanted > engine.num_blocks * engine.block_size:
            context.note(f"{count} decodes at {settings.decode_context} exceed the KV cache")
            continue
        context.deadline.require(_NEEDED, f"iterations of {count} decodes")
        context.progress(f"timing iterations of {count} decodes")
        on_gpu = context.device.type == "cuda" and count == settings.idle_batch
        speed, shares = _decode_speed(engine, context, count, profiled=on_gpu)
        decodes.append(speed)
        idle = shares if on_gpu else idle
    if not decodes:
        raise RuntimeError("the KV cache holds no batch of decodes")
    prompts = []
    for budget in settings.prompt_budgets:
        context.deadline.require(_NEEDED, f"prompts under a budget of {budget} tokens")
        context.progress(f"timing prompts under a budget of {budget} tokens")
        prompts.append(_prompt_speed(engine, settings, budget))
    return Speed(tuple(decodes), tuple(prompts), idle)


def memory_bound(
    config: ModelConfig, ceilings: Ceilings, requests: int, context: int, itemsize: int
) -> float:
    """Return the seconds that reading weights and KV cache takes at the measured bandwidth.

    The embedding is left out: of it, an iteration reads one row a request.
    """
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    weights = num_parameters(config) - embedding
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim  # elements of one token
    return itemsize * (weights + requests * context * kv) / ceilings.bandwidth


def _decode_speed(
    engine: LoadedEngine, check: Context, count: int, *, profiled: bool
) -> tuple[DecodeSpeed, IdleShares | None]:
    """Time a batch, and find the idle shares where that is wanted and the profiler works."""
    settings, times = check.settings, HostTimes()
    core = engine.core(_config(settings, max(settings.prompt_budgets)), [times])
    iterations, context = settings.iterations, settings.decode_context
    shares = None
    with decoding(core, count, context, 2 * iterations, engine.vocab_size) as decodes:
        times.reset()
        seconds = median(decodes.iterate(iterations))
        host = times.per_iteration
        if profiled:
            try:
                shares = idle_shares(partial(decodes.iterate, iterations))
            except RuntimeError as error:  # containers may not be allowed to profile
                check.note(f"GPU idle not measured: {error}")
    return DecodeSpeed(count, context, seconds, host), shares


def _prompt_speed(engine: LoadedEngine, settings: Settings, budget: int) -> PromptSpeed:
    core = engine.core(_config(settings, budget))
    length = settings.prompt // 2
    warm_up, *prompts = random_prompts(1 + settings.num_prompts, length, engine.vocab_size, budget)
    _complete(core, [warm_up])
    began = time.perf_counter()
    _complete(core, prompts)
    seconds = time.perf_counter() - began
    return PromptSpeed(budget, length, settings.num_prompts * length / seconds)


def _complete(core: EngineCore, prompts: Sequence[Sequence[int]]) -> None:
    """Generate one token for each prompt."""
    for name, prompt in enumerate(prompts):
        core.submit(name, prompt, greedy(1), time.monotonic())
    while core.has_work:
        core.step()


def _config(settings: Settings, budget: int) -> EngineConfig:
    """A fixed budget, which no measured time changes."""
    return EngineConfig(
        token_budget=budget, max_batch_size=settings.max_batch_size, min_prefill_share=0.0
    )
