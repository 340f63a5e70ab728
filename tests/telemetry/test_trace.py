"""What a viewer finds in a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sarathi.errors import ConfigError
from sarathi.telemetry.recorder import StageTime
from sarathi.telemetry.trace import TraceRecorder
from tests.telemetry.recording import START, batch, decode, prompt, record, request

Event = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


@pytest.fixture
def trace(path: Path) -> TraceRecorder:
    return TraceRecorder(str(path), START, "tokens")


def events(trace: TraceRecorder, path: Path) -> list[Event]:
    trace.close()
    read: list[Event] = json.loads(path.read_text())
    return read


class Span(NamedTuple):
    name: str
    begin: int
    end: int | None
    depth: int


def spans(events: list[Event], request_id: int) -> list[Span]:
    """The spans of a request's track, as a viewer nests them: by time, ties as in the file."""
    track = [e for e in events if e.get("cat") == "request" and e["id"] == str(request_id)]
    found: list[Span] = []
    stack: list[int] = []
    for event in sorted(track, key=lambda event: event["ts"]):
        if event["ph"] == "b":
            stack.append(len(found))
            found.append(Span(event["name"], event["ts"], None, len(stack)))
        else:
            index = stack.pop()
            assert found[index].name == event["name"]
            found[index] = found[index]._replace(end=event["ts"])
    return found


def of_phase(events: list[Event], phase: str) -> list[Event]:
    return [event for event in events if event["ph"] == phase]


def test_an_iteration_holds_its_parts(trace: TraceRecorder, path: Path) -> None:
    # Thirds, so that begins plus durations would not meet their ends if they were rounded alone.
    times = [START + 1 + third / 3 for third in range(4)]
    trace.record(
        record(
            batch(
                7, decode(request(1)), prompt(request(2, 50), 16, 32), allowance=256, predicted=0.5
            ),
            times[0],
            times[3],
            parts=(("schedule", times[1]), ("execute", times[2]), ("sample", times[3])),
        )
    )
    whole, *parts = of_phase(events(trace, path), "X")
    assert whole["args"] == {
        "iteration": 7,
        "tokens": 33,
        "decodes": 1,
        "prompts": ["2: 16 + 32"],
        "budget_tokens": 256,
        "predicted_ms": 500.0,
    }
    assert (whole["ts"], whole["dur"]) == (1_000_000, 1_000_000)
    assert [part["name"] for part in parts] == ["schedule", "execute", "sample"]
    edges = [part["ts"] for part in parts] + [parts[-1]["ts"] + parts[-1]["dur"]]
    assert edges == [1_000_000, 1_333_333, 1_666_667, 2_000_000]
    assert {event["tid"] for event in (whole, *parts)} == {whole["tid"]}


def test_a_latency_budget_is_shown_in_milliseconds(path: Path) -> None:
    trace = TraceRecorder(str(path), START, "seconds")
    trace.record(record(batch(1, decode(request(1)), allowance=0.0625)))
    (event,) = of_phase(events(trace, path), "X")
    assert event["args"]["budget_ms"] == 62.5


def test_counters_add_up_to_the_pool_and_fall_to_zero_when_idle(
    trace: TraceRecorder, path: Path
) -> None:
    last = batch(1, decode(request(1)), prompt(request(2), 0, 5))
    trace.record(record(last, running=0, waiting=0))
    counters = [(e["name"], e["ts"], e["args"]) for e in of_phase(events(trace, path), "C")]
    assert counters == [
        ("tokens", 1_000_000, {"decode": 1, "prompt": 5}),
        ("tokens", 2_000_000, {"decode": 0, "prompt": 0}),
        ("requests", 2_000_000, {"running": 0, "waiting": 0}),
        ("KV blocks", 2_000_000, {"used": 4, "cached": 1, "free": 5}),
    ]


def test_a_request_waits_then_computes_its_prompt_then_decodes(
    trace: TraceRecorder, path: Path
) -> None:
    one = request(1, 8, arrival=START + 0.5)
    trace.arrived(one)
    trace.record(record(batch(1, prompt(one, 0, 6)), START + 1, START + 2))
    trace.record(record(batch(2, prompt(one, 6, 2)), START + 2, START + 3))
    last = batch(3, decode(one))
    trace.record(record(last, START + 3, START + 4, finished={1: "length"}))
    read = events(trace, path)
    assert spans(read, 1) == [
        Span("request 1", 500_000, 4_000_000, 1),
        Span("waiting", 500_000, 1_000_000, 2),
        Span("prefill", 1_000_000, 3_000_000, 2),
        Span("decode", 3_000_000, 4_000_000, 2),
    ]
    assert of_phase(read, "e")[-1]["args"] == {"finish_reason": "length"}


def test_an_answer_of_one_token_has_an_empty_decode_phase(trace: TraceRecorder, path: Path) -> None:
    one = request(1)
    trace.arrived(one)
    trace.record(record(batch(1, prompt(one, 0, 8)), finished={1: "stop"}))
    assert spans(events(trace, path), 1)[-1] == Span("decode", 2_000_000, 2_000_000, 2)


def test_a_preempted_request_waits_and_computes_again(trace: TraceRecorder, path: Path) -> None:
    one = request(1)
    trace.arrived(one)
    trace.record(record(batch(1, prompt(one, 0, 8)), START + 1, START + 2))
    trace.record(record(batch(2, preempted=(one,)), START + 2, START + 3))
    trace.record(record(batch(3, prompt(one, 0, 8)), START + 3, START + 4))
    read = events(trace, path)
    assert [(span.name, span.begin) for span in spans(read, 1)[1:]] == [
        ("waiting", 0),
        ("prefill", 1_000_000),
        ("decode", 2_000_000),
        ("waiting", 2_000_000),
        ("prefill", 3_000_000),
        ("decode", 4_000_000),
    ]
    (instant,) = of_phase(read, "i")
    assert (instant["name"], instant["ts"], instant["args"]) == (
        "preemption",
        2_000_000,
        {"request": 1},
    )


