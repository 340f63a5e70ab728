"""The time between tokens that an engine promises where no target is given.

It is derived from the fastest decode-only iteration that this and earlier starts have measured
under the same conditions, so that a busy moment does not become a promise. Measurements are kept
in the cache folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from sarathi.backends.executor_options import ExecutorOptions
from sarathi.backends.model_instance import InstancePart, fingerprint, versions
from sarathi.backends.registry import load_backend
from sarathi.engine.config import EngineConfig
from sarathi.engine.scheduler_factory import DerivedTarget, TypicalDecodes, derived_target
from sarathi.errors import ModelError
from sarathi.models.model import Model
from sarathi.system.cache_folder import cache_folder, cached_file, replace_file
from sarathi.system.machine import processor_name, usable_cores, usable_processors

_FORMAT = 1  # incremented when older files can no longer be used
_MAX_SECONDS = 1e5  # an iteration beyond means that the file is corrupt


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """All that determines how long an iteration takes, except the load of other processes."""

    processor: str
    processors: list[int]  # that the process may run on
    cores: int  # usable ones
    devices: list[str]  # GPUs; empty where processors compute
    hosts: list[str]  # of all processes; empty where all are on this machine
    versions: str
    model: str  # its fingerprint
    executor: str
    precision: str
    kv_precision: str
    deterministic: bool
    threads: int | None
    pp: int
    tp: int
    engines_here: int
    requests: int  # that decode
    context: int  # tokens of each


class MeasuredLatency(msgspec.Struct, frozen=True):
    """The time of a decode-only iteration."""

    seconds: float  # of one stage of a pipeline
    quiet: bool  # whether no other process computed; otherwise it is an estimate
    starts: int = 1  # that it is the fastest of


class _Entry(msgspec.Struct, frozen=True):
    format: int
    conditions: Conditions
    measured: MeasuredLatency


def measuring_conditions(
    model: Model,
    options: ExecutorOptions,
    config: EngineConfig,
    parts: Sequence[InstancePart],
    typical: TypicalDecodes,
    *,
    local: bool,
) -> Conditions:
    """Return what the speed of a loaded engine depends on.

    Args:
        parts: of the engine, loaded.
        local: whether all of them are on this machine.
    """
    return Conditions(
        processor=processor_name(),
        processors=sorted(usable_processors()),
        cores=usable_cores(),
        devices=list(load_backend(options).gpu_names),
        hosts=[] if local else sorted(part.host for part in parts),
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


def promised_target(conditions: Conditions, measured: MeasuredLatency) -> DerivedTarget:
    """Derive the target from the fastest start so far, this one included."""
    fastest = keep_fastest(conditions, measured)
    notes = ""
    if not fastest.quiet:
        notes += ", estimated on a busy machine"
    if fastest.starts > 1:
        notes += f", the fastest of {fastest.starts} starts"
    return derived_target(conditions.pp * fastest.seconds, notes)


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
    measured = entry.measured
    possible = 0 < measured.seconds < _MAX_SECONDS and math.isfinite(measured.seconds)
    usable = entry.format == _FORMAT and entry.conditions == conditions
    return measured if usable and possible and measured.starts > 0 else None


def _name(conditions: Conditions) -> str:
    digest = hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()
    return f"latency/{digest[:32]}.json"
