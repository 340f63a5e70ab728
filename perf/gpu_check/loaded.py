"""The engine in this process: loaded once, then run under several policies."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from perf.gpu_check.context import Context
from perf.gpu_check.settings import Settings
from sarathi.backends.footprint import num_parameters
from sarathi.backends.runner import Runner
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.scheduler_factory import make_budget, make_scheduler
from sarathi.engine.startup.load import load_engine
from sarathi.scheduler import BlockPool, LatencyModel
from sarathi.simulator.simulated_model import config_folder
from sarathi.telemetry.recorder import Recorder

_KV_SHARE = 0.5  # of the GPU's memory: the remainder is for weights and Orca's large iterations
_UTILISATION = 0.85  # of the GPU's memory, that weights and KV cache take at most
_SLACK = 4e9  # bytes for everything else


@dataclass(frozen=True)
class LoadedEngine:
    """A model on the device, and what its start has measured."""

    runner: Runner
    latency_model: LatencyModel  # as profiled: engines correct a copy
    tbt_target: float  # seconds, derived from the device
    num_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int
    seconds: float  # of loading

    def core(self, config: EngineConfig, recorders: Sequence[Recorder] = ()) -> EngineCore:
        """Return an engine with a new scheduler, an empty KV cache and no requests.

        The one before must have no requests any more.
        """
        self.runner.abandon()  # steps of the engine before, if one has failed
        model = copy.deepcopy(self.latency_model)
        scheduler = make_scheduler(
            config,
            make_budget(config, model, self.tbt_target),
            model,
            BlockPool(self.num_blocks, self.block_size),
            self.max_model_len,
            look_ahead=self.runner.looks_ahead,
        )
        return EngineCore(self.runner, scheduler, (), recorders)


def cancel_all(core: EngineCore, names: Iterable[int]) -> None:
    """Cancel requests, and wait for the steps that they are in."""
    for name in names:
        core.cancel(name)
    while core.has_work:
        core.step()


def engine_config(settings: Settings, device: torch.device) -> EngineConfig:
    """Return how the model is loaded: random weights, the default policy."""
    return EngineConfig(
        executor="torch",
        device="cuda" if device.type == "cuda" else "cpu",
        load_format="dummy",
        max_model_len=settings.max_model_len,
        max_batch_size=settings.max_batch_size,
        kv_cache_memory=_kv_cache_memory(settings, device),
        # Tiny shapes on a processor that others use: threads would mostly wait for each other.
        threads=1 if device.type == "cpu" else None,
    )


def find_engine(context: Context) -> LoadedEngine:
    """Return the engine, loaded once a check."""
    found = context.findings.engine
    if found is None:
        context.progress(f"loading {context.settings.model.name} with random weights")
        found = load(context)
        context.findings.engine = found
    return found


def load(context: Context) -> LoadedEngine:
    """Load the model as `sarathi serve` does."""
    settings, began = context.settings, time.monotonic()
    core, info = load_engine(
        config_folder(settings.model),
        engine_config(settings, context.device),
        lambda line: context.progress(f"  {line}"),
    )
    scheduler = core.scheduler
    assert scheduler.latency_model is not None
    assert info.tbt_target is not None
    return LoadedEngine(
        runner=core.runner,
        latency_model=copy.deepcopy(scheduler.latency_model),
        tbt_target=info.tbt_target,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        seconds=time.monotonic() - began,
    )


def _kv_cache_memory(settings: Settings, device: torch.device) -> int | None:
    """Bytes of the KV cache; None on a CPU, where the default is right."""
    if device.type == "cpu":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    beside = _UTILISATION * total - 2 * num_parameters(settings.model.config) - _SLACK
    return max(1, int(min(_KV_SHARE * total, beside)))
