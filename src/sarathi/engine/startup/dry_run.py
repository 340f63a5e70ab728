"""What a start would need, computed from the checkpoint's headers: nothing is loaded."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sarathi.backends.footprint import check_memory, num_parameters
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.quantization import describe_forms, served_forms
from sarathi.backends.registry import KvPrecision, Precision, load_backend
from sarathi.engine.config import EngineConfig, share_of_machine
from sarathi.engine.startup.kv_cache_size import (
    KvCache,
    Memory,
    ProcessShare,
    kv_cache,
    merge_memories,
    process_shares,
    requested_length,
)
from sarathi.engine.startup.load import executor_options, with_quantization
from sarathi.errors import ConfigError, ExecutorError
from sarathi.models.decoder import whole_model
from sarathi.models.dummy_weights import DummyWeights
from sarathi.models.model import Model, open_model
from sarathi.models.model_config import ModelConfig
from sarathi.models.tensor_layout import expected_shapes
from sarathi.system.machine import available_memory, usable_cores


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a model hold."""

    num_parameters: int
    num_bytes: int  # of the files
    formats: tuple[str, ...]  # of the tensors, that of most parameters first; none: random weights


@dataclass(frozen=True)
class Machine:
    """This machine, before anything is loaded."""

    cores: int
    free: int  # bytes
    gpus: tuple[int, ...] = ()  # free bytes of each that would be used


@dataclass(frozen=True)
class DryRun:
    """A start that was planned and not made."""

    model: ModelConfig
    checkpoint: Checkpoint
    layout: ParallelLayout
    machine: Machine
    precision: Precision
    kv_precision: KvPrecision
    quantised: str  # which stored types are served in which form; empty if none is
    block_size: int  # tokens
    threads: int  # of each process
    replicas: int
    shares: tuple[ProcessShare, ...]  # of one replica, in the order of the layout's ranks
    cache: KvCache | None  # of each replica; None if it cannot start
    refusal: ConfigError | ExecutorError | None  # why it cannot start

    @property
    def weight_bytes(self) -> int:
        """Of one replica; weights that several stages or ranks keep count for each."""
        return sum(share.weight_bytes for share in self.shares)

    @property
    def block_bytes(self) -> int:
        """Of one KV block of one replica."""
        return sum(share.block_bytes for share in self.shares)


def dry_run(path: Path, config: EngineConfig, *, replicas: int = 1, spread: bool = False) -> DryRun:
    """Plan a start of so many engines: the layout, the memory of each process and the KV cache.

    Args:
        spread: whether every stage of every replica has a machine like this one for itself;
            otherwise all of them are on this one.

    Raises:
        ModelError: the model cannot be read, or its layers cannot be divided like that.
        ConfigError: an option does not fit the model, whatever the memory.
        ExecutorError: the machine does not compute in the precision, or lacks a library.
    """
    if replicas > 1 and not spread:
        config = share_of_machine(config, replicas)
    model = open_model(path, config.load_format)
    max_model_len = requested_length(config, model.config)
    layout = ParallelLayout(config.pp, config.tp)
    layout.check(model.config)
    options = executor_options(config, max_model_len)
    options = with_quantization(options, model, config.engines_here)
    forms = served_forms(model, options.quantization)
    backend = load_backend(options)
    precision, kv_precision = backend.choose_precisions()
    machine = Machine(usable_cores(), available_memory(), backend.gpu_memory)
    block_size = backend.block_size
    shares = process_shares(model.config, layout, precision, kv_precision, block_size, forms)
    cache, refusal = None, None
    try:
        used = _memories(shares, machine, 1 if spread else replicas, spread)
        cache = kv_cache(config, max_model_len, merge_memories(used), block_size)
    except (ConfigError, ExecutorError) as error:
        refusal = error
    return DryRun(
        model=model.config,
        checkpoint=_checkpoint(model),
        layout=layout,
        machine=machine,
        precision=precision,
        kv_precision=kv_precision,
        quantised=describe_forms(model, forms),
        block_size=block_size,
        threads=config.threads
        or max(1, machine.cores // (layout.tp if spread else len(layout.ranks))),
        replicas=replicas,
        shares=shares,
        cache=cache,
        refusal=refusal,
    )


def _memories(
    shares: Sequence[ProcessShare], machine: Machine, engines: int, spread: bool
) -> Sequence[Memory]:
    """Return the memory of each process of one replica, as it is once it has its weights.

    So many engines share it. `ExecutorError` if the weights do not fit.
    """

    def memory(index: int, rank_id: RankId) -> tuple[str, int]:
        host = f"a machine with stage {rank_id.stage}" if spread else platform.node()
        if not machine.gpus:
            return host, machine.free
        number = (rank_id.rank if spread else index) % len(machine.gpus)
        return f"GPU {number} of {host}", machine.gpus[number]

    found = [memory(index, share.rank_id) for index, share in enumerate(shares)]
    taken = dict.fromkeys((name for name, _ in found), 0)
    for (name, _), share in zip(found, shares, strict=True):
        taken[name] += engines * share.weight_bytes
    for name, free in found:
        check_memory(taken[name], free)
    return [
        Memory(name, free - taken[name], share.block_bytes, shared=not machine.gpus)
        for (name, free), share in zip(found, shares, strict=True)
    ]


def _checkpoint(model: Model) -> Checkpoint:
    if isinstance(model.weights, DummyWeights):
        return Checkpoint(num_parameters(model.config), 0, ())
    counts: Counter[str] = Counter()
    for name, shape in expected_shapes(model.config, whole_model(model.config)).items():
        counts[model.weights.stored_type(name)] += math.prod(shape)
    return Checkpoint(
        num_parameters(model.config),
        sum(len(mapping) for mapping in model.weights.mappings),
        tuple(kind for kind, _ in counts.most_common()),
    )
