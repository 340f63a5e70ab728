"""The scheduler that a configuration asks for: of an engine, and of a simulated one."""

from __future__ import annotations

from sarathi.engine.config import EngineConfig
from sarathi.scheduling import (
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

# The paper's strict target is five times an iteration that only decodes.
_STRICT = 5.0


def strict_target(model: LatencyModel, decodes: int, context: int, num_stages: int = 1) -> float:
    """Seconds between tokens that a well used machine keeps, by the rule of the paper.

    Args:
        model: of one stage; a decode passes all of them.
        decodes: requests that decode on such a machine.
        context: tokens of each.
    """
    iteration = num_stages * model.predict(Work(decodes, 0.0, decodes * context, decodes))
    return _STRICT * iteration


def make_scheduler(
    config: EngineConfig,
    budget: Budget | None,
    model: LatencyModel,
    pool: BlockPool,
    max_model_len: int,
    micro_batches: int = 1,
) -> Scheduler:
    """
    Args:
        budget: as `make_budget` gives it.
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
        model=model,
        micro_batches=micro_batches,
    )


def make_budget(
    config: EngineConfig, model: LatencyModel, tbt_target: float, micro_batches: int = 1
) -> Budget | None:
    """None where the policy takes none.

    Args:
        tbt_target: seconds, where the configuration states neither a target nor a fixed budget.
    """
    if config.fixed_budget is not None:
        share = config.min_prefill_share if config.policy == "sarathi" else 0.0
        return FixedBudget(config.fixed_budget, share)
    if not config.latency_budget:
        return None
    target = tbt_target if config.tbt_target is None else config.tbt_target
    return LatencyBudget(target, model, config.min_prefill_share, micro_batches)