@pytest.mark.parametrize("started", [False, True])
def test_a_cancelled_request_ends(trace: TraceRecorder, path: Path, started: bool) -> None:
    one = request(1)
    trace.arrived(one)
    if started:
        trace.record(record(batch(1, prompt(one, 0, 6))))
    trace.cancelled(1, START + 5)
    read = events(trace, path)
    assert {span.name: span.end for span in spans(read, 1)[-1:]} == {
        "prefill" if started else "waiting": 5_000_000
    }
    assert spans(read, 1)[0].end == 5_000_000
    assert of_phase(read, "e")[-1]["args"] == {"finish_reason": "cancelled"}


def test_a_request_cancelled_in_flight_does_not_come_back(trace: TraceRecorder, path: Path) -> None:
    one = request(1)
    trace.arrived(one)
    trace.cancelled(1, START + 1.5)
    trace.record(record(batch(1, prompt(one, 0, 6))))
    trace.record(record(batch(2, preempted=(one,))))
    read = events(trace, path)
    assert [span.name for span in spans(read, 1)] == ["request 1", "waiting"]
    assert not of_phase(read, "i")


def test_a_request_older_than_the_engine_begins_with_it(trace: TraceRecorder, path: Path) -> None:
    trace.arrived(request(1, arrival=START - 60))
    assert [span.begin for span in spans(events(trace, path), 1)] == [0, 0]


def test_an_empty_trace_is_valid(trace: TraceRecorder, path: Path) -> None:
    names = {event["name"] for event in events(trace, path)}
    assert names == {"process_name", "thread_name"}


def test_a_trace_that_was_cut_off_lacks_nothing_but_its_bracket(
    trace: TraceRecorder, path: Path
) -> None:
    for number in range(3):
        trace.record(record(batch(number, decode(request(1)))))
        trace.flush()
        read = json.loads(path.read_text() + "]")
        assert len(of_phase(read, "X")) == number + 1


def test_a_killed_process_leaves_a_readable_trace(path: Path) -> None:
    script = (
        "import os, sys\n"
        "from tests.telemetry.recording import *\n"
        "from sarathi.telemetry.trace import TraceRecorder\n"
        "trace = TraceRecorder(sys.argv[1], START, None)\n"
        "trace.record(record(batch(1, decode(request(1)))))\n"
        "trace.flush()\n"
        "trace.record(record(batch(2, decode(request(1)))))\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    died = subprocess.run([sys.executable, "-c", script, path], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    iterations = of_phase(json.loads(path.read_text() + "]"), "X")
    assert [event["args"]["iteration"] for event in iterations] == [1]


def test_a_trace_that_cannot_be_written_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--trace .* cannot be written"):
        TraceRecorder(str(tmp_path), START, None)


def test_iterations_that_overlap_have_tracks_of_their_own(trace: TraceRecorder, path: Path) -> None:
    for number, (begin, end) in enumerate([(1.0, 3.0), (2.0, 4.0), (3.0, 5.0)]):
        parts = (("execute", START + end),)
        trace.record(
            record(batch(number, decode(request(1))), START + begin, START + end, parts=parts)
        )
    read = events(trace, path)
    tracks = [(event["name"], event["tid"]) for event in of_phase(read, "X")]
    assert tracks == [(name, tid) for tid in (1, 2, 1) for name in ("iteration", "execute")]
    names = {e["tid"]: e["args"]["name"] for e in read if e["name"] == "thread_name"}
    assert names == {1: "iterations", 2: "iterations 2"}


def test_each_of_several_stages_has_a_track(trace: TraceRecorder, path: Path) -> None:
    """After an idle time, a stage computes when the one before has; from then on it adds up."""
    steps = [
        (True, [StageTime(50.0, 1.0), StageTime(60.0, 2.0)]),
        (False, [StageTime(0.25, 1.5), StageTime(0.0, 0.5)]),
        (True, [StageTime(9.0, 1.0), StageTime(9.0, 1.0)]),
    ]
    for number, (after_idle, stages) in enumerate(steps):
        begin = START + 10 * (number + 1)
        one = batch(number, decode(request(1)))
        parts = (("schedule", begin + 0.5), ("execute", begin + 4))
        trace.record(
            record(one, begin, begin + 4, parts=parts, stages=stages, after_idle=after_idle)
        )
    read = events(trace, path)
    names = {e["args"]["name"]: e["tid"] for e in read if e["name"] == "thread_name"}
    spans = {
        stage: [
            (event["args"]["iteration"], event["ts"] / 1e6, event["dur"] / 1e6)
            for event in of_phase(read, "X")
            if event["tid"] == names[stage]
        ]
        for stage in ("stage 0", "stage 1")
    }
    assert spans == {
        "stage 0": [(0, 10.5, 1.0), (1, 11.75, 1.5), (2, 30.5, 1.0)],
        "stage 1": [(0, 11.5, 2.0), (1, 13.5, 0.5), (2, 31.5, 1.0)],
    }


def test_one_stage_has_no_track_of_its_own(trace: TraceRecorder, path: Path) -> None:
    trace.record(record(batch(1, decode(request(1))), stages=[StageTime(0.0, 1.0)]))
    assert [event["name"] for event in of_phase(events(trace, path), "X")] == ["iteration"]
