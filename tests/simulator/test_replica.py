"""When batches begin and end, on hardware whose times are known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.scheduler import Batch
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulation import SimulationOutcome, simulate
from sarathi.telemetry import Targets
from tests.simulator.toy import ToyCost, toy_plan, toy_setup


def simulated(
    setup: Setup, *requests: tuple[float, int, int]
) -> tuple[SimulationOutcome, list[list[float]]]:
    """The outcome, and for each batch when it began and ended."""
    times: list[list[float]] = []

    def watch(replica: int, batch: Batch, began: float, ended: float) -> None:
        times.append([round(began, 9), round(ended, 9)])

    return simulate(setup, toy_plan(*requests), on_batch=watch), times


class TestOneStage:
    def test_a_request_alone(self) -> None:
        """A prompt of 40 in chunks of 32 and 8, then one token after the other."""
        outcome, times = simulated(toy_setup(), (5.0, 40, 3))
        assert times == [[5.0, 5.042], [5.042, 5.060], [5.060, 5.071], [5.071, 5.082]]
        (record,) = outcome.records
        assert record.tokens == pytest.approx([5.060, 5.071, 5.082])
        assert (record.arrival, record.scheduling_delay) == (5.0, 0.0)
        assert outcome.summary.ttft.p50 == pytest.approx(0.06, rel=0.001)

    def test_the_engines_own_time_is_between_iterations(self) -> None:
        _, times = simulated(toy_setup(ToyCost(overhead_seconds=0.1)), (0.0, 10, 2))
        assert times == [[0.0, 0.12], [0.12, 0.231]]

    def test_a_request_that_arrives_meanwhile_waits_for_the_end_of_the_iteration(self) -> None:
        outcome, times = simulated(toy_setup(), (0.0, 20, 2), (0.01, 20, 1))
        assert times == [[0.0, 0.03], [0.03, 0.061]]
        assert [record.scheduling_delay for record in outcome.records] == pytest.approx([0.0, 0.02])

    def test_requests_that_arrive_together_share_the_first_batch(self) -> None:
        _, times = simulated(toy_setup(), (1.0, 8, 1), (1.0, 8, 1))
        assert times == [[1.0, 1.026]]

    def test_idle_time_is_no_bubble(self) -> None:
        outcome, _ = simulated(toy_setup(), (0.0, 10, 1), (100.0, 10, 1))
        (use,) = outcome.replicas
        assert use.active == pytest.approx(0.04)
        assert use.busy == pytest.approx([0.04])
        assert use.bubbles == pytest.approx([0.0])
        assert (use.iterations, use.tokens, use.decodes) == (2, 20, 0)

    def test_memory_in_use_is_measured(self) -> None:
        outcome, _ = simulated(toy_setup(blocks=10), (0.0, 20, 2))
        (use,) = outcome.replicas
        assert use.kv_max == 0.6  # 21 tokens in blocks of 4
        assert use.kv_mean == pytest.approx((0.5 * 0.03 + 0.6 * 0.011) / 0.041)


class TestPipelines:
    def test_stages_work_at_the_same_time(self) -> None:
        """Chunks of 32 tokens take 0.021 s in each of two stages, and follow one another."""
        cost = ToyCost(stage_factors=(0.5, 0.5))
        outcome, times = simulated(toy_setup(cost), (0.0, 128, 1))
        assert times == [[0.0, 0.042], [0.021, 0.063], [0.042, 0.084], [0.063, 0.105]]
        (use,) = outcome.replicas
        assert use.busy == pytest.approx([0.084, 0.084])
        assert use.bubbles == pytest.approx([0.021, 0.021])

    def test_messages_between_stages_take_their_time(self) -> None:
        _, times = simulated(
            toy_setup(ToyCost(stage_factors=(0.5, 0.5), hop_seconds=1.0)), (0, 32, 1)
        )
        assert times == [[0.0, 1.042]]

    def test_uneven_batches_leave_bubbles(self) -> None:
        """Whole prompts beside decodes: a stage waits where the batch before it was longer."""
        cost = ToyCost(stage_factors=(0.5, 0.5))
        load = [(0.001 * i, 10 + 300 * (i % 4 == 3), 40) for i in range(24)]
        chunked, _ = simulated(toy_setup(cost, token_budget=16), *load)
        whole, _ = simulated(toy_setup(cost, policy="orca"), *load)
        share = [
            sum(use.bubbles) / sum(use.busy)
            for outcome in (chunked, whole)
            for use in outcome.replicas
        ]
        assert share[0] < 0.7 * share[1]

    def test_a_decode_passes_all_stages_before_the_next(self) -> None:
        cost = ToyCost(stage_factors=(0.5, 0.5, 0.5))
        outcome, _ = simulated(toy_setup(cost), (0.0, 1, 3))
        (record,) = outcome.records
        assert record.gaps == pytest.approx([0.0165, 0.0165])


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_target_is_kept_by_any_number_of_stages(stages: int) -> None:
    """On hardware with the times of the latency model, with prompts that would fill any budget."""
    cost = ToyCost(stage_factors=(1 / stages,) * stages, overhead_seconds=0.001)
    setup = toy_setup(cost, blocks=5000, tbt_target=0.1, max_batch_size=20)
    load = [(0.02 * i, 20 + 300 * (i % 3 == 2), 30) for i in range(90)]
    outcome, _ = simulated(setup, *load)
    gaps = sorted(gap for record in outcome.records for gap in record.gaps)
    assert gaps[len(gaps) * 99 // 100] <= 0.105
    assert gaps[len(gaps) // 2] > 0.05  # and the time is made use of


class TestReplicas:
    def test_twice_the_replicas_serve_twice_as_fast(self) -> None:
        requests = [(0.0, 32, 1)] * 8
        one, _ = simulated(toy_setup(), *requests)
        two, _ = simulated(toy_setup(replicas=2), *requests)
        assert one.summary.duration == pytest.approx(2 * two.summary.duration)
        assert [use.tokens for use in two.replicas] == [128, 128]

    def test_the_least_loaded_replica_gets_the_next(self) -> None:
        requests = [(0.0, 900, 1), (0.0, 10, 1), (0.001, 10, 1), (0.002, 10, 1)]
        turns, _ = simulated(toy_setup(replicas=2), *requests)
        work, _ = simulated(toy_setup(replicas=2, router="least_work"), *requests)
        assert [use.tokens for use in turns.replicas] == [910, 20]
        assert [use.tokens for use in work.replicas] == [900, 30]

    def test_outstanding_requests_are_counted_whatever_their_length(self) -> None:
        requests = [(0.0, 900, 1), (0.0, 10, 1), (0.5, 10, 1), (0.5, 10, 1)]
        setup = toy_setup(replicas=2, router="least_outstanding")
        outcome, _ = simulated(setup, *requests)
        # The second replica is empty again at 0.5 s; the next is sent there, and then it is a tie.
        assert [use.tokens for use in outcome.replicas] == [910, 20]


def test_what_can_never_run_is_refused_alone() -> None:
    outcome, _ = simulated(toy_setup(blocks=10, replicas=2), (0.0, 100, 5), (0.0, 10, 5))
    assert outcome.summary.failures == {"refused": 1}
    assert outcome.summary.completed == 1


def test_a_conversation_finds_its_beginning_in_the_cache() -> None:
    plan = toy_plan((0.0, 100, 4), (1.0, 160, 4), (2.0, 160, 4), conversations=[0, 0, 1])
    outcome = simulate(toy_setup(), plan)
    assert [record.cached_tokens for record in outcome.records] == [0, 100, 0]


def test_the_warm_up_is_in_no_figure() -> None:
    plan = toy_plan((0.0, 900, 1), (5.0, 10, 1), (6.0, 10, 1), warm_up=1)
    outcome = simulate(toy_setup(), plan, targets=Targets(ttft=0.05))
    assert outcome.summary.requests == 2
    assert outcome.summary.attainment == 1.0
    assert [record.arrival for record in outcome.records] == [5.0, 6.0]


def test_records_are_thinned_and_the_summary_is_of_all() -> None:
    plan = toy_plan(*((float(i), 5, 2) for i in range(100)))
    outcome = simulate(toy_setup(), plan, most_records=30)
    assert (outcome.every, len(outcome.records)) == (4, 25)
    assert outcome.summary.requests == 100


loads = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 300), st.integers(1, 20)), min_size=1, max_size=30
).map(sorted)


@given(
    loads,
    st.lists(st.sampled_from([0.2, 0.5, 1.0]), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(["round_robin", "least_outstanding", "least_work"]),
    st.sampled_from(["sarathi", "vllm", "orca", "faster_transformer", "hybrid_only"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_time_never_runs_backwards_and_nothing_is_lost(
    load: list[tuple[float, int, int]],
    factors: list[float],
    replicas: int,
    router: str,
    policy: str,
    by_target: bool,
) -> None:
    options = {"tbt_target": 0.05} if by_target and policy == "sarathi" else {"policy": policy}
    if options == {"policy": "sarathi"}:
        options["token_budget"] = 24  # type: ignore[assignment]
    cost = ToyCost(stage_factors=tuple(factors), hop_seconds=0.002, overhead_seconds=0.001)
    setup = toy_setup(cost, blocks=100, replicas=replicas, router=router, **options)
    latest = [0.0] * replicas
    plan = toy_plan(*load)

    def watch(replica: int, batch: Batch, began: float, ended: float) -> None:
        assert ended > began
        assert ended >= latest[replica]
        latest[replica] = ended

    outcome = simulate(setup, plan, on_batch=watch)
    assert len(outcome.records) == len(load)
    for record in outcome.records:
        assert record.failure is None or record.prompt_tokens + record.output_tokens > 400
        assert record.tokens == sorted(record.tokens)
        if record.failure is None:
            assert len(record.tokens) == record.output_tokens
            assert record.tokens[0] > record.arrival
    for use in outcome.replicas:
        assert all(busy <= use.active + 1e-9 for busy in use.busy)
    again = simulate(setup, plan)
    assert again.records == outcome.records
