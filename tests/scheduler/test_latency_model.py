"""The latency model: its fit, corrections by iterations, robustness and accuracy."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.scheduler.budget.latency_model import (
    MAX_TOKENS,
    Accuracy,
    AccuracyWindow,
    LatencyModel,
    Work,
    fit_relative,
)

TRUTH = (9.8e-3, 2.7e-4, 1.5e-7, 1.8e-6, 7e-5)
NAMES = ("any", "decodes", "prompt", "hybrid")


def seconds_of(work: Work, truth: tuple[float, ...] = TRUTH) -> float:
    return truth[0] + math.fsum(c * x for c, x in zip(truth[1:], work, strict=True))


def iterations(kind: str, seed: int = 0) -> Iterator[Work]:
    rng = random.Random(seed)
    while True:
        chosen = kind if kind != "any" else rng.choice(NAMES[1:])
        contexts = [rng.randint(1, 1500) for _ in range(rng.choice((1, 4, 16, 48)))]
        if chosen == "prompt":
            contexts = []
        length = rng.randint(1, 500) if chosen != "decodes" else 0
        past = rng.choice((0, rng.randint(0, 2000)))
        yield Work(
            len(contexts) + length,
            length * (past + length / 2),
            sum(contexts),
            len(contexts) + bool(length),
        )


def teach(
    model: LatencyModel,
    kind: str,
    count: int,
    *,
    factor: float = 1.0,
    truth: tuple[float, ...] = TRUTH,
    seed: int = 1,
) -> None:
    """Shows the model iterations that take `factor` times the truth, with 5% of noise."""
    rng = random.Random(seed)
    for work, _ in zip(iterations(kind, seed), range(count), strict=False):
        model.observe(work, seconds_of(work, truth) * factor * rng.lognormvariate(0, 0.05))


def median_error(
    model: LatencyModel, kind: str = "any", factor: float = 1.0, truth: tuple[float, ...] = TRUTH
) -> float:
    works = (work for work, _ in zip(iterations(kind, 99), range(100), strict=False))
    return statistics.median(
        abs(model.predict(work) / (factor * seconds_of(work, truth)) - 1) for work in works
    )


# -- fitting --------------------------------------------------------------------------------


def test_a_fit_finds_the_coefficients() -> None:
    works = [work for work, _ in zip(iterations("any"), range(30), strict=False)]
    model = LatencyModel.fit([(work, seconds_of(work)) for work in works])
    assert model.coefficients == pytest.approx(TRUTH, rel=1e-2)


def test_a_fit_survives_outliers() -> None:
    works = [work for work, _ in zip(iterations("any"), range(30), strict=False)]
    observations = [
        (work, seconds_of(work) * (10 if i % 10 == 0 else 1)) for i, work in enumerate(works)
    ]
    assert median_error(LatencyModel.fit(observations)) < 0.05


@pytest.mark.parametrize("factor", [1.2, 2.0, 10.0])
def test_outliers_of_a_fit_weigh_as_in_the_loss_of_huber(factor: float) -> None:
    """Where it is flat: 8 (c - 1) = 2 * 0.1 / factor, as beyond an error of 0.1 it is straight."""
    [coefficient] = fit_relative([[1.0]] * 10, [1.0] * 8 + [factor] * 2)
    assert coefficient == pytest.approx(1 + 0.2 / (8 * factor), rel=1e-4)


def test_no_coefficient_is_negative_where_a_plain_fit_would_make_it_so() -> None:
    faster_when_larger = [
        (Work(n, n * n / 2, 0, 1), t) for n, t in ((1, 3e-3), (16, 2.5e-3), (64, 2e-3))
    ]
    model = LatencyModel.fit(faster_when_larger)
    assert min(model.coefficients) >= 0
    assert 2e-3 < model.predict(Work(16, 128, 0, 1)) < 3e-3


def test_nothing_to_fit_is_an_error() -> None:
    for observations in ([], [(Work(1, 0, 1, 1), 0.0)], [(Work(1, 0, 1, 1), math.nan)]):
        with pytest.raises(ValueError, match="no iteration to fit"):
            LatencyModel.fit(observations)


def test_one_observation_is_enough() -> None:
    work = Work(3, 0, 300, 3)
    assert LatencyModel.fit([(work, 0.02)]).predict(work) == pytest.approx(0.02, rel=0.01)


# -- correcting -----------------------------------------------------------------------------


def test_a_model_learns_what_its_profile_could_not_see() -> None:
    """Sampling, for one, which takes time by the request."""
    with_sampling = (TRUTH[0] + 2e-3, *TRUTH[1:4], TRUTH[4] + 2e-4)
    model = LatencyModel(TRUTH)
    assert median_error(model, "decodes", truth=with_sampling) > 0.1
    teach(model, "any", 100, truth=with_sampling)
    assert median_error(model, "decodes", truth=with_sampling) < 0.03


@pytest.mark.parametrize("kind", NAMES[1:])
def test_one_outlier_moves_predictions_by_a_few_per_cent(kind: str) -> None:
    model = LatencyModel(TRUTH)
    teach(model, "any", 300)
    probe = Work(150, 134 * 500.0, 16 * 500, 17)
    before = model.predict(probe)
    outlier = next(iterations(kind, 5))
    model.observe(outlier, 10 * seconds_of(outlier))
    assert abs(model.predict(probe) / before - 1) < 0.05
    model.observe(outlier, 0.1 * seconds_of(outlier))
    assert abs(model.predict(probe) / before - 1) < 0.05


def test_outliers_now_and_then_do_no_harm() -> None:
    model = LatencyModel(TRUTH)
    for _ in range(20):
        teach(model, "any", 20)
        model.observe(Work(16, 0, 8000, 16), 3.0)
    teach(model, "any", 10)
    assert median_error(model) < 0.05


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_lasting_change_is_followed_within_tens_of_iterations(factor: float) -> None:
    model = LatencyModel(TRUTH)
    teach(model, "any", 300)
    teach(model, "any", 40, factor=factor, seed=2)
    assert median_error(model, factor=factor) < 0.1


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_decodes_alone_correct_the_predicted_cost_of_prompts(factor: float) -> None:
    model = LatencyModel(TRUTH)
    teach(model, "any", 100)
    teach(model, "decodes", 60, factor=factor)
    assert median_error(model, "prompt", factor) < 0.15


def test_thousands_of_decodes_do_not_spoil_what_is_known_of_prompts() -> None:
    model = LatencyModel(TRUTH)
    for seed in range(10):
        teach(model, "decodes", 1000, seed=seed)
    assert median_error(model, "prompt") < 0.1
    teach(model, "hybrid", 20)
    assert median_error(model) < 0.05


def test_one_shape_for_very_long_leaves_the_model_able_to_learn() -> None:
    model = LatencyModel(TRUTH)
    rng = random.Random(0)
    work = Work(16, 0.0, 8000, 16)
    for _ in range(30_000):
        model.observe(work, seconds_of(work) * rng.lognormvariate(0, 0.05))
    assert median_error(model) < 0.3
    teach(model, "any", 50)
    assert median_error(model) < 0.05


def test_a_coefficient_that_is_zero_comes_back() -> None:
    model = LatencyModel((TRUTH[0], TRUTH[1], 0.0, 0.0, TRUTH[4]))
    teach(model, "any", 300)
    assert median_error(model) < 0.05


def test_a_model_of_another_machine_is_corrected_too() -> None:
    model = LatencyModel([c / 30 for c in TRUTH])
    teach(model, "any", 300)
    assert median_error(model) < 0.05


# -- its own error --------------------------------------------------------------------------


def test_the_error_is_that_of_predictions_before_the_correction() -> None:
    model = LatencyModel(TRUTH)
    assert model.accuracy == Accuracy()
    work = next(iterations("hybrid"))
    model.observe(work, 2 * seconds_of(work))
    assert (model.accuracy.median, model.accuracy.p90) == pytest.approx((0.5, 0.5))
    assert model.accuracy.count == 1


def test_the_error_is_of_the_latest_iterations() -> None:
    model = LatencyModel(TRUTH)
    teach(model, "any", 32, factor=10)
    assert model.accuracy.count == 32
    assert model.accuracy.p90 > 0.5
    teach(model, "any", 400, factor=10)
    assert model.accuracy.count == 256
    assert 0.01 < model.accuracy.median < 0.05 < model.accuracy.p90 < 0.15


# -- prices of prompts ----------------------------------------------------------------------

coefficient = st.one_of(
    st.just(0.0), st.floats(1e-9, 10), st.floats(0, 1e-300), st.floats(0, 1e-12)
)
models = st.lists(coefficient, min_size=5, max_size=5).map(LatencyModel)
some_seconds = st.one_of(st.floats(0, 100), st.floats(0, 1e-6), st.floats(0))
contexts = st.integers(0, 2**20)


@given(models, some_seconds, contexts)
@settings(max_examples=1000)
def test_prompt_tokens_are_the_most_that_fit(
    model: LatencyModel, seconds: float, context: int
) -> None:
    tokens = model.prompt_tokens(seconds, context)
    assert 0 <= tokens <= MAX_TOKENS
    assert tokens == 0 or model.prompt_cost(tokens, context, False) <= seconds
    if seconds > 0 and tokens < MAX_TOKENS:
        assert model.prompt_cost(tokens + 1, context, False) > seconds


@given(models, some_seconds, some_seconds, contexts)
def test_more_time_never_gives_fewer_tokens(
    model: LatencyModel, one: float, other: float, context: int
) -> None:
    less, more = sorted((one, other))
    assert model.prompt_tokens(less, context) <= model.prompt_tokens(more, context)


@given(models, st.integers(1, MAX_TOKENS), contexts)
def test_the_cost_of_tokens_buys_them(model: LatencyModel, tokens: int, context: int) -> None:
    cost = model.prompt_cost(tokens, context, False)
    assert cost == 0 or model.prompt_tokens(cost, context) >= tokens


@pytest.mark.parametrize("seconds", [0.0, -1.0, -math.inf, math.nan])
def test_no_time_gives_no_tokens(seconds: float) -> None:
    assert LatencyModel(TRUTH).prompt_tokens(seconds, 100) == 0


def test_a_slice_costs_what_it_adds_to_the_prediction() -> None:
    model = LatencyModel(TRUTH)
    decodes = Work(16, 0.0, 8000, 16)
    beside = Work(16 + 100, 100 * (700 + 50.0), 8000, 17)
    added = model.predict(beside) - model.predict(decodes)
    assert model.prompt_cost(100, 700, samples=True) == pytest.approx(added)
    assert model.prompt_cost(100, 700, False) == pytest.approx(added - TRUTH[4])


def test_chunks_add_up_to_the_prompt() -> None:
    model = LatencyModel(TRUTH)
    chunks = sum(model.prompt_cost(128, start, False) for start in range(0, 1024, 128))
    assert chunks == pytest.approx(model.prompt_cost(1024, 0, False))


# -- any input ------------------------------------------------------------------------------

works = st.builds(
    Work,
    st.integers(0, 2**20),
    st.floats(0, 2**40),
    st.integers(0, 2**30),
    st.integers(0, 2**16),
)
times = st.one_of(st.floats(), st.floats(1e-9, 1e-3), st.floats(1e-3, 1e3))


@given(
    st.one_of(models, st.just(TRUTH).map(LatencyModel)),
    st.lists(st.tuples(works, times, st.integers(1, 50)), max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_observed_predictions_are_finite_and_positive(
    model: LatencyModel, observed: list[tuple[Work, float, int]]
) -> None:
    for work, seconds, repeats in observed:
        for _ in range(repeats):
            model.observe(work, seconds)
        for probe in (work, Work(0, 0.0, 0, 0), Work(300, 1e6, 10**5, 64)):
            assert 0 < model.predict(probe) < math.inf
        assert min(model.coefficients) >= 0
        assert model.prompt_tokens(0.05, 1000) >= 0
        assert math.isfinite(model.accuracy.p90)


@given(st.lists(st.tuples(works, times), max_size=12))
@settings(max_examples=100, deadline=None)
def test_whatever_is_fitted_predictions_are_finite_and_positive(
    observed: list[tuple[Work, float]],
) -> None:
    try:
        model = LatencyModel.fit(observed)
    except ValueError:
        assert not any(1e-7 <= seconds <= 1e5 for _, seconds in observed)
        return
    for work, seconds in observed:
        assert 0 < model.predict(work) < math.inf
        model.observe(work, seconds)
        assert 0 < model.predict(work) < math.inf


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_time_that_makes_no_sense_is_ignored(seconds: float) -> None:
    model = LatencyModel(TRUTH)
    model.observe(Work(16, 0.0, 8000, 16), seconds)
    assert model.coefficients == TRUTH
    assert model.accuracy.count == 0


def test_an_empty_iteration_is_ignored() -> None:
    model = LatencyModel(TRUTH)
    model.observe(Work(0, 0.0, 0, 0), 1e-4)
    assert model.coefficients == TRUTH


def test_some_lateness_is_presumed_at_first() -> None:
    assert AccuracyWindow().accuracy == Accuracy(0.0, 0.0, 0, 0.1)


def test_lateness_is_that_of_one_in_twenty_iterations_with_prompt() -> None:
    window = AccuracyWindow()
    for number in range(100):
        window.add(1.0, 1.0 + number / 100, with_prompt=True)
        window.add(1.0, 9.0, with_prompt=False)
    assert window.accuracy.late == pytest.approx(0.95, abs=0.05)


def test_early_iterations_are_not_late() -> None:
    window = AccuracyWindow()
    for _ in range(64):
        window.add(1.0, 0.5, with_prompt=True)
    assert window.accuracy.late == 0.0
    assert window.accuracy.median == pytest.approx(1.0)
