"""From a path and options to an engine that has proven itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sarathi.backends import self_check
from sarathi.backends.model_instance import ModelInstance, SingleProcess
from sarathi.backends.options import ExecutorOptions
from sarathi.backends.parallel.pipeline import CONNECT_TIMEOUT, Pipeline
from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.backends.registry import load_backend
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import ModelInfo
from sarathi.engine.recorders import open_recorders
from sarathi.engine.scheduler_factory import (
    PAPER_DECODES,
    TYPICAL_DECODES,
    TypicalDecodes,
    make_budget,
    make_scheduler,
)
from sarathi.engine.startup.kv_cache_size import KvCache, kv_cache, memories, wanted_length
from sarathi.engine.startup.latency_cache import MeasuredLatency
from sarathi.engine.startup.latency_target import conditions, promised_target
from sarathi.engine.startup.load_report import LoadReport
from sarathi.engine.startup.profile import NUM_BLOCKS, Profile, profile
from sarathi.models.model import Model, open_model, open_tokenizer
from sarathi.scheduler import POLICIES, BlockPool, LatencyBudget, LatencyModel, Work
from sarathi.system.machine import usable_cores
from sarathi.system.processes import LOCAL, Spawner
from sarathi.units import format_duration

_TRIAL_BLOCKS = max(self_check.NUM_BLOCKS, NUM_BLOCKS)


def load_engine(
    path: Path,
    config: EngineConfig,
    report: Callable[[str], None],
    spawner: Spawner = LOCAL,
    *,
    connecting: float = CONNECT_TIMEOUT,
) -> tuple[EngineCore, ModelInfo]:
    """Open, start the other processes if there are any, load, allocate, check.

    Args:
        path: a Hugging Face folder or a GGUF file.
        report: called with a line about what begins, mostly from this thread.
        spawner: starts the processes of other stages and ranks.
        connecting: seconds for them to start and connect.

    Raises:
        ModelError: the model cannot be read or is of no supported kind, or its layers cannot be
            shared out like that.
        ConfigError: an option does not fit the model or the memory there is.
        ExecutorError: a processor cannot run it, or runs it wrongly, or a process of the engine
            has failed, died or not connected.
    """
    recorders = open_recorders(config)
    report(f"reading {path.name}")
    model = open_model(path, config.load_format)
    for warning in model.warnings:
        report(f"warning: {warning}")
    max_model_len = wanted_length(config, model.config)
    options = executor_options(config, max_model_len, own_cores=spawner.host is None)
    layout = ParallelLayout(config.pp, config.tp)
    layout.check(model.config)
    lines = LoadReport(model.config, layout, report)
    lines.layout(options)
    # The tokenizer knows of ends that the configuration may not, such as the end of a chat turn.
    with ThreadPoolExecutor(1) as beside:
        eos_ids = beside.submit(lambda: open_tokenizer(path, config.load_format).eos_ids)
        ensemble = _load(path, model, options, layout, spawner, lines, connecting)
    try:
        cache = kv_cache(
            config, max_model_len, memories(ensemble.parts), ensemble.parts[0].block_size
        )
        if cache.max_model_len < max_model_len:
            report(
                f"the KV cache limits requests to {cache.max_model_len} tokens, the model to "
                f"{max_model_len}"
            )
        gpu = load_backend(options).uses_gpu
        typical = PAPER_DECODES if gpu else TYPICAL_DECODES
        typical = typical.fitting(config.max_batch_size, cache.max_model_len)
        trial = cache
        if not (gpu and cache.num_blocks >= _TRIAL_BLOCKS):
            # Little memory, so that what only the first steps need fits beside it.
            trial = KvCache(_TRIAL_BLOCKS, cache.block_size, ensemble.max_position)
        if gpu:
            report("compiling kernels and capturing graphs")
        ensemble.allocate(trial.num_blocks)
        found = _try_out(ensemble, trial, typical, _own_threads(layout, options), gpu, report)
        latency_model, target = found.model, None
        if config.latency_budget and config.tbt_target is None:
            here = spawner.host is None
            known = conditions(model, options, config, ensemble.parts, typical, here=here)
            target = promised_target(known, MeasuredLatency(found.decodes, found.quiet))
        if trial is not cache:
            ensemble.allocate(cache.num_blocks)
        lines.cache(cache, ensemble.parts)
        _warn(config, latency_model, report)
        budget = make_budget(
            config, latency_model, None if target is None else target.seconds, config.pp
        )
        core = EngineCore(
            ensemble.runner,
            make_scheduler(
                config,
                budget,
                latency_model,
                BlockPool(cache.num_blocks, cache.block_size),
                cache.max_model_len,
                micro_batches=config.pp,
                look_ahead=ensemble.runner.looks_ahead,
                # A GPU has memory for the step that was tried when its cache was sized.
                max_step_tokens=options.max_tokens if gpu else None,
            ),
            eos_ids.result(),
            recorders,
        )
    except BaseException:
        ensemble.close()
        raise
    part = ensemble.parts[0]
    info = ModelInfo(
        max_model_len=cache.max_model_len,
        vocab_size=model.config.vocab_size,
        block_size=cache.block_size,
        num_blocks=cache.num_blocks,
        precision=part.precision,
        kv_precision=part.kv_precision,
        policy=config.policy,
        token_budget=config.fixed_budget,
        tbt_target=budget.tbt_target if isinstance(budget, LatencyBudget) else None,
        tbt_target_reason="" if target is None else target.reason,
        max_batch_size=config.max_batch_size,
        order=config.order,
        fair_by=config.fair_by,
        deterministic=config.deterministic,
        prefix_caching=config.prefix_caching and not config.deterministic,
        num_stages=config.pp,
        random_weights=config.load_format == "dummy",
    )
    return core, info


def executor_options(
    config: EngineConfig, max_model_len: int, *, own_cores: bool = False
) -> ExecutorOptions:
    """What every process is told of how to compute.

    Args:
        own_cores: whether all processes are on this machine, unless other engines are, too.
    """
    return ExecutorOptions(
        load_format=config.load_format,
        executor=config.executor,
        device=config.device,
        precision=config.precision,
        kv_precision=config.kv_precision,
        threads=config.threads,
        deterministic=config.deterministic,
        own_cores=own_cores and config.engines_here == 1,
        first_gpu=config.number_here * config.pp * config.tp,
        max_position=max(max_model_len, self_check.MAX_POSITION),
        max_tokens=config.max_step_tokens(max_model_len),
        max_batch_size=config.max_batch_size,
    )


def _load(
    path: Path,
    model: Model,
    options: ExecutorOptions,
    layout: ParallelLayout,
    spawner: Spawner,
    lines: LoadReport,
    connecting: float,
) -> ModelInstance:
    if layout == ParallelLayout():
        sole = SingleProcess(
            model, options, lambda share: lines.progress(layout.engine_rank, share)
        )
        lines.loaded(sole.parts[0])
        return sole
    pipeline = Pipeline(path, model, options, layout, spawner)
    try:
        pipeline.load(lines.progress, lines.loaded, connect_timeout=connecting)
    except BaseException:
        pipeline.close()
        raise
    return pipeline


def _own_threads(layout: ParallelLayout, options: ExecutorOptions) -> int | None:
    """Those of this process that compute; None where they are not all that does."""
    if layout != ParallelLayout() or load_backend(options).uses_gpu:
        return None
    return options.threads or usable_cores()


def _try_out(
    ensemble: ModelInstance,
    cache: KvCache,
    typical: TypicalDecodes,
    threads: int | None,
    gpu: bool,
    report: Callable[[str], None],
) -> Profile:
    """Find out whether it computes rightly and how fast.

    Args:
        cache: what has been allocated; its content is lost.
    """
    with ensemble.warming_up():
        report("checking against the reference")
        ensemble.check_computing()
        return profile(ensemble.runner, cache, report, typical, threads, gpu=gpu)


def _warn(config: EngineConfig, model: LatencyModel, report: Callable[[str], None]) -> None:
    """Warn of options whose effect cannot be had."""
    shared = POLICIES[config.policy].hybrid
    if shared and config.token_budget is not None and config.token_budget < config.max_batch_size:
        report(
            f"warning: with a token budget of {config.token_budget}, prompts get little while "
            f"{config.token_budget} or more of up to {config.max_batch_size} requests decode"
        )
    # A token passes all stages, and the model says what one of them takes.
    shortest = config.pp * model.predict(Work(1, 0.0, 0, 1))
    if config.tbt_target is not None and config.tbt_target < shortest:
        report(
            f"warning: a target of {format_duration(config.tbt_target)} between tokens cannot be "
            f"met: a token alone takes {format_duration(shortest)}"
        )
