"""The scheduler that a configuration asks for: of an engine, and of a simulated one."""

from __future__ import annotations

from typing import NamedTuple

from sarathi.engine.config import EngineConfig
from sarathi.scheduler import (
    ORDERS,
    POLICIES,
    BlockPool,
    Budget,
    FixedBudget,
    LatencyBudget,
    LatencyModel,
    Scheduler,
    Work,
)
from sarathi.units import format_duration

# The paper's strict target is five times an iteration that only decodes.
_STRICT = 5.0
# Readers notice that an answer halts when a word comes later than this; no machine need promise
# more time than that, unless decodes alone leave nothing of it.
_NOTICED = 0.25  # seconds
_LEAST = 2.0  # decode-only iterations: one for the decodes, and as much for prompts


class TypicalDecodes(NamedTuple):
    """An iteration of a machine that is well used."""

    requests: int
    context: int  # tokens of each

    def fitting(self, max_batch_size: int, max_model_len: int) -> TypicalDecodes:
        """Those that an engine can have."""
        return TypicalDecodes(
            min(self.requests, max_batch_size), min(self.context, max_model_len // 2)
        )

    @property
    def work(self) -> Work:
        return Work(self.requests, 0.0, self.requests * self.context, self.requests)


TYPICAL_DECODES = TypicalDecodes(32, 512)  # of a processor
PAPER_DECODES = TypicalDecodes(32, 4096)  # of a GPU, by which the paper measures


class Target(NamedTuple):
    """A time between tokens that follows from the machine."""

    seconds: float
    reason: str  # in words


def derived_target(iteration: float, measured: str = "") -> Target:
    """Find the time between tokens that a well used machine keeps.

    By the rule of the paper it is five times a decode-only iteration, but not beyond what readers
    notice; where decodes alone take more than half of that, it is two of them.

    Args:
        iteration: seconds of one that only decodes, on all stages of a pipeline.
        measured: what else to say of that.
    """
    strict, least = _STRICT * iteration, _LEAST * iteration
    seconds = min(strict, max(_NOTICED, least))
    what = f"a decode-only iteration of {format_duration(iteration)}{measured}"
    if seconds == strict:
        return Target(seconds, f"{_STRICT:g}x {what}")
    if seconds == least:
        return Target(seconds, f"{_LEAST:g}x {what}")
    return Target(
        seconds,
        f"the most that a reader should wait, less than {_STRICT:g}x {what}",
    )


def make_scheduler(
    config: EngineConfig,
    budget: Budget | None,
    model: LatencyModel,
    pool: BlockPool,
    max_model_len: int,
    micro_batches: int = 1,
    *,
    look_ahead: bool = False,
    max_step_tokens: int | None = None,
) -> Scheduler:
    """Make the scheduler of a configuration.

    Args:
        budget: as `make_budget` gives it.
        micro_batches, look_ahead, max_step_tokens: as `Scheduler` takes them.
    """
    return Scheduler(
        pool,
        budget,
        max_batch_size=config.max_batch_size,
        max_model_len=max_model_len,
        policy=POLICIES[config.policy],
        order=ORDERS[config.order](model, config.ttft_target),
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
    model: LatencyModel,
    tbt_target: float | None,
    micro_batches: int = 1,
) -> Budget | None:
    """None where the policy takes none.

    Args:
        tbt_target: seconds, where the configuration states neither a target nor a fixed budget.

    Raises:
        ValueError: a target is needed, and there is neither.
    """
    if config.fixed_budget is not None:
        share = config.min_prefill_share if POLICIES[config.policy].stall_free else 0.0
        return FixedBudget(config.fixed_budget, share)
    if not config.latency_budget:
        return None
    target = tbt_target if config.tbt_target is None else config.tbt_target
    if target is None:
        raise ValueError("no time between tokens is stated, and none derived")
    return LatencyBudget(target, model, config.min_prefill_share, micro_batches)
