"""The recorders of iterations that a configuration asks for."""

from __future__ import annotations

import time

from sarathi.engine.config import EngineConfig
from sarathi.telemetry.iteration_log import IterationLog
from sarathi.telemetry.recorder import BudgetUnit, Recorder
from sarathi.telemetry.trace import TraceRecorder


def open_recorders(config: EngineConfig) -> tuple[Recorder, ...]:
    """Open the iteration log and the trace that the options ask for. Files that exist are emptied.

    Raises:
        ConfigError: a file cannot be written.
    """
    log, trace = config.iteration_log, config.trace
    start = time.monotonic()
    unit = budget_unit(config)
    recorders: list[Recorder] = []
    if log is not None:
        recorders.append(IterationLog(log, start, unit))
    if trace is not None:
        recorders.append(TraceRecorder(trace, start, unit))
    return tuple(recorders)


def budget_unit(config: EngineConfig) -> BudgetUnit | None:
    """Return the unit of `Batch.allowance`; None for a policy without a budget."""
    if config.latency_budget:
        return "seconds"
    return None if config.fixed_budget is None else "tokens"
