"""Make the scheduler and the budget of a configuration, for engines and simulated engines."""

from __future__ import annotations

from typing import NamedTuple

from sarathi import scheduler
from sarathi.engine.config import EngineConfig
from sarathi.units import format_duration

_STRICT_FACTOR = 5.0  # the paper's strict target, in decode-only iterations
_MIN_FACTOR = 2.0  # in decode-only iterations, too: one for the decodes, and as much for prompts
_NOTICEABLE_GAP = 0.25  # seconds; readers notice longer gaps between words


class TypicalDecodes(NamedTuple):
    """The decodes of an iteration under usual load."""

    requests: int
    context: int  # tokens of each

    def fitting(self, max_batch_size: int, max_model_len: int) -> TypicalDecodes:
        """Return as many of them as an engine can have."""
        return TypicalDecodes(
            min(self.requests, max_batch_size), min(self.context, max_model_len // 2)
        )

    @property
    def work(self) -> scheduler.Work:
        """Their work, for the latency model."""
        return scheduler.Work(self.requests, 0.0, self.requests * self.context, self.requests)


TYPICAL_DECODES = TypicalDecodes(32, 512)  # of a processor
PAPER_DECODES = TypicalDecodes(32, 4096)  # of a GPU, by which the paper measures


class DerivedTarget(NamedTuple):
    """A time between tokens derived from the machine's speed."""

    seconds: float
    reason: str  # in words


def derived_target(iteration: float, measured: str = "") -> DerivedTarget:
    """Return the time between tokens that a machine keeps under usual load.

    By the rule of the paper it is five times a decode-only iteration, but at most what readers
    notice; if a decode-only iteration takes more than half of that, it is two of them.

    Args:
        iteration: seconds of a decode-only iteration, on all stages of a pipeline.
        measured: text to add about that figure.
    """
    what = f"a decode-only iteration of {format_duration(iteration)}{measured}"
    if _STRICT_FACTOR * iteration <= _NOTICEABLE_GAP:
        return DerivedTarget(_STRICT_FACTOR * iteration, f"{_STRICT_FACTOR:g}x {what}")
    if _MIN_FACTOR * iteration >= _NOTICEABLE_GAP:
        return DerivedTarget(_MIN_FACTOR * iteration, f"{_MIN_FACTOR:g}x {what}")
    reason = f"the most that a reader should wait, less than {_STRICT_FACTOR:g}x {what}"
    return DerivedTarget(_NOTICEABLE_GAP, reason)


def make_scheduler(
    config: EngineConfig,
    budget: scheduler.Budget | None,
    model: scheduler.LatencyModel,
    pool: scheduler.BlockPool,
    max_model_len: int,
    micro_batches: int = 1,
    *,
    look_ahead: bool = False,
    max_step_tokens: int | None = None,
) -> scheduler.Scheduler:
    """Return the scheduler of a configuration; for the other arguments, see `Scheduler`."""
    return scheduler.Scheduler(
        pool,
        budget,
        max_batch_size=config.max_batch_size,
        max_model_len=max_model_len,
        policy=scheduler.POLICIES[config.policy],
        order=scheduler.ORDERS[config.order](model, config.ttft_target),
        fair=config.fair_by is not None,
        in_order_share=config.in_order_share,
        deterministic_chunk=config.chunk,
        prefix_caching=config.prefix_caching,
        latency_model=model,
        micro_batches=micro_batches,
        look_ahead=look_ahead,
        max_step_tokens=max_step_tokens,
    )


def make_budget(
    config: EngineConfig,
    model: scheduler.LatencyModel,
    tbt_target: float | None,
    micro_batches: int = 1,
) -> scheduler.Budget | None:
    """Return the budget of a configuration, None if the policy has its own limit.

    `tbt_target`, in seconds, is for a configuration with neither a target nor a fixed budget.
    `ValueError` if one is needed and none is given.
    """
    if config.fixed_budget is not None:
        share = config.min_prefill_share if scheduler.POLICIES[config.policy].stall_free else 0.0
        return scheduler.FixedBudget(config.fixed_budget, share)
    if not config.latency_budget:
        return None
    target = tbt_target if config.tbt_target is None else config.tbt_target
    if target is None:
        raise ValueError("no time between tokens is given, and none derived")
    return scheduler.LatencyBudget(target, model, config.min_prefill_share, micro_batches)
