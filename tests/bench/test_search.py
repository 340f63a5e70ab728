"""The search against servers whose capacity is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.bench.capacity.capacity_search import Search, Try
from sarathi.errors import BenchmarkError

Oracle = Callable[[Try], tuple[bool, bool]]  # met, certain

RESOLUTIONS = st.floats(0.01, 0.5)
STARTS = st.floats(0.01, 100)


def carried_out(search: Search, oracle: Oracle, limit: int = 60) -> list[Try]:
    """All runs that it asked for."""
    made: list[Try] = []
    while (wanted := search.next()) is not None:
        assert search.next() == wanted, "asking again changes nothing"
        made.append(wanted)
        assert len(made) <= limit, made
        search.record(wanted.rate, *oracle(wanted))
    assert len(made) == len(set(made)), "nothing is run twice"
    return made


def below(threshold: float) -> Oracle:
    return lambda wanted: (wanted.rate <= threshold, True)


def rates(made: list[Try]) -> list[float]:
    return [one.rate for one in made]


@given(STARTS, RESOLUTIONS, st.floats(-6, 8))
def test_it_ends_within_the_resolution_below_the_capacity(
    start: float, resolution: float, doublings: float
) -> None:
    truth = start * 2**doublings
    search = Search(start, resolution)
    made = carried_out(search, below(truth))
    assert search.capacity is not None
    assert search.high is not None
    assert search.capacity <= truth < search.high
    # Rates of three digits may leave nothing in between.
    assert search.high / search.capacity - 1 <= max(resolution, 0.0101)
    assert search.low == search.capacity
    bracketing = 2 + abs(doublings)
    assert len(made) <= bracketing + math.log2(math.log(2) / math.log1p(resolution)) + 2


def test_it_doubles_and_then_takes_geometric_middles() -> None:
    search = Search(1, 0.1)
    assert rates(carried_out(search, below(5))) == [1, 2, 4, 8, 5.66, 4.76, 5.19]
    assert (search.low, search.capacity, search.high) == (4.76, 4.76, 5.19)


def test_it_halves_from_a_start_that_is_too_high() -> None:
    search = Search(100, 0.5)
    assert rates(carried_out(search, below(20))) == [100, 50, 25, 12.5, 17.7]
    assert search.capacity == 17.7


@given(STARTS)
def test_where_even_the_lowest_rate_misses_there_is_no_capacity(start: float) -> None:
    search = Search(start, 0.1, max_halvings=4)
    made = carried_out(search, below(0))
    assert (search.capacity, search.low) == (None, None)
    assert search.high == min(rates(made)) == pytest.approx(start / 16, rel=0.01)
    assert len(made) <= 6  # rounding may ask for one more


@given(STARTS)
def test_where_all_rates_meet_the_highest_one_is_reported(start: float) -> None:
    search = Search(start, 0.1)
    made = carried_out(search, below(math.inf))
    assert search.high is None
    assert (
        search.capacity == search.low == max(rates(made)) == pytest.approx(start * 2**12, rel=0.01)
    )
    assert len(made) <= 14


def test_rates_have_three_digits() -> None:
    made = rates(carried_out(Search(1 / 3, 0.01), below(2.7182818)))
    assert all(rate == float(f"{rate:.3g}") for rate in made)


def test_a_wrong_verdict_that_is_not_certain_is_found_out() -> None:
    """The run at 4 is unlucky and misses; with other requests it is clear that it meets."""

    def oracle(wanted: Try) -> tuple[bool, bool]:
        return (wanted.rate <= 6, True) if wanted != Try(4) else (False, False)

    search = Search(1, 0.1)
    made = carried_out(search, oracle)
    assert Try(4, 1) in made
    assert made.index(Try(4, 1)) > made.index(Try(3.67)), "once the search has come close to it"
    assert search.capacity == pytest.approx(6, rel=0.1)
    trusting = Search(1, 0.1)
    carried_out(trusting, lambda wanted: (oracle(wanted)[0], True))
    assert trusting.capacity == pytest.approx(4, rel=0.1)


def test_a_wrong_pass_is_found_out_likewise() -> None:
    def oracle(wanted: Try) -> tuple[bool, bool]:
        return (wanted.rate <= 3, True) if wanted != Try(4) else (True, False)

    search = Search(1, 0.1)
    assert Try(4, 1) in carried_out(search, oracle)
    assert search.capacity == pytest.approx(3, rel=0.1)


def test_what_stays_uncertain_is_run_twice() -> None:
    search = Search(1, 0.1)
    made = carried_out(search, lambda wanted: (wanted.rate <= 3, False))
    assert [one.repeat for one in made if one.rate == search.capacity] == [0, 1]
    assert search.capacity == pytest.approx(3, rel=0.1)
    assert (search.low, search.high) == (None, None)


@given(
    st.floats(0.3, 30), st.floats(0.001, 0.2), st.sampled_from([0.02, 0.05, 0.1]), st.integers(0)
)
def test_noise_leads_astray_no_farther_than_it_reaches(
    truth: float, width: float, resolution: float, seed: int
) -> None:
    """Verdicts are certain where another one is hardly possible, and a coin is tossed elsewhere."""
    rng = random.Random(seed)
    reach = 4 * width  # in the logarithm of the rate

    def oracle(wanted: Try) -> tuple[bool, bool]:
        distance = math.log(wanted.rate / truth)
        if abs(distance) > reach:
            return distance < 0, True
        return rng.random() < 1 / (1 + math.exp(distance / width)), False

    search = Search(1, resolution)
    carried_out(search, oracle)
    assert search.capacity is not None
    assert abs(math.log(search.capacity / truth)) <= reach + math.log1p(resolution) + 0.01
    assert search.low is None or search.low <= search.capacity
    assert search.high is None or search.capacity < search.high


@given(st.integers(0), RESOLUTIONS)
def test_it_ends_whatever_the_verdicts_are(seed: int, resolution: float) -> None:
    rng = random.Random(seed)
    search = Search(1, resolution)
    carried_out(search, lambda wanted: (rng.random() < 0.5, rng.random() < 0.5), limit=150)
    bounds = [rate for rate in (search.low, search.capacity, search.high) if rate is not None]
    assert bounds == sorted(bounds)


def test_repeats_make_results_better_on_the_whole() -> None:
    """A run shows how far its rate is from the capacity, with an error of a tenth; the runs of a
    rate are taken together."""

    def error(trusting: bool, seed: int) -> float:
        rng = random.Random(seed)
        seen: dict[float, list[float]] = {}

        def oracle(wanted: Try) -> tuple[bool, bool]:
            runs = seen.setdefault(wanted.rate, [])
            runs.append(math.log(wanted.rate / 3) + rng.gauss(0, 0.1))
            distance = sum(runs) / len(runs)
            return distance < 0, trusting or abs(distance) > 2 * 0.1 / math.sqrt(len(runs))

        search = Search(1, 0.05)
        carried_out(search, oracle)
        assert search.capacity is not None
        return abs(math.log(search.capacity / 3))

    seeds = range(300)
    assert sum(error(False, s) for s in seeds) < 0.85 * sum(error(True, s) for s in seeds)


def test_contradictions_are_settled_by_certain_verdicts_then_by_number() -> None:
    search = Search(1, 1.0)
    for rate, met, certain in (
        (1.0, True, True),
        (2.0, False, False),
        (3.0, True, False),
        (4.0, True, False),
        (8.0, False, True),
        (9.0, True, True),  # above a certain miss: of no weight
    ):
        search.record(rate, met, certain)
    assert (search.low, search.capacity, search.high) == (1.0, 4.0, 8.0)
    search.record(3.0, False, False)
    assert search.capacity == 1.0, "as many contradict as before: the lower rate"
    search.record(2.0, True, True)
    assert (search.low, search.capacity) == (2.0, 2.0)


@given(STARTS, st.floats(0.05, 50))
def test_points_of_an_earlier_search_are_not_asked_for_again(start: float, truth: float) -> None:
    coarse, fine = Search(1, 0.3), Search(start, 0.03)
    before = carried_out(coarse, below(truth))
    for one in before:
        fine.record(one.rate, *below(truth)(one))
    made = carried_out(fine, below(truth))
    assert not set(rates(made)) & set(rates(before))
    assert fine.capacity is not None
    assert fine.capacity <= truth <= fine.capacity * 1.04


@pytest.mark.parametrize(
    ("start", "resolution", "message"),
    [(0.0, 0.1, "first rate is 0,"), (math.nan, 0.1, "first rate"), (1e9, 0.1, "first rate")]
    + [(1.0, value, "resolution is") for value in (0.0, -1.0, 0.009, 2.0, math.nan)],
)
def test_what_cannot_be_searched_is_refused(start: float, resolution: float, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        Search(start, resolution)


def test_an_uncertain_verdict_is_not_gone_far_from() -> None:
    """The end is near there: twice the rate or half of it would be a long way round."""
    up, down = Search(1.0, 0.1), Search(1.0, 0.1)
    up.record(1.0, True, False)
    down.record(1.0, False, False)
    assert up.next() == Try(1.41)
    assert down.next() == Try(0.707)
