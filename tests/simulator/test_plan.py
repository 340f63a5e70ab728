"""The cheapest deployment: on toys whose capacities can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.bench.capacity.verdict import evaluate
from sarathi.bench.workload.workload import Load, Workload
from sarathi.errors import SimulationError
from sarathi.simulator.plan import planner
from sarathi.simulator.plan.planner import PlanResult, dominates, make_plan, on_front
from sarathi.simulator.plan.replica_sizing import (
    Candidate,
    DeviceLayout,
    PlanChoice,
    PlanSettings,
    Rejected,
    candidates,
    confirm,
    evaluate_candidate,
    layouts,
    plan_targets,
    run_with_early_stopping,
)
from sarathi.simulator.simulated_run import simulated_run
from sarathi.telemetry import RequestRecord, Summary, summarise
from tests.simulator.toy import ToyCost, toy_setup

# A request of 20 prompt tokens and 10 of an answer has 29 to be computed. With 32 in an iteration,
# a toy of speed 1 computes one in 10 + 32 x 1 = 42 ms: at most 26.3 requests a second.
SPEED_ONE = 32 / 0.042 / 29


def plan_options(
    rate: float, tbt: float = 0.1, ttft: float | None = None, seed: int = 0
) -> PlanSettings:
    workload = Workload.from_options(
        prompt_lengths="fixed:20", output_lengths="fixed:10", arrivals="constant"
    )
    load = Load(workload, num_requests=60, warm_up=4, seed=seed)
    # With so short a delay, a queue that grows shows within few seconds.
    return PlanSettings(rate, plan_targets(tbt, ttft, delay=0.1), load, point_duration=3.0)


def candidate(device: str, speed: float, price: float, devices: int = 1) -> Candidate:
    layout = DeviceLayout(device, devices, 1, 32)
    return Candidate(layout, toy_setup(ToyCost(0.01 / speed, 0.001 / speed)), price)


def plan(*those: Candidate, rate: float = 40.0, explore: float = 1.5) -> PlanResult:
    return make_plan(those, plan_options(rate), explore=explore, workers=1)


def cheapest(planned: PlanResult) -> tuple[str, int, float]:
    found = planned.cheapest
    assert found is not None
    return found.layout.device, found.replicas, found.cost


def summary(delays: Sequence[float], ttft: float = 0.2) -> Summary:
    records = [
        RequestRecord(
            arrival=float(i),
            prompt_tokens=10,
            output_tokens=2,
            tokens=[i + ttft, i + ttft + 0.05],
            end=i + ttft + 0.05,
            scheduling_delay=delay,
        )
        for i, delay in enumerate(delays)
    ]
    return summarise(records)


@pytest.mark.parametrize(
    ("rate", "price_of_fast", "expected"),
    [
        (20.0, 1.5, ("slow", 1, 1.0)),  # one of the slow is enough
        (40.0, 1.5, ("fast", 1, 1.5)),  # two of the slow, or one that is twice as fast
        (40.0, 2.5, ("slow", 2, 2.0)),
        (60.0, 1.4, ("fast", 2, 2.8)),  # three of the slow
    ],
)
def test_the_cheapest_is_the_one_worked_out_by_hand(
    rate: float, price_of_fast: float, expected: tuple[str, int, float]
) -> None:
    found = plan(candidate("slow", 1, 1.0), candidate("fast", 2, price_of_fast), rate=rate)
    assert cheapest(found) == expected
    assert found.cheapest is not None
    assert found.cheapest.confirmed


def test_the_capacity_is_that_of_one_replica() -> None:
    choice = evaluate_candidate(candidate("slow", 1, 1.0), plan_options(100.0), None)
    assert isinstance(choice, PlanChoice)
    assert 0.85 * SPEED_ONE < choice.capacity < 1.1 * SPEED_ONE
    assert choice.replicas == math.ceil(100 / choice.capacity)
    assert choice.rate_per_replica <= choice.capacity
    assert choice.run.rate == pytest.approx(choice.rate_per_replica)
    assert choice.tokens_per_second == pytest.approx(100 * 30)
    assert choice.cost_per_million_tokens == pytest.approx(choice.cost / 3600 / 3000 * 1e6)


def test_rates_between_those_of_the_search_may_save_replicas() -> None:
    # At 180/s, seven of 25.7/s each. The search ends with rates that are a factor of two apart.
    coarse = replace(plan_options(180.0), resolution=1.0)
    choice = evaluate_candidate(candidate("slow", 1, 1.0), coarse, None)
    assert isinstance(choice, PlanChoice)
    assert choice.replicas <= math.ceil(180 / SPEED_ONE)
    assert choice.capacity >= choice.rate_per_replica


def test_more_than_the_whole_load_is_not_searched_for() -> None:
    choice = evaluate_candidate(candidate("slow", 1, 1.0), plan_options(2.0), None)
    assert isinstance(choice, PlanChoice)
    assert (choice.replicas, choice.capacity, choice.open_ended) == (1, 2.0, True)


@pytest.mark.parametrize("seed", range(2))
def test_what_is_left_out_changes_neither_the_cheapest_nor_the_fronts(seed: int) -> None:
    rng = Random(seed)
    those = [
        candidate(f"toy-{i}", rng.uniform(0.5, 4), rng.uniform(0.5, 5), rng.choice((1, 2, 4)))
        for i in range(5)
    ]
    everything = plan(*those, explore=math.inf)
    assert not everything.rejected
    for explore in (1.0, 2.0):
        pruned = plan(*those, explore=explore)
        assert any(one.kind == "costs more" for one in pruned.rejected)
        assert cheapest(pruned) == cheapest(everything)
        limit = explore * cheapest(everything)[2]
        for name in ("tbt_front", "ttft_front"):
            assert _within(pruned, name, limit) == _within(everything, name, limit)


def _within(planned: PlanResult, front: str, limit: float) -> list[tuple[DeviceLayout, int]]:
    chosen: list[PlanChoice] = getattr(planned, front)
    return [(one.layout, one.replicas) for one in chosen if one.cost <= limit]


def test_one_run_rules_out_what_needs_too_many_replicas() -> None:
    found = evaluate_candidate(candidate("slow", 1, 1.0), plan_options(100.0), most_replicas=2)
    assert isinstance(found, Rejected)
    assert found.kind == "costs more"
    assert found.reason.startswith("needs more than 2 replicas: at 50/s each, ")


def test_what_is_too_slow_alone_is_never_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarathi.simulator.plan.replica_sizing.run_with_early_stopping", None)
    found = evaluate_candidate(candidate("slow", 1, 1.0), plan_options(1.0, tbt=0.0109), None)
    assert found == Rejected(
        DeviceLayout("slow", 1, 1, 32),
        "misses",
        "a token takes 11 ms even of a request alone, above 10.9 ms",
    )


def test_nothing_may_be_fast_enough() -> None:
    # A prompt of 20 tokens takes 30 ms, whatever the load.
    missing = plan_options(1.0, ttft=0.02)
    found = make_plan([candidate("slow", 1, 1.0)], missing, workers=1)
    assert found.cheapest is None
    [rejected] = found.rejected
    assert rejected.kind == "misses"
    assert "P90 TTFT" in rejected.reason


def test_a_target_of_ttft_takes_more_replicas() -> None:
    relaxed = evaluate_candidate(candidate("slow", 1, 1.0), plan_options(100.0), None)
    strict = evaluate_candidate(candidate("slow", 1, 1.0), plan_options(100.0, ttft=0.05), None)
    assert isinstance(relaxed, PlanChoice)
    assert isinstance(strict, PlanChoice)
    assert strict.replicas > relaxed.replicas
    assert strict.run.summary.ttft.p90 is not None
    assert strict.run.summary.ttft.p90 <= 0.05


def test_too_few_replicas_are_more_once_they_are_simulated_together() -> None:
    one, load = candidate("slow", 1, 1.0), plan_options(50.0)
    choice = evaluate_candidate(one, load, None)
    assert isinstance(choice, PlanChoice)
    assert choice.replicas == 2
    few = replace(choice, replicas=1)
    found = confirm(few, one, load, "least_outstanding")
    assert isinstance(found, PlanChoice)
    assert (found.replicas, found.confirmed) == (2, True)
    assert found.run.simulation is not None
    assert len(found.run.simulation.replicas) == 2
    assert found.run.simulation.deployment["router"] == "least_outstanding"


def test_what_was_too_expensive_is_tried_once_the_cheapest_costs_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def doubled(choice: PlanChoice, *others: object) -> PlanChoice | Rejected:
        cheap = choice.layout.device == "slow"
        return replace(choice, replicas=choice.replicas * (4 if cheap else 1), confirmed=True)

    monkeypatch.setattr(planner, "confirm", doubled)
    found = plan(candidate("slow", 1, 1.0), candidate("fast", 2, 3.5), explore=1.0)
    assert cheapest(found) == ("fast", 1, 3.5)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0, 1.1, 1.5, 4.0])
@pytest.mark.parametrize("ttft", [None, 0.15])
def test_only_runs_that_miss_are_stopped(share: float, ttft: float | None) -> None:
    setup, rate = toy_setup(), share * SPEED_ONE
    own = plan_options(rate, ttft=ttft)
    number = math.ceil(3 * rate) + 100
    run, verdict = run_with_early_stopping(setup, own, rate, number, "toy", 100)
    whole = simulated_run(setup, replace(own.load, num_requests=number), rate, "toy")
    assert verdict.met == evaluate(whole.summary, own.targets).met
    assert (run is None) == (share >= 1.5)
    if run is None:
        assert verdict.certain
        assert "more than a tenth" in verdict.reason


def test_a_tenth_that_is_left_behind_is_a_miss() -> None:
    targets = plan_targets(0.1)
    fine = evaluate(summary([*[0.1] * 19, 60.0] * 20), targets)
    assert (fine.met, fine.certain) == (True, True)
    behind = evaluate(summary([0.1, 0.1, 0.1, 60.0] * 25), targets)
    assert (behind.met, behind.certain) == (False, True)
    assert behind.reason == "P90 scheduling delay 60 s above 4 s"


def test_reasons_are_those_of_what_is_missed() -> None:
    slow = summary([0.1] * 100, ttft=3.0)
    assert evaluate(slow, plan_targets(0.1)).met
    assert evaluate(slow, plan_targets(0.1, ttft=3.5)).met
    missed = evaluate(slow, plan_targets(0.02, ttft=2.0))
    assert not missed.met
    assert missed.reason == "P99 TBT 50 ms above 20 ms, P90 TTFT 3 s above 2 s"


def test_what_cannot_be_laid_out_has_its_reason_and_its_arithmetic() -> None:
    def make(layout: DeviceLayout) -> object:
        if layout.tp == 1:
            raise SimulationError("it does not fit\n1 GiB - 2 GiB = -1 GiB")
        return toy_setup()

    wanted = layouts(["a", "b"], [1, 2], [1, 2], [None], max_devices=2)
    assert [(one.device, one.tp, one.pp) for one in wanted] == [
        (device, tp, pp) for device in "ab" for tp, pp in ((1, 1), (1, 2), (2, 1))
    ]
    prices: Mapping[str, float] = {"a": 1.0, "b": 2.0}
    fit, others = candidates(wanted, prices, make)  # type: ignore[arg-type]
    assert [(one.layout.device, one.layout.tp, one.replica_price) for one in fit] == [
        ("a", 2, 2.0),
        ("b", 2, 4.0),
    ]
    assert {(one.kind, one.reason, one.detail) for one in others} == {
        ("does not fit", "it does not fit", "1 GiB - 2 GiB = -1 GiB")
    }


points = st.lists(st.tuples(*[st.integers(0, 6).map(float)] * 2), max_size=30)


@given(points)
def test_no_point_of_the_front_is_dominated_and_all_others_are(
    those: list[tuple[float, float]],
) -> None:
    chosen = [one for one, is_chosen in zip(those, on_front(those), strict=True) if is_chosen]
    for one, is_chosen in zip(those, on_front(those), strict=True):
        assert is_chosen != any(dominates(other, one) for other in chosen)
    assert bool(chosen) == bool(those)
