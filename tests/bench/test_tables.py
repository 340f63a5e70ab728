"""What is printed for people."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sarathi.bench.report.notes import run_notes
from sarathi.bench.results import FIGURES, Capacity, Point, Row
from sarathi.bench.terminal import (
    capacity_text,
    print_capacities,
    print_comparison,
    print_run,
    run_fields,
)
from sarathi.telemetry import summarise
from tests.bench.made_up import record, run
from tests.simulated_runs import simulated, use

HOSTILE = ["http://[fe80::1]:8000", "a[/b]", "[red]x", "a :cat: b", "ends in \\"]
Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def point(rate: float, met: bool = True, stopped: bool = False, reason: str = "because") -> Point:
    return Point(
        rate=rate,
        met=met,
        reason=reason,
        certain=True,
        stopped=stopped,
        summary=summarise([record()] * 30),
        run="run.json.gz",
    )


def capacity(*points: Point, label: str = "Sarathi", reached: float | None = 2.0) -> Capacity:
    return Capacity(
        label=label,
        server="sarathi serve tiny",
        model="tiny",
        workload={},
        machine="here",
        tbt_target=0.1,
        delay_target=2.0,
        requests_per_point=2,
        resolution=0.1,
        capacity=reached,
        low=reached,
        high=min((one.rate for one in points if not one.met), default=None),
        points=list(points),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_printed_as_it_is(text: str, capsys: Printed) -> None:
    failed = replace(record(failure="error_event"), detail=text)
    print_run(replace(run([record(), failed]), label=text))
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].strip() == text
    assert f"(the first: {text})" in printed

    found = capacity(point(2.0), point(4.0, met=False, reason=text), label=text)
    print_capacities([found, found])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].strip() == text
    assert text in printed.split("missed")[1].splitlines()[0]
    assert f"{text}: 1.00 of {text}" in printed

    empty = dict.fromkeys(FIGURES)
    row = Row(label=text, rate=1.0, requests=1, failed=0, invalid=7, figures=empty, ratios=empty)
    print_comparison([row])
    assert text in (printed := capsys.readouterr().out)
    assert "7" in printed.split("invalid runs")[1]


def test_a_run_that_was_stopped_has_no_latencies(capsys: Printed) -> None:
    print_capacities([capacity(point(2.0), point(4.0, met=False, stopped=True))])
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    [whole] = [line for line in lines if line[:1] == ["2"]]
    [stopped] = [line for line in lines if line[:1] == ["4"]]
    assert whole[1:7] == ["met", "50.0", "0.100", "0.200", "0.200", "30"]
    assert stopped[1:6] == ["missed", "-", "-", "-", "-"]


def test_the_outcome_of_a_search_in_a_sentence() -> None:
    assert capacity_text(capacity(point(2.0), point(4.0, met=False))) == (
        "capacity: 2 requests a second within P99 TBT of 100 ms (for certain: 2 meets it, 4 misses "
        "it)"
    )
    assert capacity_text(capacity(point(1.0), point(2.0))) == (
        "capacity: at least 2 requests a second within P99 TBT of 100 ms: no rate that was tried "
        "misses it (for certain: 2 meets it)"
    )
    assert capacity_text(capacity(point(1.0, met=False), reached=None)) == (
        "no capacity: even 1 requests a second miss P99 TBT of 100 ms"
    )


def test_what_made_a_run_easier_for_the_server_is_noted() -> None:
    easy = replace(record(), output_tokens=15, cached_tokens=5)
    found = run_notes(run([record(), easy, replace(easy, failure="timeout")]))
    assert "answers had 20 of 25 tokens asked for" in found
    assert "12.5 % of the prompt tokens came from the server's prefix cache" in found
    plain = run_notes(run([record()]))
    assert not [note for note in plain if "tokens asked for" in note or "prefix cache" in note]


def test_a_simulated_run_has_notes_on_the_use_of_its_hardware() -> None:
    second = use(active=300.0, busy=(60.0, 300.0), overhead=0.0, preemptions=2, kv_mean=0.1)
    found = run_notes(simulated(run([record()]), use(), second))
    assert found == [
        "stage 0: busy for 35 % of the time with requests, idle (bubbles) for 65 %",
        "stage 1: busy for 90 % of the time with requests, idle (bubbles) for 10 %",
        "the engine prepared iterations for 1 % of that time",
        "KV blocks: 20 % in use on average, 75 % at most; 3 preemptions",
        "cost: $0.250 a million tokens, prompts included",
        "accuracy: off by 3% in the median",
    ]


def test_a_simulated_run_has_a_note_on_what_it_leaves_out() -> None:
    one_stage = use(busy=(90.0,))
    found = run_notes(simulated(run([record()]), one_stage, cost=None, every=4))
    assert found[0].startswith("devices: busy for 90 %")
    assert "figures by request show one in 4; percentiles are those of all" in found
    assert not [note for note in found if "cost" in note or "client" in note]


def test_failures_without_a_kept_record_are_counted() -> None:
    failed = run([record(), record(failure="refused")])
    found = run_notes(simulated(replace(failed, records=failed.records[:1]), every=2))
    assert found[0] == "failed: 1 refused"


def test_json_holds_what_the_simulation_did() -> None:
    assert run_fields(run([record()]))["simulation"] is None
    fields = run_fields(simulated(run([record()])))["simulation"]
    assert fields["replicas"][0]["busy"] == [80.0, 60.0]
    assert fields["cost_per_million_tokens"] == 0.25
    assert fields["accuracy"] == "off by 3% in the median"
