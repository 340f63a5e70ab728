"""The time between tokens that an engine promises where nobody states one."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.backends.model_instance import InstancePart, fingerprint, versions
from sarathi.backends.options import ExecutorOptions
from sarathi.backends.registry import load_backend
from sarathi.engine.config import EngineConfig
from sarathi.engine.scheduler_factory import Target, TypicalDecodes, derived_target
from sarathi.engine.startup.latency_cache import Conditions, MeasuredLatency, keep_fastest
from sarathi.models.model import Model
from sarathi.system.machine import processor_name, usable_cores, usable_processors


def conditions(
    model: Model,
    options: ExecutorOptions,
    config: EngineConfig,
    parts: Sequence[InstancePart],
    typical: TypicalDecodes,
    *,
    here: bool,
) -> Conditions:
    """What the speed of an engine depends on.

    Args:
        parts: of the engine, loaded.
        here: whether all of them are on this machine.
    """
    return Conditions(
        processor=processor_name(),
        processors=sorted(usable_processors()),
        cores=usable_cores(),
        devices=list(load_backend(options).gpu_names),
        hosts=[] if here else sorted(part.host for part in parts),
        versions=versions(options.executor),
        model=fingerprint(model),
        executor=options.executor,
        precision=parts[0].precision,
        kv_precision=parts[0].kv_precision,
        deterministic=options.deterministic,
        threads=options.threads,
        pp=config.pp,
        tp=config.tp,
        engines_here=config.engines_here,
        requests=typical.requests,
        context=typical.context,
    )


def promised_target(found: Conditions, measured: MeasuredLatency) -> Target:
    """Derive it from the fastest start so far, which this one is then counted among."""
    fastest = keep_fastest(found, measured)
    remarks = []
    if not fastest.quiet:
        remarks.append("estimated on a busy machine")
    if fastest.starts > 1:
        remarks.append(f"the fastest of {fastest.starts} starts")
    return derived_target(found.pp * fastest.seconds, "".join(f", {remark}" for remark in remarks))
