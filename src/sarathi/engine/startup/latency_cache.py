"""How fast this machine was in earlier starts, so that a busy moment does not become a promise."""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress

import msgspec

from sarathi.errors import ModelError
from sarathi.system.cache_folder import cache_folder, cached_file, replace_file

_FORMAT = 1  # goes up when files of before can no longer be used
_LONGEST = 1e5  # seconds; an iteration beyond is a fault of the file


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides how long an iteration takes, but for what else the machine does."""

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
    """A decode-only iteration."""

    seconds: float  # of one stage of a pipeline
    quiet: bool  # whether nobody else computed; otherwise that is an estimate
    starts: int = 1  # that it is the fastest of


class _Entry(msgspec.Struct, frozen=True):
    format: int
    conditions: Conditions
    measured: MeasuredLatency


def keep_fastest(conditions: Conditions, measured: MeasuredLatency) -> MeasuredLatency:
    """Compare with what earlier starts have measured, and keep the better for later ones.

    What was measured on a quiet machine counts before any estimate, and then what was faster. A
    file that cannot be read or written is no error: then this start stands for itself.
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
    possible = 0 < measured.seconds < _LONGEST and math.isfinite(measured.seconds)
    usable = entry.format == _FORMAT and entry.conditions == conditions
    return measured if usable and possible and measured.starts > 0 else None


def _name(conditions: Conditions) -> str:
    digest = hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()
    return f"latency/{digest[:32]}.json"
