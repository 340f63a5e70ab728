"""From a path and options to an engine that has proven itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sarathi.engine.config import ConfigError, EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.durations import in_words
from sarathi.engine.memory import num_kv_blocks
from sarathi.engine.messages import ModelInfo
from sarathi.engine.profile import NUM_BLOCKS, profile
from sarathi.engine.recorders import open_recorders
from sarathi.engine.sampler import Sampler
from sarathi.engine.scheduler import make_budget, make_scheduler, strict_target
from sarathi.executors import self_check
from sarathi.executors.openvino import OpenVinoExecutor
from sarathi.models.config import ModelConfig
from sarathi.models.model import open_model, open_tokenizer
from sarathi.scheduling import POLICIES, BlockPool, LatencyBudget, LatencyModel, Work

# The decodes of a processor that is well used; the paper's are 32 at 4096 tokens, on GPUs.
_DECODES, _CONTEXT = 32, 512
_REHEARSAL_BLOCKS = max(self_check.NUM_BLOCKS, NUM_BLOCKS)


def load_engine(
    path: Path, config: EngineConfig, report: Callable[[str], None]
) -> tuple[EngineCore, ModelInfo]:
    """Open, compile, allocate, check.

    Args:
        path: a Hugging Face folder or a GGUF file.
        report: called with a line about what begins.

    Raises:
        ModelError: the model cannot be read or is of no supported kind.
        ConfigError: an option does not fit the model or the machine's memory.
        ExecutorError: the processor cannot run it, or runs it wrongly.
    """
    recorders = open_recorders(config)
    report(f"reading {path.name}")
    model = open_model(path)
    max_model_len = _wanted_length(config, model.config)
    # The tokenizer knows of ends that the configuration may not, such as the end of a chat turn.
    with ThreadPoolExecutor(1) as beside:
        eos_ids = beside.submit(lambda: open_tokenizer(path).eos_ids)
        report("compiling")
        executor = OpenVinoExecutor(
            model.config,
            model.weights,
            max_position=max(max_model_len, self_check.MAX_POSITION),
            precision=config.precision,
            kv_precision=config.kv_precision,
            num_threads=config.threads,
            deterministic=config.deterministic,
        )
    num_blocks = num_kv_blocks(
        block_bytes=executor.block_bytes,
        block_size=executor.block_size,
        memory=config.kv_cache_memory,
        max_tokens=config.max_batch_size * max_model_len,
    )
    capacity = num_blocks * executor.block_size
    if capacity < max_model_len:
        if config.max_model_len is not None:
            raise ConfigError(
                f"a KV cache of {capacity} tokens ({num_blocks * executor.block_bytes / 1e6:.0f} "
                f"MB) is too small for one request of max_model_len {max_model_len}; give more "
                "with --kv-cache-memory or lower --max-model-len"
            )
        report(f"the KV cache limits requests to {capacity} tokens, the model to {max_model_len}")
        max_model_len = capacity
    shared = POLICIES[config.policy].hybrid
    if shared and config.token_budget is not None and config.token_budget < config.max_batch_size:
        report(
            f"warning: with a token budget of {config.token_budget}, prompts get little while "
            f"{config.token_budget} or more of up to {config.max_batch_size} requests decode"
        )
    latency_model = _rehearse(executor, report)
    executor.allocate(num_blocks)
    decodes, context = min(_DECODES, config.max_batch_size), min(_CONTEXT, max_model_len // 2)
    budget = make_budget(config, latency_model, strict_target(latency_model, decodes, context))
    shortest = latency_model.predict(Work(1, 0.0, 0, 1))
    if config.tbt_target is not None and config.tbt_target < shortest:
        report(
            f"warning: a target of {in_words(config.tbt_target)} between tokens cannot be met: "
            f"a token alone takes {in_words(shortest)}"
        )
    pool = BlockPool(num_blocks, executor.block_size)
    scheduler = make_scheduler(config, budget, latency_model, pool, max_model_len)
    sampler = Sampler(model.config.vocab_size)
    core = EngineCore(executor, scheduler, sampler, eos_ids.result(), recorders)
    info = ModelInfo(
        max_model_len=max_model_len,
        vocab_size=model.config.vocab_size,
        block_size=executor.block_size,
        num_blocks=num_blocks,
        precision=executor.precision,
        kv_precision=executor.kv_precision,
        policy=config.policy,
        token_budget=config.fixed_budget,
        tbt_target=budget.tbt_target if isinstance(budget, LatencyBudget) else None,
        max_batch_size=config.max_batch_size,
        order=config.order,
        fair_by=config.fair_by,
        deterministic=config.deterministic,
        prefix_caching=config.prefix_caching and not config.deterministic,
    )
    return core, info


def _rehearse(executor: OpenVinoExecutor, report: Callable[[str], None]) -> LatencyModel:
    """Find out whether the executor computes rightly and how fast, on a KV cache for that alone."""
    executor.allocate(_REHEARSAL_BLOCKS)
    with executor.warming_up():
        report("checking against the reference")
        executor.check()
        return profile(executor, report)


def _wanted_length(config: EngineConfig, model: ModelConfig) -> int:
    if config.max_model_len is None:
        return model.max_position
    if config.max_model_len > model.max_position:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for at most "
            f"{model.max_position} tokens"
        )
    return config.max_model_len
