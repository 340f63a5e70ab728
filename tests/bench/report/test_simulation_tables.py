"""Simulated hardware on a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarathi.bench.report import CapacityWithRuns, write_report
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.notes import alerts, facts
from sarathi.bench.report.result_tables import conduct_table, simulation_table
from sarathi.bench.report.table import MISSING, Table
from sarathi.bench.results import Run
from tests.bench.report.sample_runs import capacity, run
from tests.simulated_runs import simulated, use


def measured(*runs: Run) -> ReportData:
    return ReportData(runs, (), ())


def column(table: Table | None, head: str, group: str = "") -> list[str]:
    assert table is not None
    heads = [(one.head, one.group) for one in table.columns]
    return [row[heads.index((head, group))].text for row in table.rows]


def test_what_was_measured_has_no_simulated_hardware() -> None:
    assert simulation_table(measured(run())) is None


def test_each_replica_has_a_row_with_its_stages_in_turn() -> None:
    other = use(active=50.0, busy=(50.0, 10.0), overhead=1.0, preemptions=0, kv_mean=0.1)
    table = simulation_table(measured(simulated(run(), use(), other)))
    assert column(table, "replica") == ["0", "1"]
    assert column(table, "busy (%)", "stages") == ["80, 60", "100, 20"]
    assert column(table, "idle (%)", "stages") == ["20, 40", "0, 80"]
    assert column(table, "own time", "engine") == ["4 %", "2 %"]
    assert column(table, "tokens each", "engine") == ["50.0", "50.0"]
    assert column(table, "mean", "KV blocks in use") == ["50 %", "10 %"]
    assert column(table, "preemptions") == ["1", "0"]
    assert column(table, "$ per million tokens") == ["0.250", ""]


def test_many_replicas_have_one_row_weighted_by_their_time() -> None:
    idle = use(active=0.0, busy=(0.0, 0.0), overhead=0.0, preemptions=0, kv_mean=0.0, kv_max=0.0)
    table = simulation_table(measured(simulated(run(), *[use()] * 6, *[idle] * 3)))
    assert column(table, "replica") == ["all 9"]
    assert column(table, "busy (%)", "stages") == ["80, 60"]
    assert column(table, "mean", "KV blocks in use") == ["50 %"]
    assert column(table, "preemptions") == ["6"]


def test_a_replica_without_requests_has_no_shares() -> None:
    idle = use(active=0.0, busy=(0.0,), overhead=0.0, kv_mean=0.0)
    table = simulation_table(measured(simulated(run(), idle, cost=None)))
    assert column(table, "busy (%)", "stages") == [MISSING]
    assert column(table, "$ per million tokens") == [MISSING]


def test_a_simulated_client_is_never_late() -> None:
    table = conduct_table(measured(simulated(run())))
    assert table is not None
    assert {one.group for one in table.columns} == {""}
    assert column(table, "state") == ["simulated, complete"]
    both = conduct_table(measured(run("a"), simulated(run("b"))))
    assert column(both, "P99", "client lag (ms)") == ["3.00", MISSING]


def test_the_accuracy_is_shown_once_for_each_label() -> None:
    runs = [simulated(run("a", 1.0)), simulated(run("a", 2.0), every=4), run("b")]
    [alert] = alerts(measured(*runs))
    assert alert.head == "Simulated, not measured"
    assert alert.texts == [
        "a: off by 3% in the median; figures by request show one in 4; percentiles are those of all"
    ]


def test_a_simulation_has_no_client() -> None:
    assert "Client's machine" in [fact.name for fact in facts(measured(run()))]
    names = [fact.name for fact in facts(measured(simulated(run())))]
    assert "Machine" in names
    assert "Client's machine" not in names


@pytest.mark.parametrize("search", [False, True])
def test_a_page_of_simulated_runs_has_their_section(tmp_path: Path, search: bool) -> None:
    found = capacity("of a search")
    searches = [CapacityWithRuns(found.capacity, [simulated(one) for one in found.runs])]
    written = write_report(
        tmp_path / "page.html", [] if search else [simulated(run())], searches if search else []
    )
    page = written[0].read_text()
    assert "<h2>Simulated hardware</h2>" in page
    assert "off by 3% in the median" in page
    assert "client lag" not in page
