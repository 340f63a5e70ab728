from __future__ import annotations

import pytest
from msgspec.structs import replace

from sarathi.bench.report.measured import CapacityWithRuns, ReportData
from sarathi.bench.report.notes import alerts, facts
from sarathi.bench.report.result_tables import (
    capacity_table,
    comparison_table,
    conduct_table,
    latency_table,
    points_table,
    throughput_table,
)
from sarathi.bench.report.table import MISSING, Table
from sarathi.bench.results import Run
from sarathi.telemetry import Targets
from tests.bench.report.sample_runs import capacity, record, records, run


def measured(*runs: Run, searches: tuple[CapacityWithRuns, ...] = ()) -> ReportData:
    return ReportData(runs, searches, ())


def column(table: Table | None, head: str, group: str = "") -> list[str]:
    assert table is not None
    heads = [(one.head, one.group) for one in table.columns]
    return [row[heads.index((head, group))].text for row in table.rows]


def test_latencies_are_those_of_the_summary() -> None:
    one = run(of=records(60))
    table = latency_table(measured(one))
    summary = one.summary
    assert summary.tbt.p99 is not None
    assert summary.ttft.p50 is not None
    [shown] = column(table, "P99", "TBT (ms)")
    assert float(shown) == pytest.approx(1000 * summary.tbt.p99, rel=0.005)
    [shown] = column(table, "P50", "TTFT (s)")
    assert float(shown) == pytest.approx(summary.ttft.p50, rel=0.005)


def test_an_interval_is_below_its_value() -> None:
    slower = [record(gaps=[0.05] * 9)] * 20 + [record(gaps=[0.2] * 9)] * 20
    table = latency_table(measured(run(of=slower)))
    assert table is not None
    heads = [(one.head, one.group) for one in table.columns]
    assert table.rows[0][heads.index(("P50", "TBT (ms)"))].note == "50.0 to 200"


def test_a_run_of_few_requests_has_no_intervals() -> None:
    table = latency_table(measured(run(of=records(19))))
    assert table is not None
    assert {cell.note for cell in table.rows[0]} == {""}


def test_figures_of_a_run_that_was_stopped_are_left_out() -> None:
    all_of = measured(searches=(capacity(rates=(1.0, 4.0), capacity=1.0, stopped=[4.0]),))
    for table, heads in (
        (latency_table(all_of), [("P50", "TTFT (s)"), ("P99", "TBT (ms)"), ("P50", "delay (s)")]),
        (throughput_table(all_of), [("sent", "requests (1/s)"), ("output", "tokens (1/s)")]),
        (points_table(all_of), [("P99 TBT (ms)", ""), ("median delay (s)", "")]),
    ):
        for head in heads:
            whole, stopped = column(table, *head)
            assert whole != MISSING
            assert stopped == MISSING
    table = latency_table(all_of)
    assert table is not None
    assert [row[1].note for row in table.rows] == ["met", "missed, stopped"]


def test_there_is_no_ratio_to_a_run_that_was_stopped() -> None:
    table = comparison_table(measured(run("a", stopped="because"), run("b")))
    assert set(column(table, "P99", "TBT")) == {MISSING}


def test_unreported_latencies_have_no_column() -> None:
    silent = [record(gaps=()) for _ in range(3)]
    table = latency_table(measured(run(of=silent)))
    assert table is not None
    groups = {one.group for one in table.columns}
    assert "TTFT (s)" in groups
    assert "TBT (ms)" not in groups


def test_failures_are_counted_by_kind() -> None:
    one = run(of=[record(), record(failure="timeout"), record(failure="dropped")])
    table = throughput_table(measured(one))
    assert column(table, "failures") == ["1 dropped, 1 timeout"]
    assert column(table, "complete") == ["1 of 3"]


def test_goodput_has_a_column_where_there_are_targets() -> None:
    assert column(throughput_table(measured(run(targets=Targets(10, 10)))), "goodput (1/s)")
    with pytest.raises(ValueError, match="goodput"):
        column(throughput_table(measured(run())), "goodput (1/s)")


def test_loads_of_runs_and_searches_are_in_one_table_by_label_and_rate() -> None:
    all_of = measured(run("b", 9.0), run("a", 2.0), run("a", 1.0), searches=(capacity("b"),))
    table = latency_table(all_of)
    assert column(table, "") == ["b"] * 4 + ["a"] * 2
    assert column(table, "rate (1/s)") == ["1", "2", "4", "9", "1", "2"]


