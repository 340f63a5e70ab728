from __future__ import annotations

from sarathi.bench.report.measured import CapacityWithRuns, ReportData
from sarathi.bench.results import Run
from tests.bench.report.sample_runs import capacity, record, run


def shown(
    *runs: Run, searches: tuple[CapacityWithRuns, ...] = ()
) -> list[tuple[str, float | None]]:
    return [(run.label, run.rate) for run in ReportData(runs, searches, ()).shown]


def test_labels_are_compared_at_the_highest_rate_that_they_share() -> None:
    runs = [run(label, rate) for label in "ab" for rate in (1.0, 2.0)]
    assert shown(*runs, run("a", 4.0)) == [("a", 2.0), ("b", 2.0)]


def test_a_rate_above_all_capacities_is_not_the_one_to_compare() -> None:
    searches = (capacity("a", 2.0), capacity("b", 1.0))  # both have missed at 4
    assert shown(searches=searches) == [("a", 2.0), ("b", 2.0)]


def test_without_a_common_rate_the_nearest_ones_are_compared() -> None:
    runs = run("a", 1.0), run("a", 3.0), run("b", 3.2), run("b", 9.0)
    assert shown(*runs) == [("a", 3.0), ("b", 3.2)]


def test_one_label_is_shown_at_some_of_its_rates_the_least_and_the_highest_among_them() -> None:
    found = shown(*(run("a", float(rate)) for rate in range(20, 0, -1)))
    assert len(found) == 6
    assert (found[0], found[-1]) == (("a", 1.0), ("a", 20.0))


def test_runs_that_were_stopped_are_not_compared_where_there_are_others() -> None:
    searches = (capacity("a", 4.0), capacity("b", 2.0, stopped=[4.0]))
    assert shown(searches=searches) == [("a", 2.0), ("b", 2.0)]
    assert shown(run("a", 1.0, stopped="because")) == [("a", 1.0)]


def test_a_trace_has_the_rate_that_was_had() -> None:
    requests = [record(arrival) for arrival in (0.0, 1.0, 2.0)]
    [load] = ReportData((run(rate=None, of=requests),), (), ()).loads
    assert load.rate == 1.5


def test_each_label_has_its_strictest_target() -> None:
    searches = capacity("a", target=0.5), capacity("a", target=0.2), capacity("b", target=0.1)
    found = ReportData((), searches, ())
    assert found.targets == (0.1, 0.2, 0.5)
    assert found.target_of("a") == 0.2
    assert found.target_of("of another") == 0.1
    assert ReportData((), (), ()).target_of("a") is None
