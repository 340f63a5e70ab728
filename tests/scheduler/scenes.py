"""Small schedules by hand: requests in, exact batches out."""

from __future__ import annotations

from sarathi.scheduler import (
    Batch,
    BlockPool,
    Budget,
    FixedBudget,
    LatencyModel,
    Request,
    Scheduler,
    SchedulingParams,
    StopCriteria,
    Work,
)

# A token takes a millisecond and an iteration ten; context costs nothing.
PLAIN_MODEL = LatencyModel.fit(
    [(Work(n, 0.0, 0, samples), 0.01 + 0.001 * n) for n in (1, 10, 100) for samples in (0, 1)]
)


def scheduler(
    budget: int | Budget = 100,
    *,
    blocks: int = 10_000,
    block_size: int = 4,
    max_batch_size: int = 100,
    prefix_caching: bool = False,
    **options: object,
) -> Scheduler:
    return Scheduler(
        BlockPool(blocks, block_size),
        FixedBudget(budget) if isinstance(budget, int) else budget,
        max_batch_size=max_batch_size,
        max_model_len=10_000,
        prefix_caching=prefix_caching,
        **options,  # type: ignore[arg-type]
    )


def request(
    name: int,
    prompt: int,
    output: int = 100,
    params: SchedulingParams | None = None,
    **criteria: object,
) -> Request:
    """A request that arrives at time `name`, with token ids equal to their position."""
    return Request(
        name,
        range(prompt),
        StopCriteria(output, **criteria),  # type: ignore[arg-type]
        float(name),
        params or SchedulingParams(),
    )


def shape(batch: Batch | None) -> list[tuple[int, int]]:
    """(request, tokens) of each slice."""
    assert batch is not None
    return [(part.request.id, part.length) for part in batch.slices]


def run(sched: Scheduler, token: int = 7, now: float = 0.0) -> list[tuple[int, int]]:
    """One iteration in which every sampled token is `token`."""
    batch = sched.schedule(now)
    computed = shape(batch)
    assert batch is not None
    sched.complete(batch, [token] * len(batch.sampling), now)
    sched.check()
    return computed
