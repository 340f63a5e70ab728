"""What holds in every schedule, whatever arrives, is cancelled or runs out of memory.

What `world.play` checks holds for all: blocks are conserved, shared ones never written, every
request ends, with the output that it would have had alone, and nothing is left behind.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.scheduler import (
    ORDERS,
    POLICIES,
    Batch,
    BlockPool,
    Budget,
    FixedBudget,
    LatencyBudget,
    LatencyModel,
    Policy,
    Request,
    Scheduler,
    SchedulingParams,
    StopCriteria,
    Work,
    prefill,
)
from tests.scheduler.world import (
    VOCABULARY,
    Arrival,
    next_token,
    play,
    scored_workloads,
    workloads,
)

MAX_MODEL_LEN = 90
# A token takes a millisecond, an iteration ten, a key-query pair a hundredth of one.
MODEL = LatencyModel.fit(
    [
        (work, 0.01 + 1e-3 * work.tokens + 1e-5 * work.attention + 1e-5 * work.context)
        for work in (
            *(Work(n, n * (c + n / 2), 0, 1) for n in (1, 8, 64) for c in (0, 100)),
            *(Work(n, 0.0, n * c, n) for n in (1, 8, 64) for c in (1, 100)),
        )
    ]
)

tokens = st.builds(FixedBudget, st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5]))
seconds = st.builds(
    LatencyBudget,
    st.floats(0.005, 0.2),
    st.just(MODEL),
    st.sampled_from([0.0, 0.1, 0.5]),
)
pools = st.builds(BlockPool, st.integers(3, 40), st.sampled_from([1, 4, 16]))
settings_of_all = st.fixed_dictionaries(
    {
        "max_batch_size": st.integers(1, 8),
        "order": st.sampled_from(sorted(ORDERS)).map(lambda name: ORDERS[name](MODEL, 0.5)),
        "fair": st.booleans(),
        "prefix_caching": st.booleans(),
    }
)
settings_of_sarathi = st.fixed_dictionaries(
    {
        "in_order_share": st.sampled_from([1.0, 0.5, 0.01]),
        "deterministic_chunk": st.none() | st.integers(1, 40),
    }
)


def seconds_of(batch: Batch) -> float:
    return MODEL.predict(batch.work)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(pools, tokens, settings_of_all, workloads)
@settings(max_examples=200, deadline=None)
def test_every_policy(
    policy: Policy,
    pool: BlockPool,
    budget: Budget,
    options: dict[str, Any],
    workload: list[Arrival],
) -> None:
    scheduler = Scheduler(pool, budget, max_model_len=MAX_MODEL_LEN, policy=policy, **options)
    for batch, _ in play(scheduler, workload, seconds=seconds_of):
        prefills = batch.slices[batch.num_decodes :]
        assert policy.hybrid or not (batch.num_decodes and prefills)
        if not policy.chunked:
            assert all(part.samples for part in prefills), "a prompt was cut"
        if policy.reserves == "max length" and not options["order"].preempts:
            assert not batch.preempted


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(("stages", "look_ahead"), [(1, False), (3, False), (2, True)])
@given(pools, tokens | seconds, settings_of_all, st.integers(1, 40), scored_workloads)
@settings(max_examples=60, deadline=None)
def test_scored_prompts(
    policy: Policy,
    stages: int,
    look_ahead: bool,
    pool: BlockPool,
    budget: Budget,
    options: dict[str, Any],
    most_rows: int,
    workload: list[Arrival],
) -> None:
    """Each wanted row comes once, whatever preempts, is cached or is in flight; no iteration has
    more of them than there is memory for."""
    scheduler = Scheduler(
        pool,
        budget,
        max_model_len=MAX_MODEL_LEN,
        policy=policy,
        latency_model=MODEL,
        micro_batches=1 if look_ahead else stages,
        look_ahead=look_ahead,
        **options,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "MAX_SCORED_ROWS", most_rows)
        for batch, _ in play(scheduler, workload, seconds=seconds_of, stages=stages):
            wanted = batch.wanted()
            rows = sum(len(positions) for _, positions in wanted)
            assert batch.num_scored == rows <= most_rows
            assert batch.work.samples == rows + len(batch.sampling)
            for index, positions in wanted:
                _, start, length, _ = batch.slices[index]
                assert start <= positions[0] <= positions[-1] < start + length
            for part in batch.slices:
                assert not (part.samples and part.request.stop_criteria.max_tokens == 0)


@given(pools, tokens | seconds, settings_of_all, settings_of_sarathi, workloads)
@settings(max_examples=1000, deadline=None)
def test_every_decode_is_in_every_batch(
    pool: BlockPool,
    budget: Budget,
    options: dict[str, Any],
    own: dict[str, Any],
    workload: list[Arrival],
) -> None:
    """Unless it has just lost its memory."""
    scheduler = Scheduler(
        pool, budget, max_model_len=MAX_MODEL_LEN, latency_model=MODEL, **options, **own
    )
    for batch, _ in play(scheduler, workload, seconds=seconds_of):
        decodes = {part.request.id for part in batch.slices[: batch.num_decodes]}
        assert decodes == {request.id for request in scheduler.running.decodes}
        assert len(scheduler.running) <= options["max_batch_size"]
        assert all(part.length >= 1 for part in batch.slices)
        for request, start, length, samples in batch.slices:
            assert start == request.num_computed
            assert samples == (start + length == request.num_tokens)
        assert batch.work == work_of(batch)
        assert batch.predicted == MODEL.predict(batch.work)
        if batch.preempted and len(scheduler.running) and not options["fair"]:
            assert min(r.rank for r in batch.preempted) > min(
                r.rank for r in scheduler.running.requests()
            )


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(pools, tokens | seconds, st.integers(2, 4), settings_of_all, workloads)
@settings(max_examples=200, deadline=None)
def test_pipelines(
    policy: Policy,
    pool: BlockPool,
    budget: Budget,
    stages: int,
    options: dict[str, Any],
    workload: list[Arrival],
) -> None:
    """Whatever is under way, outputs stay the same, and no micro-batch takes all decodes."""
    scheduler = Scheduler(
        pool,
        budget,
        max_model_len=MAX_MODEL_LEN,
        policy=policy,
        latency_model=MODEL,
        micro_batches=stages,
        **options,
    )
    for batch, _ in play(scheduler, workload, seconds=seconds_of, stages=stages):
        assert batch.num_decodes <= math.ceil(len(scheduler.running.decodes) / stages)
        for request, start, length, samples in batch.slices:
            assert start + length <= request.num_scheduled
            assert samples == (start + length == request.num_tokens)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(pools, tokens | seconds, settings_of_all, workloads)
@settings(max_examples=300, deadline=None)
def test_looking_ahead(
    policy: Policy,
    pool: BlockPool,
    budget: Budget,
    options: dict[str, Any],
    workload: list[Arrival],
) -> None:
    """A batch may compute tokens that the one before still samples; outputs stay the same."""
    scheduler = Scheduler(
        pool,
        budget,
        max_model_len=MAX_MODEL_LEN,
        policy=policy,
        latency_model=MODEL,
        look_ahead=True,
        **options,
    )
    under_way: Batch | None = None
    for batch, _ in play(scheduler, workload, seconds=seconds_of, stages=2):
        ahead = [part.request for part in batch.slices if part.request.num_pending > 1]
        if ahead:
            assert not batch.preempted
            assert under_way is not None
            assert {request.id for request in ahead} <= {r.id for r in under_way.sampling}
        for request, start, length, samples in batch.slices:
            assert start + length <= request.num_scheduled
            assert len(request.output_ids) + request.num_pending <= request.stop_criteria.max_tokens
            if not request.num_pending:
                assert not samples
        under_way = batch


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(
    pools,
    tokens | seconds,
    st.integers(1, 3),
    settings_of_all,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    workloads,
)
@settings(max_examples=200, deadline=None)
def test_accepted_drafts_change_no_output(
    policy: Policy,
    pool: BlockPool,
    budget: Budget,
    stages: int,
    options: dict[str, Any],
    seed: int,
    quality: float,
    workload: list[Arrival],
) -> None:
    """Several tokens may be accepted for a decode; those after a stop are dropped."""
    scheduler = Scheduler(
        pool,
        budget,
        max_model_len=MAX_MODEL_LEN,
        policy=policy,
        latency_model=MODEL,
        micro_batches=stages,
        **options,
    )
    random = Random(seed)

    def drafter(request: Request) -> list[int]:
        known = list(request.tokens(0, request.num_tokens))
        for _ in range(random.randrange(5)):
            is_right = random.random() < quality
            known.append(next_token(known) if is_right else random.randrange(VOCABULARY))
        return known[request.num_tokens :]

    for batch, _ in play(scheduler, workload, seconds=seconds_of, stages=stages, drafter=drafter):
        drafts = batch.num_drafts or (0,) * batch.num_decodes
        assert len(drafts) == batch.num_decodes
        for (request, start, length, samples), count in zip(batch.slices, drafts, strict=False):
            assert samples
            assert length == 1 + count
            assert start + length == request.num_tokens + count < request.max_num_tokens
        prefills = batch.slices[batch.num_decodes :]
        assert batch.num_tokens == sum(part.length for part in batch.slices)
        assert batch.work.samples == sum(part.samples for part in prefills) + sum(drafts) + len(
            drafts
        )


@given(pools, tokens | seconds, st.integers(1, 60), settings_of_all, settings_of_sarathi, workloads)
@settings(max_examples=300, deadline=None)
def test_a_step_is_no_longer_than_the_executor_can_compute(
    pool: BlockPool,
    budget: Budget,
    most: int,
    options: dict[str, Any],
    own: dict[str, Any],
    workload: list[Arrival],
) -> None:
    """Decodes, and a token of prompt beside them, run in any case."""
    scheduler = Scheduler(
        pool, budget, max_model_len=MAX_MODEL_LEN, max_step_tokens=most, **options, **own
    )
    for batch, _ in play(scheduler, workload, seconds=seconds_of):
        chunk = own["deterministic_chunk"] or 1
        assert batch.num_tokens <= max(most, batch.num_decodes + chunk)


def work_of(batch: Batch) -> Work:
    prefills = batch.slices[batch.num_decodes :]
    return Work(
        tokens=sum(part.length for part in batch.slices),
        attention=sum(part.length * (part.start + part.length / 2) for part in prefills),
        context=sum(part.start for part in batch.slices[: batch.num_decodes]),
        samples=sum(part.samples for part in batch.slices),
    )


@given(pools, st.integers(1, 40), st.integers(1, 8), workloads)
@settings(max_examples=400, deadline=None)
def test_the_papers_rules(
    pool: BlockPool, budget: int, max_batch_size: int, workload: list[Arrival]
) -> None:
    """Decodes first, then prompts in order of arrival, as far as the budget reaches."""
    scheduler = Scheduler(
        pool, FixedBudget(budget), max_batch_size=max_batch_size, max_model_len=MAX_MODEL_LEN
    )
    for batch, _ in play(scheduler, workload):
        prefills = batch.slices[batch.num_decodes :]
        left = max(0, budget - batch.num_decodes)
        granted = sum(part.length for part in prefills)
        assert granted <= left
        if granted < left:
            assert all(part.samples for part in prefills), "a prompt was cut with budget to spare"
            started = [r for r in scheduler.running.requests() if not r.in_flight]
            assert not started, "a started prompt waits with budget to spare"
        ran = [part.request.rank for part in prefills]
        assert ran == sorted(ran)
        if scheduler.waiting.requests() and not batch.preempted:
            latest = max(request.rank for request in scheduler.running.requests())
            assert latest < min(request.rank for request in scheduler.waiting.requests())


@given(pools, seconds, settings_of_all, st.sampled_from([1.0, 0.5, 0.01]), workloads)
@settings(max_examples=600, deadline=None)
def test_the_latency_budget_keeps_to_the_slack(
    pool: BlockPool,
    budget: LatencyBudget,
    options: dict[str, Any],
    in_order_share: float,
    workload: list[Arrival],
) -> None:
    """Unless decodes alone, or the share that prompts have in any case, exceed it."""
    scheduler = Scheduler(
        pool,
        budget,
        max_model_len=MAX_MODEL_LEN,
        in_order_share=in_order_share,
        **options,
    )
    empty, one = MODEL.predict(Work(0, 0.0, 0, 0)), MODEL.predict(Work(1, 0.0, 0, 1))
    token = MODEL.prompt_cost(1, MAX_MODEL_LEN, True)
    idle = LatencyBudget.IDLE_FACTOR * max(budget.tbt_target, one)
    margin = 1 + MODEL.accuracy.late
    for batch, now in play(scheduler, workload, seconds=seconds_of):
        decodes = [part.request for part in batch.slices[: batch.num_decodes]]
        prefills = batch.slices[batch.num_decodes :]
        if not decodes:
            assert seconds_of(batch) <= max(idle, empty + token) + 1e-9
            continue
        alone = MODEL.predict(Work(len(decodes), 0.0, batch.work.context, len(decodes)))
        allowed = min((min(request.deadline for request in decodes) - now) / margin, idle)
        share = budget.min_prefill_share
        bound = max(allowed, alone / (1 - share))
        if share and prefills:
            bound = max(bound, alone + token)
        assert seconds_of(batch) <= bound + 1e-9
        # And prompts are not kept back: little is left of what would pay for more tokens.
        if not batch.preempted and backlogged(scheduler, batch, waiting=False):
            pieces = len(prefills) + 1
            assert seconds_of(batch) - alone >= 0.85 * (bound - alone) - 2 * pieces * token


def backlogged(scheduler: Scheduler, batch: Batch, *, waiting: bool) -> list[Request]:
    """Prompts that could have used more of the batch, `waiting` ones included or not."""
    short = {part.request for part in batch.slices if not part.samples}
    started = [r for r in scheduler.running.prefills if r in short or not r.in_flight]
    return started + (scheduler.waiting.requests() if waiting else [])


@given(seconds | tokens, st.sampled_from([1.0, 0.5]), workloads)
@settings(max_examples=600, deadline=None)
def test_prompts_progress_at_least_as_documented(
    budget: Budget, in_order_share: float, workload: list[Arrival]
) -> None:
    """While a prompt is short of budget, prompts get their share of the iteration."""
    scheduler = Scheduler(
        BlockPool(1000, 4),
        budget,
        max_batch_size=100,
        max_model_len=MAX_MODEL_LEN,
        in_order_share=in_order_share,
    )
    for batch, _ in play(scheduler, workload, seconds=seconds_of):
        if not backlogged(scheduler, batch, waiting=True):
            continue
        count = batch.num_decodes
        granted = batch.num_tokens - count
        if isinstance(budget, FixedBudget):
            assert granted >= min(budget.tokens, budget.min_prefill_share * batch.num_tokens)
            continue
        assert isinstance(budget, LatencyBudget)
        whole = seconds_of(batch)
        alone = MODEL.predict(Work(count, 0.0, batch.work.context, count))
        if budget.min_prefill_share:
            assert granted >= 1
        # What is left over is less than one more token and its row of logits would take.
        token = MODEL.prompt_cost(1, MAX_MODEL_LEN, True)
        pieces = len(batch.slices) - count + 1
        assert whole - alone >= budget.min_prefill_share * whole - pieces * token - 1e-9


def large_scheduler(budget: int, **options: Any) -> Scheduler:
    """A scheduler with memory and slots for all requests, without prefix cache."""
    return Scheduler(
        BlockPool(5000, 4),
        FixedBudget(budget),
        max_batch_size=1000,
        max_model_len=MAX_MODEL_LEN,
        prefix_caching=False,
        **options,
    )


tenant_prompts = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 60)), min_size=1, max_size=40
)


@given(
    tenant_prompts,
    st.integers(1, 30),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from(sorted(ORDERS)),
)
@settings(max_examples=600, deadline=None)
def test_tenants_with_prompts_at_all_times_are_less_than_a_chunk_apart(
    prompts: list[tuple[str, int]], budget: int, in_order_share: float, order: str
) -> None:
    scheduler = large_scheduler(
        budget,
        order=ORDERS[order](MODEL, 0.5),
        fair=True,
        in_order_share=in_order_share,
    )
    for name, (tenant, length) in enumerate(prompts):
        params = SchedulingParams(tenant=tenant)
        scheduler.add(Request(name, range(length), StopCriteria(1), 0.0, params))
    work = {tenant: sum(n for t, n in prompts if t == tenant) for tenant in "abc"}
    while (batch := scheduler.schedule(0.0)) is not None:
        scheduler.complete(batch, [1] * batch.work.samples, 0.0)
        served = [scheduler.waiting.shares.served(t) for t in "abc" if work[t]]
        behind = [
            scheduler.waiting.shares.served(t)
            for t in "abc"
            if work[t] > scheduler.waiting.shares.served(t)
        ]
        if behind:
            # A tenant with prompts is at most a chunk behind any other tenant.
            assert max(served) - min(behind) <= budget


@given(pools, tokens | seconds, settings_of_all, st.integers(1, 40), workloads)
@settings(max_examples=400, deadline=None)
def test_fixed_chunks_depend_on_the_request_alone(
    pool: BlockPool,
    budget: Budget,
    options: dict[str, Any],
    chunk: int,
    workload: list[Arrival],
) -> None:
    """Preempted ones are computed again as they were: their prompt in chunks, then by tokens."""
    scheduler = Scheduler(
        pool, budget, max_model_len=MAX_MODEL_LEN, deterministic_chunk=chunk, **options
    )
    for batch, _ in play(scheduler, workload, seconds=seconds_of):
        for request, start, length, _ in batch.slices:
            prompt = len(request.prompt_ids)
            if start < prompt:
                assert start % chunk == 0
                assert length == min(chunk, prompt - start)
            else:
                assert length == 1


@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=25),
    st.integers(4, 60),
    st.sampled_from([0.25, 0.5, 0.75]),
)
@settings(max_examples=600, deadline=None)
def test_first_tokens_come_as_soon_as_documented(
    lengths: list[int], budget: int, share: float
) -> None:
    """Whatever is before a prompt, and however many shorter ones there are."""
    scheduler = large_scheduler(
        budget,
        in_order_share=share,
    )
    for name, length in enumerate(lengths):
        scheduler.add(Request(name, range(length), StopCriteria(1), 0.0))
    first_token: dict[int, int] = {}
    while (batch := scheduler.schedule(0.0)) is not None:
        for request in scheduler.complete(batch, [1] * batch.work.samples, 0.0):
            first_token[request.id] = scheduler.num_iterations
    for name, length in enumerate(lengths):
        before = sum(lengths[:name])
        shorter = sum(n for i, n in enumerate(lengths) if (n, i) < (length, name))
        in_order = math.ceil((before + length) / math.floor(share * budget))
        by_length = math.ceil((shorter + length) / math.floor((1 - share) * budget))
        assert first_token[name] <= min(in_order, by_length)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60), st.sampled_from("abc"), st.integers(1, 50), st.integers(1, 9)
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(8, 30),
)
@settings(max_examples=400, deadline=None)
def test_no_tenant_gets_ahead_of_one_with_waiting_prompts(
    arrivals: list[tuple[int, str, int, int]], budget: int
) -> None:
    """Whatever arrives, ends and decodes meanwhile: prompts of the least served are computed."""
    scheduler = large_scheduler(
        budget,
        fair=True,
        in_order_share=0.5,
    )
    shares = scheduler.waiting.shares
    for iteration in range(400):
        for name, (at, tenant, prompt, output) in enumerate(arrivals):
            if at == iteration:
                open_ones = {
                    request.scheduling_params.tenant for request in scheduler._requests.values()
                }
                level = min((shares.served(other) for other in open_ones), default=0)
                params = SchedulingParams(tenant=tenant)
                scheduler.add(Request(name, range(prompt), StopCriteria(output), 0.0, params))
                assert shares.served(tenant) >= level, "a pause was saved up"
        before = {tenant: shares.served(tenant) for tenant in "abc"}
        batch = scheduler.schedule(0.0)
        if batch is None:
            continue
        granted: Counter[str] = Counter()
        for part in batch.slices:
            granted[part.request.scheduling_params.tenant] += part.length
        assert all(shares.served(t) == before[t] + granted[t] for t in granted)
        prompts = {
            part.request.scheduling_params.tenant for part in batch.slices[batch.num_decodes :]
        }
        for behind in {
            r.scheduling_params.tenant for r in backlogged(scheduler, batch, waiting=True)
        }:
            for ahead in prompts - {behind}:
                # When it was selected it was not ahead, and it computed at most a chunk.
                assert shares.served(ahead) <= shares.served(behind) + budget
        scheduler.complete(batch, [1] * batch.work.samples, 0.0)
