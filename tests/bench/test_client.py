from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sarathi.bench.client.endpoint import Api, Call, Dialect, Endpoint
from sarathi.bench.client.open_loop import (
    HEARTBEAT,
    LagMeter,
    Played,
    RunListener,
    play,
)
from sarathi.telemetry import RequestRecord, summarise
from tests.bench.scripted_certificate import self_signed, server_context
from tests.bench.scripted_replies import (
    PING,
    Raw,
    Reply,
    Script,
    Tokens,
    error_body,
    in_turn,
    steady,
)
from tests.bench.scripted_server import ScriptedServer

# Seconds by which a median may be off, and a single time: both ends run in one process, on a
# machine that may have other things to do.
CLOSE = 0.008
ROUGH = 0.035
RUNNERS: dict[str, Callable[[Any], Played]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
FINAL = Dialect(continuous_usage=False)
PLAIN = Dialect(ignore_eos=False, usage=False, continuous_usage=False)


def calls(number: int, tokens: int = 5, every: float = 0.01) -> list[Call]:
    return [Call(i * every, f"prompt {i}", 2, tokens) for i in range(number)]


def run(
    url: str,
    planned: Sequence[Call],
    dialect: Dialect = Dialect(),  # noqa: B008 - frozen
    *,
    timeout: float = 5.0,
    listeners: Sequence[RunListener] = (),
    api: Api = "completions",
    runner: str = "uvloop",
) -> Played:
    endpoint = Endpoint.parse(url, model="scripted", api=api)
    return RUNNERS[runner](play(endpoint, dialect, planned, timeout=timeout, listeners=listeners))


def against(script: Script, planned: Sequence[Call], *args: Any, **options: Any) -> Played:
    with ScriptedServer(script) as server:
        return run(server.url, planned, *args, **options)


def one(reply: Reply | Script, *args: Any, tokens: int = 5, **options: Any) -> RequestRecord:
    (record,) = against(in_turn(reply), calls(1, tokens), *args, **options).records
    return record


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_percentiles_are_those_of_the_server(runner: str, api: Api) -> None:
    slow = Reply([Tokens(at) for at in (0.1, 0.12, 0.14, 0.16, 0.36)])
    script = in_turn(*[steady(0.05, 0.02)] * 3, slow)
    played = against(script, calls(12), api=api, runner=runner)
    summary = summarise(played.records)
    assert (summary.requests, summary.completed) == (12, 12)
    assert summary.ttft.p50 == pytest.approx(0.05, abs=CLOSE)
    assert summary.ttft.p90 == pytest.approx(0.1, abs=ROUGH)
    assert summary.tbt.count == 48
    assert summary.tbt.p50 == pytest.approx(0.02, abs=CLOSE)
    assert summary.tbt.p99 == pytest.approx(0.2, abs=ROUGH)
    assert summary.end_to_end.max == pytest.approx(0.36, abs=ROUGH)
    assert not any(record.estimated for record in played.records)


def test_requests_are_sent_at_their_times_whatever_became_of_others() -> None:
    times = [0.2, 0.0, 0.1, 0.1]  # not in order
    with ScriptedServer(in_turn(Reply(ending="hung"))) as server:
        records = run(server.url, [Call(at, "x", 1, 1) for at in times], timeout=0.4).records
        came = [request.at for request in server.requests]
    assert [record.arrival for record in records] == pytest.approx(times, abs=ROUGH)
    assert [record.arrival - record.lag for record in records] == pytest.approx(times)
    assert min(record.lag for record in records) >= 0
    waits = [after - before for before, after in pairwise(came)]
    assert waits == pytest.approx([0.1, 0, 0.1], abs=ROUGH)


def test_requests_have_the_fields_of_the_call() -> None:
    with ScriptedServer(steady(0, 0)) as server:
        (record,) = run(server.url + "/v1", [Call(0, "one two three", 9, 4)]).records
        (request,) = server.requests
    assert (request.path, request.prompt, request.tokens) == (
        "/v1/completions",
        "one two three",
        4,
    )
    assert request.body["ignore_eos"] is True
    assert record.output_tokens == len(record.tokens) == 4
    assert record.prompt_tokens == 3  # as the server has counted them


SEVERAL = [Tokens(0.1), Tokens(0.2, count=3), Tokens(0.3, split=True)]


@pytest.mark.parametrize(
    ("usage", "estimated"), [("continuous", False), ("final", True), ("none", True)]
)
def test_tokens_of_one_event_share_its_time(usage: Any, estimated: bool) -> None:
    record = one(Reply(SEVERAL, usage=usage))
    expected = [0.1, 0.2, 0.2, 0.2, 0.3] if usage != "none" else [0.1, 0.2, 0.3]
    times = [time - record.arrival for time in record.tokens]
    assert times == pytest.approx(expected, abs=ROUGH)
    assert usage == "none" or record.gaps[1:3] == [0, 0]
    assert (record.failure, record.estimated) == (None, estimated)


def test_pieces_of_one_token_are_one_token() -> None:
    pieces = [Tokens(0.1), Tokens(0.2, text="wo"), Tokens(0.2, count=0, text="rd"), Tokens(0.3)]
    record = one(Reply(pieces, usage="final"), tokens=3)
    assert record.gaps == pytest.approx([0.1, 0.1], abs=ROUGH)
    assert (record.failure, record.estimated) == (None, True)


def test_comments_are_no_tokens() -> None:
    record = one(Reply([Raw(0.01, PING), Tokens(0.1), Raw(0.15, PING), Tokens(0.2)]), tokens=2)
    assert record.gaps == pytest.approx([0.1], abs=ROUGH)


def test_the_server_may_report_its_scheduling_delay() -> None:
    headers = {"server-timing": 'cache;desc="hit, or miss", queue;dur=12.5'}
    assert one(steady(0, 0, headers=headers)).scheduling_delay == pytest.approx(0.0125)
    assert one(steady(0, 0)).scheduling_delay is None


FAILURES: dict[str, Reply] = {
    "dropped": Reply([Tokens(0.02)], ending="dropped"),
    "status_500": Reply(status=500, body=error_body("out of memory")),
    "status_404": Reply(status=404, body=b"<h1>Not Found</h1>"),
    "status_307": Reply(status=307, headers={"location": "https://elsewhere/"}),
    "timeout": Reply([Tokens(0.02)], ending="hung"),
    "malformed": Reply([Tokens(0.02), Raw(0.03, b"data: {oops\n\n")]),
    "error_event": Reply([Tokens(0.02), Raw(0.03, b"data: " + error_body("died") + b"\n\n")]),
    "short": Reply([Tokens(0.02), Tokens(0.03)]),
}
DETAILS = {
    "status_500": "out of memory",
    "status_404": "Not Found",
    "status_307": "https://elsewhere/",
    "timeout": "no token for 0.3 s",
    "malformed": "{oops",
    "error_event": "died",
    "short": "2 of 5 tokens",
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_counted_by_its_kind_and_disturbs_no_other(kind: str, runner: str) -> None:
    script = in_turn(steady(0.03, 0.02), FAILURES[kind])
    began = time.perf_counter()
    played = against(script, calls(6), timeout=0.3, runner=runner)
    assert time.perf_counter() - began < 1
    summary = summarise(played.records)
    assert (summary.failures, summary.completed) == ({kind: 3}, 3)
    assert summary.tbt.p50 == pytest.approx(0.02, abs=CLOSE)
    for record in played.records:
        if record.failure is not None:
            assert DETAILS.get(kind, "") in (record.detail or "")
            assert len(record.tokens) == sum(
                isinstance(step, Tokens) for step in FAILURES[kind].steps
            )


@pytest.mark.parametrize(
    "reply",
    [
        Reply(instead=b"220 mail.example ESMTP\r\n"),
        Reply([Raw(0, b"data: [1, 2]\n\n")]),
        Reply([Raw(0, b"data: {}\n\n")]),
        Reply([Raw(0, b"data: \xff\n\n")]),
    ],
)
def test_what_is_not_the_api_is_malformed(reply: Reply) -> None:
    assert one(reply).failure == "malformed"


@pytest.mark.parametrize(
    "reply", [Reply(ending="hung"), Reply([Raw(0.01, PING)] * 3, ending="hung")]
)
def test_silence_and_comments_alone_are_a_timeout(reply: Reply) -> None:
    record = one(reply, timeout=0.2)
    assert record.failure == "timeout"
    assert record.end - record.arrival == pytest.approx(0.2, abs=0.05)


def test_the_timeout_is_between_tokens_and_not_for_the_whole() -> None:
    record = one(steady(0.1, 0.1), timeout=0.2)
    assert record.failure is None


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices": [], "usage": {"completion_tokens": 1}}',
        b'{"choices": [{"text": ""}]}',
        b"[DONE]",
    ],
)
def test_events_that_bring_nothing_new_do_not_keep_a_request_alive(event: bytes) -> None:
    data = b"data: " + event + b"\n\n"
    record = one(Reply((Raw(0.02 * i, data) for i in count()), usage="none"), timeout=0.3)
    assert record.failure == "timeout"
    assert record.end - record.arrival == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("usage", ["continuous", "none"])