def test_ratios_are_to_the_first_label() -> None:
    slow = [record(gaps=[0.1] * 9, ttft=0.4)]
    fast = [record(gaps=[0.05] * 9, ttft=0.1)]
    table = comparison_table(measured(run("slow", of=slow), run("fast", of=fast)))
    assert column(table, "") == ["slow", "fast"]
    assert column(table, "P99", "TBT") == ["1.00x", "0.50x"]
    assert column(table, "P50", "TTFT") == ["1.00x", "0.25x"]


def test_one_label_is_compared_with_nothing() -> None:
    assert comparison_table(measured(run(rate=1.0), run(rate=2.0))) is None


def test_capacities_are_compared_where_they_have_the_same_target() -> None:
    same = (capacity("a", 2.0), capacity("b", 1.0))
    assert column(comparison_table(measured(searches=same)), "capacity") == ["1.00x", "0.50x"]
    other = (capacity("a", 2.0), capacity("b", 1.0, target=0.5))
    with pytest.raises(ValueError, match="capacity"):
        column(comparison_table(measured(searches=other)), "capacity")


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1.5, 3, "1.5 to 3"),
        (None, 3, "below 3"),
        (1.5, None, "above 1.5"),
        (None, None, "not known"),
    ],
)
def test_the_range_of_a_capacity_has_the_known_bounds(
    low: float | None, high: float | None, text: str
) -> None:
    table = capacity_table(measured(searches=(capacity(low=low, high=high),)))
    assert column(table, "certain range (1/s)") == [text]
    assert column(table, "capacity (1/s)") == ["2"]


def test_a_capacity_without_an_upper_bound_is_marked() -> None:
    table = capacity_table(measured(searches=(capacity("a", 4.0), capacity("b", 2.0))))
    assert table is not None
    assert [row[1].note for row in table.rows] == ["at least: no rate missed", ""]


def test_a_search_without_a_capacity_has_none() -> None:
    table = capacity_table(measured(searches=(capacity(capacity=None),)))
    assert column(table, "capacity (1/s)") == ["none"]


def test_each_rate_of_a_search_has_its_verdict_and_reason() -> None:
    table = points_table(measured(searches=(capacity(capacity=2.0),)))
    assert column(table, "verdict") == ["met", "met", "missed"]
    assert set(column(table, "reason")) == {"because of <i>it</i>"}


def test_how_a_run_went_has_its_date_and_its_lag() -> None:
    table = conduct_table(measured(run()))
    assert column(table, "began (UTC)") == ["2025-11-24 16:00"]
    assert column(table, "P99", "client lag (ms)") == ["3.00"]
    assert column(table, "state") == ["complete"]


def test_runs_that_must_not_be_used_come_first() -> None:
    bad = run("a", invalid="the client was late")
    cut = run("b", stopped="too slow", of=[record(), record(failure="timeout")])
    found = alerts(measured(bad, cut))
    assert [alert.tone for alert in found] == ["bad", "warn", "warn"]
    assert found[0].texts == ["a, 2/s: the client was late"]
    assert found[1].texts == ["b, 2/s: too slow"]
    assert found[2].texts == ["b, 2/s: 1 of 2 (1 timeout); the first: a <b>timeout</b>"]


def test_what_made_a_run_easier_is_reported_once_for_each_label() -> None:
    easy = [replace(record(), output_tokens=20, cached_tokens=25)] * 2
    found = alerts(measured(run("a", 1.0, of=easy), run("a", 2.0, of=easy), run("b")))
    assert [alert.texts for alert in found] == [
        ["a: answers had 40 of 80 tokens asked for"],
        ["a: 25 % of the prompt tokens came from the server's prefix cache"],
    ]


def test_conversations_are_cached_on_purpose() -> None:
    one = run(of=[replace(record(), cached_tokens=25)])
    assert alerts(measured(replace(one, workload={"turns": "3"}))) == []


def test_a_run_that_a_search_stopped_is_no_alert() -> None:
    search = capacity()
    stopped = CapacityWithRuns(search.capacity, [run(stopped="certain to miss")])
    assert alerts(measured(searches=(stopped,))) == []


def test_a_common_value_is_shown_once_and_others_with_their_labels() -> None:
    found = {fact.name: fact.values for fact in facts(measured(run("a"), run("b"), run("a")))}
    assert found["Model"] == [("", "a model")]
    assert found["Server"] == [("a", "serve --name a"), ("b", "serve --name b")]
    assert found["Workload"] == [("", "--prompt-lengths lognormal:430,1400 --arrivals poisson")]
