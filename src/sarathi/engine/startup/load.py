"""Load an engine: from a path and options to a loop that has been checked and profiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from sarathi.backends import self_check
from sarathi.backends.model_instance import InstancePart, SingleProcess
from sarathi.backends.parallel.pipeline import CONNECT_TIMEOUT, Pipeline
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.quantization import (
    Forms,
    choose_quantization,
    describe_forms,
    quantization_name,
    served_forms,
)
from sarathi.backends.registry import BACKENDS, ExecutorOptions, load_backend
from sarathi.engine import scheduler_factory
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import ModelInfo
from sarathi.engine.startup import profile
from sarathi.engine.startup.kv_cache_size import (
    KvCache,
    Memory,
    gigabytes,
    kv_cache,
    merge_memories,
    process_shares,
    requested_length,
)
from sarathi.models.model import Model, open_model, open_tokenizer
from sarathi.models.model_config import ModelConfig
from sarathi.models.tokenizers.grammar_tokenizer import whole_vocabulary
from sarathi.sampling.grammar_masks import GrammarMasks
from sarathi.scheduler import POLICIES, BlockPool, LatencyBudget, LatencyModel, Work
from sarathi.system.machine import available_memory, usable_cores
from sarathi.system.processes import LOCAL, Spawner
from sarathi.telemetry.iteration_log import IterationLog
from sarathi.telemetry.recorder import Recorder
from sarathi.telemetry.trace import TraceRecorder
from sarathi.units import format_duration

_TRIAL_BLOCKS = max(self_check.NUM_BLOCKS, profile.NUM_BLOCKS)
_LOG_INTERVAL = 2.0  # seconds between two lines about one process
_AVERAGED_TOKENS = 1024  # over which a token's bytes are averaged: quantised tokens share scales


def load_engine(
    path: Path,
    config: EngineConfig,
    on_progress: Callable[[str], None],
    spawner: Spawner = LOCAL,
    *,
    connecting: float = CONNECT_TIMEOUT,
    prepare_grammars: bool = False,
) -> tuple[EngineCore, ModelInfo]:
    """Read the model, start the other processes if there are any, allocate, check and profile.

    Args:
        path: a Hugging Face folder or a GGUF file.
        on_progress: called with a line about each step, mostly from this thread.
        spawner: starts the processes of other stages and ranks.
        connecting: seconds for them to start and connect.
        prepare_grammars: do at once what the first grammar needs, for up to a second, in which no
            other thread runs: for a server, whose other requests would have to wait.

    Raises:
        ModelError: the model cannot be read or is not supported, or its layers cannot be divided
            like that.
        ConfigError: an option does not fit the model or the memory.
        ExecutorError: a processor cannot run it, or runs it wrongly, or a process of the engine
            has failed, died or not connected.
    """
    recorders = open_recorders(config)
    on_progress(f"reading {path.name}")
    model = open_model(path, config.load_format)
    for warning in model.warnings:
        on_progress(f"warning: {warning}")
    max_model_len = requested_length(config, model.config)
    options = executor_options(config, max_model_len, own_cores=spawner.host is None)
    options = with_quantization(options, model, config.engines_here)
    forms = served_forms(model, options.quantization)
    if line := describe_forms(model, forms):
        on_progress(f"weights: {line}")
    layout = ParallelLayout(config.pp, config.tp)
    layout.check(model.config)
    log = _LoadLog(model.config, layout, on_progress)
    log.layout(options, forms)
    grammars = GrammarMasks(
        lambda: whole_vocabulary(open_tokenizer(path, config.load_format), model.config.vocab_size)
    )
    if prepare_grammars:
        grammars.prepare()
    # The tokenizer has end tokens that the configuration may lack, such as that of a chat turn.
    with ThreadPoolExecutor(1) as pool:
        eos_ids = pool.submit(lambda: open_tokenizer(path, config.load_format).eos_ids)
        instance = _load(path, model, options, layout, spawner, log, connecting)
    instance.runner.sampler_slots.grammars = grammars
    try:
        for warning in dict.fromkeys(line for part in instance.parts for line in part.warnings):
            on_progress(f"warning: {warning}")
        used = [Memory(one.memory, one.free, one.block_bytes, one.shared) for one in instance.parts]
        block_size = instance.parts[0].block_size
        cache = kv_cache(config, max_model_len, merge_memories(used), block_size)
        if cache.max_model_len < max_model_len:
            on_progress(
                f"the KV cache limits requests to {cache.max_model_len} tokens, the model to "
                f"{max_model_len}"
            )
        gpu = load_backend(options).uses_gpu
        typical = scheduler_factory.PAPER_DECODES if gpu else scheduler_factory.TYPICAL_DECODES
        typical = typical.fitting(config.max_batch_size, cache.max_model_len)
        trial = cache
        if not (gpu and cache.num_blocks >= _TRIAL_BLOCKS):
            # Little memory, so that what only the first steps need fits beside it.
            trial = KvCache(_TRIAL_BLOCKS, cache.block_size, instance.max_position)
        if gpu:
            on_progress("compiling kernels and capturing graphs")
        instance.allocate(trial.num_blocks)
        with instance.warming_up():
            on_progress("checking against the reference")
            instance.check_computing()
            # Those of this process; None if other processes or GPUs compute, too.
            alone = layout == ParallelLayout() and not gpu
            threads = (options.threads or usable_cores()) if alone else None
            found = profile.profile(instance.runner, trial, on_progress, typical, threads, gpu=gpu)
        latency_model, target = found.model, None
        if config.latency_budget and config.tbt_target is None:
            hosts = [] if spawner.host is None else sorted(part.host for part in instance.parts)
            part = instance.parts[0]
            conditions = profile.measuring_conditions(model, options, config, part, typical, hosts)
            target = profile.promised_target(
                conditions, profile.MeasuredLatency(found.decodes, found.quiet)
            )
        if trial is not cache:
            instance.allocate(cache.num_blocks)
        log.cache(cache, instance.parts)
        _warn(config, latency_model, on_progress)
        seconds = None if target is None else target.seconds
        budget = scheduler_factory.make_budget(config, latency_model, seconds, config.pp)
        core = EngineCore(
            instance.runner,
            scheduler_factory.make_scheduler(
                config,
                budget,
                latency_model,
                BlockPool(cache.num_blocks, cache.block_size),
                cache.max_model_len,
                micro_batches=config.pp,
                look_ahead=instance.runner.looks_ahead,
                # A GPU has memory for the step that was tried when its cache was sized.
                max_step_tokens=options.max_tokens if gpu else None,
            ),
            eos_ids.result(),
            recorders,
        )
    except BaseException:
        instance.close()
        raise
    part = instance.parts[0]
    info = ModelInfo(
        max_model_len=cache.max_model_len,
        vocab_size=model.config.vocab_size,
        hidden_size=model.config.hidden_size,
        block_size=cache.block_size,
        num_blocks=cache.num_blocks,
        precision=part.precision,
        kv_precision=part.kv_precision,
        quantization=quantization_name(options.quantization, forms),
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


def open_recorders(config: EngineConfig) -> tuple[Recorder, ...]:
    """Open, and empty, the files that the options ask for; `ConfigError` if one is not writable."""
    start, unit = time.monotonic(), config.budget_unit
    recorders: list[Recorder] = []
    if config.iteration_log is not None:
        recorders.append(IterationLog(config.iteration_log, start, unit))
    if config.trace is not None:
        recorders.append(TraceRecorder(config.trace, start, unit))
    return tuple(recorders)


def executor_options(
    config: EngineConfig,
    max_model_len: int,
    *,
    own_cores: bool = False,
) -> ExecutorOptions:
    """Return the options of the executors in all processes of an engine.

    `own_cores` says that all of them are on this machine.
    """
    return ExecutorOptions(
        load_format=config.load_format,
        executor=config.executor,
        device=config.device,
        precision=config.precision,
        kv_precision=config.kv_precision,
        quantization=config.quantization,
        kernels=config.kernels,
        threads=config.threads,
        deterministic=config.deterministic,
        own_cores=own_cores and config.engines_here == 1,
        first_gpu=config.number_here * config.pp * config.tp,
        max_position=max(max_model_len, self_check.MAX_POSITION),
        max_tokens=config.max_step_tokens(max_model_len),
        max_batch_size=config.max_batch_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
    )


def with_quantization(options: ExecutorOptions, model: Model, engines_here: int) -> ExecutorOptions:
    """Return the options with what `auto` means for this model, machine and its free memory."""
    if options.deterministic and options.quantization == "auto":
        # On some processors the plugin's products with integers depend on the rows beside.
        return msgspec.structs.replace(options, quantization="none")
    if not BACKENDS[options.executor].has_quantization:
        return msgspec.structs.replace(options, quantization="none")
    chosen = choose_quantization(
        model,
        options.quantization,
        int8_activations=load_backend(options).int8_activations,
        free=available_memory() // engines_here,
    )
    return msgspec.structs.replace(options, quantization=chosen)


class _LoadLog:
    """Progress lines about the processes of one engine."""

    def __init__(
        self, model: ModelConfig, layout: ParallelLayout, on_progress: Callable[[str], None]
    ) -> None:
        self._model = model
        self._layout = layout
        self._on_progress = on_progress
        self._logged = dict.fromkeys(layout.ranks, time.monotonic())
        self._names = {rank: str(rank) for rank in layout.ranks}
        if layout == ParallelLayout():
            self._names = dict.fromkeys(layout.ranks, "one process")
        stages = [stage.layers for stage in layout.stages(model)]
        self._layers = {
            rank: f"layers {stages[rank.stage].start} to {stages[rank.stage].stop - 1}"
            for rank in layout.ranks
        }

    def layout(self, options: ExecutorOptions, forms: Forms) -> None:
        """Log what each process will hold, before anything is loaded.

        `ExecutorError` if this machine does not compute in the precision asked for.
        """
        precisions = load_backend(options).choose_precisions()
        shares = process_shares(self._model, self._layout, *precisions, _AVERAGED_TOKENS, forms)
        weights = f"weights in {'integers and ' if forms else ''}{precisions[0]}"
        for share in shares:
            token = share.block_bytes / _AVERAGED_TOKENS / 1e3
            self._log(
                share.rank_id,
                f"{self._layers[share.rank_id]}, {gigabytes(share.weight_bytes)} of {weights}, "
                f"{token:.1f} kB of keys and values a token",
            )

    def progress(self, rank_id: RankId, share: float) -> None:
        """Log, now and then, the share of its tensors that a process has read."""
        now = time.monotonic()
        if now > self._logged[rank_id] + _LOG_INTERVAL:
            self._logged[rank_id] = now
            self._log(rank_id, f"{share:.0%} of {self._layers[rank_id]} read")

    def loaded(self, part: InstancePart) -> None:
        """Log that a process has loaded its part."""
        layers, size = self._layers[part.rank_id], gigabytes(part.weight_bytes)
        kernels = f"; kernels: {part.kernels}" if part.kernels else ""
        self._log(part.rank_id, f"{layers} loaded, {size} in {part.seconds:.1f} s{kernels}")

    def cache(self, cache: KvCache, parts: tuple[InstancePart, ...]) -> None:
        """Log the size of the KV cache and its memory in each process."""
        each = ", ".join(
            f"{gigabytes(cache.num_blocks * part.block_bytes)} in {self._names[part.rank_id]}"
            for part in parts
        )
        self._on_progress(f"keys and values of up to {cache.tokens} tokens: {each}")

    def _log(self, rank_id: RankId, line: str) -> None:
        self._on_progress(f"{self._names[rank_id]}: {line}")


def _load(
    path: Path,
    model: Model,
    options: ExecutorOptions,
    layout: ParallelLayout,
    spawner: Spawner,
    log: _LoadLog,
    connecting: float,
) -> SingleProcess | Pipeline:
    if layout == ParallelLayout():
        instance = SingleProcess(
            model, options, lambda share: log.progress(layout.engine_rank, share)
        )
        log.loaded(instance.parts[0])
        return instance
    pipeline = Pipeline(path, model, options, layout, spawner)
    try:
        pipeline.load(log.progress, log.loaded, connect_timeout=connecting)
    except BaseException:
        pipeline.close()
        raise
    return pipeline


def _warn(config: EngineConfig, model: LatencyModel, on_progress: Callable[[str], None]) -> None:
    """Warn about options that cannot have the effect they promise."""
    shared = POLICIES[config.policy].hybrid
    if shared and config.token_budget is not None and config.token_budget < config.max_batch_size:
        on_progress(
            f"warning: with a token budget of {config.token_budget}, prompts get little while "
            f"{config.token_budget} or more of up to {config.max_batch_size} requests decode"
        )
    # A token passes all stages, and the model predicts the time of one of them.
    shortest = config.pp * model.predict(Work(1, 0.0, 0, 1))
    if config.tbt_target is not None and config.tbt_target < shortest:
        on_progress(
            f"warning: a target of {format_duration(config.tbt_target)} between tokens cannot be "
            f"met: a token alone takes {format_duration(shortest)}"
        )