def test_a_stream_of_tokens_without_end_is_malformed(usage: Any) -> None:
    record = one(Reply((Tokens(0.005 * i) for i in count()), usage=usage), tokens=5)
    assert record.failure == "malformed"
    assert "more than 26 tokens came; 5 were asked for" in (record.detail or "")
    assert len(record.tokens) <= 27
    assert record.end - record.arrival < 1


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stream_without_an_end_marker_was_dropped(runner: str) -> None:
    record = one(Reply([Tokens(0.01)], ending="bare"), runner=runner)
    assert (record.failure, len(record.tokens)) == ("dropped", 1)


def test_an_answer_without_counts_is_never_short() -> None:
    assert one(Reply(SEVERAL, usage="none")).failure is None
    assert one(Reply(SEVERAL[:1]), PLAIN).failure is None


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_refused_connection_is_reported(runner: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        records = run(url, calls(3), runner=runner).records
    assert [record.failure for record in records] == ["connect"] * 3
    assert "refused" in (records[0].detail or "").lower()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL])
def test_missing_resources_of_this_machine_are_a_failure_of_the_client(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", fail)
    (record,) = run("http://127.0.0.1:1", calls(1), runner="asyncio").records
    assert record.failure == "client"
    assert os.strerror(number) in (record.detail or "")


WITH_FEW_FILES = """
import asyncio, resource, sys, uvloop
from sarathi.bench.client.endpoint import Call, Dialect
from sarathi.bench.client.endpoint import Endpoint
from sarathi.bench.client.open_loop import play
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
calls = [Call(0, "x", 1, 1)] * 40
run = {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]]
played = run(play(Endpoint.parse(sys.argv[1]), Dialect(), calls, timeout=0.5))
print(*sorted({record.failure for record in played.records}))
"""


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_process_without_files_left_fails_by_itself(runner: str) -> None:
    with ScriptedServer(in_turn(Reply(ending="hung"))) as server:
        command = [sys.executable, "-c", WITH_FEW_FILES, server.url, runner]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["client", "timeout"]


def test_a_host_without_an_address_is_reported() -> None:
    (record,) = run("http://nowhere.invalid:1", calls(1)).records
    assert record.failure == "connect"


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_server_that_does_not_speak_tls_is_reported(runner: str) -> None:
    with ScriptedServer(steady(0, 0)) as server:
        url = server.url.replace("http://", "https://")
        (record,) = run(url, calls(1), timeout=1, runner=runner).records
    assert record.failure == "connect"


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_listener_that_never_answers_is_a_timeout(runner: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        for scheme in ("http", "https"):
            (record,) = run(
                f"{scheme}://127.0.0.1:{port}", calls(1), timeout=0.2, runner=runner
            ).records
            assert record.failure == "timeout"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("trusted", [True, False])
def test_https_works_with_a_trusted_certificate_alone(
    certificate: Path, trusted: bool, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with ScriptedServer(steady(0.02, 0.02), context=server_context(certificate)) as server:
        records = run(server.url, calls(3), runner=runner).records
    failure = None if trusted else "connect"
    assert [record.failure for record in records] == [failure] * 3
    assert trusted or "certificate" in (records[0].detail or "").lower()


class Quiet:
    """Looks on and does nothing."""

    def sent(self, index: int, now: float) -> None:
        return None

    def progressed(self, index: int, times: Sequence[float]) -> None:
        return None

    def ended(self, index: int, record: RequestRecord) -> None:
        return None

    def stop_reason(self, now: float) -> str | None:
        return None


class Notes(Quiet):
    """Records every notification."""

    def __init__(self) -> None:
        self.sent_at: dict[int, float] = {}
        self.times: dict[int, list[float]] = {}
        self.records: dict[int, RequestRecord] = {}

    def sent(self, index: int, now: float) -> None:
        self.sent_at[index] = now

    def progressed(self, index: int, times: Sequence[float]) -> None:
        self.times.setdefault(index, []).extend(times)

    def ended(self, index: int, record: RequestRecord) -> None:
        self.records[index] = record


def test_a_listener_is_notified_of_everything() -> None:
    notes = Notes()
    played = against(steady(0.01, 0.01), calls(4), listeners=[notes])
    for index, record in enumerate(played.records):
        assert notes.sent_at[index] == record.arrival
        assert notes.times[index] == record.tokens
        assert notes.records[index] is record


class Stop(Quiet):
    def __init__(self, at: float) -> None:
        self.at = at

    def stop_reason(self, now: float) -> str | None:
        return "enough" if now >= self.at else None


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_verdict_stops_the_run_and_keeps_what_has_ended(runner: str) -> None:
    script = in_turn(steady(0.01, 0.01), Reply(ending="hung"))
    with ScriptedServer(script) as server:
        began = time.perf_counter()
        listeners = [Quiet(), Stop(0.3)]
        played = run(
            server.url, calls(100, every=0.1), listeners=listeners, timeout=9, runner=runner
        )
        assert time.perf_counter() - began < 1
        sent = len(server.requests)
    assert played.stopped == "enough"
    assert 3 <= sent <= 7
    assert played.indices[:2] == [0, 2]  # the second hangs
    assert [record.arrival for record in played.records] == pytest.approx(
        [0.1 * i for i in played.indices], abs=ROUGH
    )


def test_an_error_of_a_listener_ends_the_run() -> None:
    class Broken(Quiet):
        def sent(self, index: int, now: float) -> None:
            raise RuntimeError("broken listener")

    with pytest.raises(RuntimeError, match="broken listener"):
        against(steady(0, 0), calls(2), listeners=[Broken()])


class Sleeper(Quiet):
    def __init__(self) -> None:
        self.slept = False

    def stop_reason(self, now: float) -> str | None:
        if not self.slept:
            self.slept = True
            time.sleep(0.2)
        return None


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_blocked_loop_shows_as_lag(runner: str) -> None:
    played = against(steady(0.0, 0.01), calls(60), listeners=[Sleeper()], runner=runner)
    assert played.lag.max > 0.15
    assert played.lag.p99 > 0.1
    assert played.lag.p50 < 0.05
    assert max(record.lag for record in played.records) > 0.1


def test_late_requests_are_seen_among_many_heartbeats() -> None:
    meter = LagMeter()
    for beat in range(1, 2001):
        meter.beat(beat * HEARTBEAT)
    for _ in range(5):
        meter.sent(0.05)
    lag = meter.result(20)
    assert (lag.p50, lag.p99, lag.max) == (0.05, 0.05, 0.05)


def test_late_heartbeats_are_seen_among_many_requests() -> None:
    meter = LagMeter()
    for _ in range(2000):
        meter.sent(0)
    meter.beat(0.05)
    lag = meter.result(1)
    assert lag.p50 == pytest.approx(0.02)
    assert lag.p99 == lag.max == pytest.approx(0.04)


def test_a_meter_without_events_reports_no_lag() -> None:
    assert LagMeter().result(1).max == 0


def test_an_idle_loop_shows_no_lag() -> None:
    lag = against(steady(0.0, 0.05), calls(5, tokens=8)).lag
    assert lag.p50 < 0.005
    assert 0 < lag.cpu < 1


def test_garbage_is_not_collected_during_a_run() -> None:
    seen = []

    class Look(Quiet):
        def progressed(self, index: int, times: Sequence[float]) -> None:
            seen.append(gc.isenabled())

    against(steady(0, 0), calls(1), listeners=[Look()])
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_no_calls_give_no_records() -> None:
    played = run("http://127.0.0.1:1", [])
    assert (played.records, played.stopped) == ([], None)


@pytest.mark.slow
def test_hundreds_of_open_streams_are_no_problem() -> None:
    played = against(steady(0.5, 0.02), calls(400, tokens=50, every=0.001), timeout=20)
    assert summarise(played.records).completed == 400
