"""The paper's figure of its schedulers: the same arrivals, batch by batch.

A and B decode when C (7 prompt tokens) and D (2) arrive. The token budget is 4. A cell is `d` for
a decode, the number of prompt tokens, or `.` for a request that waits.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf.schedules import drawing
from sarathi.scheduler import (
    POLICIES,
    AdmissionError,
    BlockPool,
    FixedBudget,
    Policy,
    Request,
    Scheduler,
    StopCriteria,
)

FIGURE = {
    # No request waits for more than a chunk: decodes run in every batch, prompts fill it up.
    "sarathi": """
        A  2  d  d  d  d  d
        B  2  d  d  d  d  d
        C        2  2  2  1  d  d
        D        .  .  .  1  1  d  d
    """,
    # Whole prompts first: A and B stall while they run.
    "vllm": """
        A  2  d  .  d  d  d  d
        B  2  d  .  d  d  d  d
        C        7  d  d
        D        2  d  d
    """,
    # Whole prompts beside decodes: A and B get a token, but out of a long iteration.
    "orca": """
        A  2  d  d  d  d  d
        B  2  d  d  d  d  d
        C        7  d  d
        D        2  d  d
    """,
    # The whole batch first: C and D wait until A and B are done.
    "faster_transformer": """
        A  2  d  d  d  d  d
        B  2  d  d  d  d  d
        C        .  .  .  .  7  d  d
        D        .  .  .  .  2  d  d
    """,
    # Like orca, up to the model's length of 10 tokens: D waits for the second long iteration.
    "hybrid_only": """
        A  2  d  d  d  d  d
        B  2  d  d  d  d  d
        C        7  d  d
        D        .  2  d  d
    """,
    # Chunks and decodes alternate: short iterations, every other one without A and B.
    "chunked_only": """
        A  2  d  .  d  .  d  .  d  d
        B  2  d  .  d  .  d  .  d  d
        C        4  .  3  d  .  d
        D        .  .  1  .  1  d  d
    """,
}


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_figure(policy: str) -> None:
    assert lines(drawing(policy))[1:] == lines(FIGURE[policy])


def test_the_figure_in_the_docs_is_what_the_scheduler_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    for policy in POLICIES:
        assert drawing(policy) in text


class TestReservations:
    """A pool of 8 blocks of one token, a model of 6 tokens, requests of 2 + 2."""

    def running(self, policy: str) -> tuple[int, int]:
        """How many of three requests run at once, and the available blocks."""
        scheduler = Scheduler(
            BlockPool(8, block_size=1),
            FixedBudget(100),
            max_batch_size=9,
            max_model_len=6,
            prefix_caching=False,
            policy=POLICIES[policy],
        )
        for name in range(3):
            scheduler.add(Request(name, range(2), StopCriteria(2), float(name)))
        scheduler.schedule(0.0)
        return len(scheduler.running), scheduler.pool.num_available

    @pytest.mark.parametrize("policy", ["orca", "faster_transformer"])
    def test_the_longest_output_is_reserved(self, policy: str) -> None:
        assert self.running(policy) == (1, 2)

    @pytest.mark.parametrize("policy", ["sarathi", "vllm", "hybrid_only", "chunked_only"])
    def test_the_prompt_is_reserved(self, policy: str) -> None:
        assert self.running(policy) == (3, 2)


@pytest.mark.parametrize("policy", ["vllm", "hybrid_only"])
def test_a_token_budget_limits_how_many_whole_prompts_share_a_batch(policy: str) -> None:
    def first_batch(budget: int | None) -> list[tuple[int, int]]:
        scheduler = Scheduler(
            BlockPool(100, block_size=4),
            None if budget is None else FixedBudget(budget),
            max_batch_size=9,
            max_model_len=50,
            prefix_caching=False,
            policy=POLICIES[policy],
        )
        for name in range(3):
            scheduler.add(Request(name, range(10), StopCriteria(2), float(name)))
        batch = scheduler.schedule(0.0)
        assert batch is not None
        return [(part.request.id, part.length) for part in batch.slices]

    assert first_batch(None) == [(0, 10), (1, 10), (2, 10)]
    assert first_batch(20) == [(0, 10), (1, 10)]
    assert first_batch(4) == [(0, 10)]  # never cut, and never left waiting for ever


workloads = st.lists(
    st.tuples(
        st.integers(0, 12),  # iteration of arrival
        st.integers(1, 50),  # prompt tokens
        st.integers(1, 25),  # output tokens
        st.none() | st.integers(0, 30),  # iteration of cancellation
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(workloads, st.integers(1, 30), st.integers(6, 60), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_every_policy_finishes_everything_and_loses_nothing(
    policy: Policy,
    workload: list[tuple[int, int, int, int | None]],
    budget: int,
    blocks: int,
    max_batch_size: int,
) -> None:
    scheduler = Scheduler(
        BlockPool(blocks, block_size=4),
        FixedBudget(budget),
        max_batch_size=max_batch_size,
        max_model_len=70,
        prefix_caching=False,
        policy=policy,
    )
    requests: dict[int, Request] = {}
    cancelled: set[int] = set()
    iteration = 0
    last = max(arrival for arrival, *_ in workload)
    while scheduler.has_work or iteration <= last:
        for name, (arrival, prompt, output, cancel) in enumerate(workload):
            if arrival == iteration:
                new = Request(name, range(prompt), StopCriteria(output), float(arrival))
                try:
                    scheduler.add(new)
                except AdmissionError:
                    continue
                requests[name] = new
            if cancel == iteration and scheduler.cancel(name):
                cancelled.add(name)
        iteration += 1
        assert iteration < 10_000, "some request never ends"
        batch = scheduler.schedule(0.0)
        if batch is None:
            assert not scheduler.has_work
            continue
        decodes, prefills = (
            batch.slices[: batch.num_decodes],
            batch.slices[batch.num_decodes :],
        )
        assert policy.hybrid or not (decodes and prefills)
        if policy.chunked:
            assert sum(part.length for part in prefills) <= max(0, budget - len(decodes))
        else:
            assert all(part.samples for part in prefills), "a prompt was cut"
        if policy.reserves == "max length":
            assert not batch.preempted
        scheduler.complete(batch, [1] * len(batch.sampling), 0.0)
        scheduler.check()
    for name, request in requests.items():
        if name not in cancelled:
            assert len(request.output_ids) == request.stop_criteria.max_tokens
    assert scheduler.pool.num_available == blocks
