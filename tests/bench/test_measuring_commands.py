"""`sarathi bench`, `capacity`, `compare` and `report` as a user types them, against servers whose
timings are known."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sarathi.cli.main import main
from sarathi.errors import BenchmarkError
from tests.bench.scripted_replies import Received, Reply, Script, error_body, in_turn, steady
from tests.bench.scripted_server import ScriptedServer

TTFT, TBT = 0.05, 0.02  # seconds
LOAD = ("--prompt-lengths", "20", "--output-lengths", "6", "--warm-up", "2")


COMPARE = ("compare", *LOAD, "--url", "a=http://127.0.0.1:1", "--url", "b=http://127.0.0.1:1")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(steady(TTFT, TBT)) as running:
        yield running


def of_json(capsys: pytest.CaptureFixture[str], warning: str = "") -> dict[str, Any]:
    """What was printed: one object on one line, and nothing else but the warning."""
    captured = capsys.readouterr()
    [line] = captured.out.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert warning in captured.err
    assert warning or not captured.err, captured.err
    return found


def bench(server: ScriptedServer, *options: str) -> int:
    return main(["bench", "--url", server.url, "--max-client-lag", "1s", *LOAD, *options])


class TestBench:
    def test_figures_are_those_of_the_server(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench(server, "--rate", "40", "--num-requests", "20", "--json") == 0
        found = of_json(capsys)
        assert (found["requests"], found["completed"], found["failures"]) == (20, 20, {})
        assert found["ttft"]["p50"] == pytest.approx(TTFT, abs=0.01)
        for percent in ("p50", "p90"):
            assert found["tbt"][percent] == pytest.approx(TBT, abs=0.01)
            assert found["max_gap"][percent] == pytest.approx(TBT, abs=0.02)
        assert found["tbt"]["count"] == 20 * 5
        assert found["request_rate"] == pytest.approx(40)
        assert found["output_tokens_per_second"] == pytest.approx(120 / found["duration"])
        assert found["model"] == "scripted"
        assert not found["estimated"]

    def test_prompts_have_the_length_asked_for_and_differ_from_run_to_run(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = len(server.requests)
        for _ in range(2):
            assert bench(server, "--rate", "50", "--num-requests", "3", "--json") == 0
        # Words are tokens here. The first request of each run finds out what the server takes.
        prompts = [request.prompt for request in server.requests[before:]]
        measured = [prompt for prompt in prompts if len(prompt.split()) == 20]
        assert len(measured) == len(set(measured)) == 2 * (2 + 3)

    def test_the_same_seed_and_salt_send_the_same(self, server: ScriptedServer) -> None:
        sent: list[list[str]] = []
        for _ in range(2):
            before = len(server.requests)
            words = ("--rate", "50", "--num-requests", "3", "--seed", "7", "--salt", "x", "--json")
            assert bench(server, *words) == 0
            sent.append([request.prompt for request in server.requests[before:]])
        assert sent[0] == sent[1]

    def test_goodput_counts_what_met_the_targets(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("--rate", "40", "--num-requests", "5", "--json")
        assert bench(server, *words, "--tbt-target", "1s") == 0
        assert of_json(capsys)["attainment"] == 1
        assert bench(server, *words, "--ttft-target", "1ms") == 0
        assert of_json(capsys)["attainment"] == 0

    def test_failures_are_counted_by_kind(self, capsys: pytest.CaptureFixture[str]) -> None:
        # The probe is the first request, and the warm-up the next two.
        works = steady(TTFT, TBT)
        broken = Reply(status=500, body=error_body("out of paper"))
        dropped = Reply(steps=[], ending="dropped")
        with ScriptedServer(in_turn(works, works, works, broken, dropped, works)) as server:
            assert bench(server, "--rate", "20", "--num-requests", "3", "--json") == 0
            assert of_json(capsys)["failures"] == {"dropped": 1, "status_500": 1}

    def test_people_see_the_same(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench(server, "--rate", "40", "--num-requests", "4", "--label", "mine") == 0
        printed = capsys.readouterr().out
        for part in ("mine", "time to first token", "4 of 4 requests complete", "the client was"):
            assert part in printed

    def test_a_client_that_is_late_makes_the_run_invalid(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("--rate", "40", "--num-requests", "4", "--max-client-lag", "0.000001", "--json")
        assert bench(server, *words) == 1
        captured = capsys.readouterr()
        assert "late at P99" in json.loads(captured.out)["invalid"]
        assert "this run is invalid" in captured.err

    def test_a_server_that_is_gone_at_the_end_leaves_what_it_answered(
        self,
        server: ScriptedServer,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        looks = []

        def check(endpoint: object) -> None:
            looks.append(endpoint)
            if len(looks) > 1:
                raise BenchmarkError("there is no server any more")

        monkeypatch.setattr("sarathi.bench.target._check_listening", check)
        path = tmp_path / "run.json"
        options = ("--rate", "40", "--num-requests", "5", "--json", "--save", str(path))
        assert bench(server, *options) == 1
        found = of_json(capsys, "this run is invalid: there is no server any more")
        assert found["completed"] == 5
        assert path.exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("bench", "--rate", "1"), "lengths are missing"),
            (("bench", "--rate", "0", *LOAD), "is not a number at least 0.0001"),
            (("bench", *LOAD, "--rate", "1", "--url", "localhost"), "no address"),
            (("bench", *LOAD, "--rate", "1", "--url", "http://127.0.0.1:1"), "no server at"),
            (("bench", *LOAD, "--rate", "1", "--arrivals", "sometimes"), "--arrivals"),
            (("bench", "--rate", "1", "--workload", "nowhere.csv"), "nowhere.csv"),
            (("capacity", *LOAD, "--tbt-target", "0.1", "--start", "no-such-program"), "no-such"),
            (("capacity", *LOAD), "--tbt-target"),
            (("compare", *LOAD, "--rates", "1", "--url", "a=http://127.0.0.1:1"), "at least twice"),
            (("compare", *LOAD, "--url", "http://127.0.0.1:1"), "LABEL=URL"),
            ((*COMPARE, "--rates", "1", "--resolution", "0.5"), "no effect on --rates"),
            ((*COMPARE, "--tbt-target", "1s", "--rounds", "3"), "--rounds has no effect"),
            (COMPARE, "either --rates or --tbt-target"),
            (("bench", *LOAD, "--rate", "1", "--iteration-log", __file__), "needs --report"),
            (("report", "nothing-here.json"), "nothing-here.json"),
        ],
    )
    def test_it_is_reported_in_one_line(
        self,
        words: tuple[str, ...],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        try:
            code = main(list(words))
        except SystemExit as error:  # what argparse finds
            code = int(error.code or 0)
        captured = capsys.readouterr()
        assert code == 2
        assert not captured.out
        assert message in captured.err
        assert "Traceback" not in captured.err

    def test_without_a_rate_only_a_trace_can_be_sent(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench(server) == 2
        assert "--rate is missing" in capsys.readouterr().err


def queue(service: float) -> Script:
    """Takes one request at a time, for so many seconds each: more than 1 / service a second wait
    in a line that grows."""
    free_at = 0.0

    def script(request: Received) -> Reply:
        nonlocal free_at
        free_at = max(free_at, request.at) + service
        return steady(free_at - request.at, 0.001)(request)

    return script


# From 10 requests a second in one step up or down, each of a second at most.
SEARCH = (
    *(*LOAD, "--requests-per-point", "20", "--point-duration", "0.1s", "--start-rate", "20"),
    *("--resolution", "1", "--delay-target", "200ms", "--max-client-lag", "1s"),
)


def outcome(found: dict[str, Any]) -> list[Any]:
    points = [(point["rate"], point["met"]) for point in found["points"]]
    return [found["capacity"], found["low"], found["high"], points]


class TestCapacity:
    def test_every_rate_misses_where_gaps_are_too_long(
        self, server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("capacity", "--url", server.url, "--tbt-target", "1ms", "--json", *SEARCH)
        assert main([*words, "--start-rate", "200", "--results", str(tmp_path)]) == 1
        found = of_json(capsys)
        assert found["capacity"] is None
        assert found["points"]
        assert not any(point["met"] for point in found["points"])

    def test_it_is_the_rate_at_which_a_line_begins_to_grow(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with ScriptedServer(queue(0.02)) as server:
            words = ["capacity", "--url", server.url, "--tbt-target", "1s", "--json", *SEARCH]
            words += ["--results", str(tmp_path)]
            assert main(words) == 0
            first = of_json(capsys)
            requests = len(server.requests)
            # Again: nothing is measured twice.
            assert main(words) == 0
            again = of_json(capsys, "--fresh measures again")
            assert outcome(again) == outcome(first)
            asked = len(server.requests)
            assert asked < requests + 10  # what it is, and no more
            assert main([*words, "--fresh"]) == 0
            assert len(server.requests) > asked + 20
            assert of_json(capsys)["points"]
        assert 20 <= first["capacity"] <= 160
        assert first["capacity"] in [point["rate"] for point in first["points"]]
        assert [point["rate"] for point in first["points"] if not point["met"]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def start_search(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """On a server of its own with the real model."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "sarathi.cli.main", "capacity", *LOAD, "--json"),
            *("--start", f"sarathi serve smollm2-135m --port {port} --max-model-len 512"),
            *("--results", str(folder), "--max-client-lag", "10s", *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
class TestRealServer:
    def test_it_is_started_measured_and_stopped(self, tmp_path: Path) -> None:
        port = free_port()
        words = ("--tbt-target", "0.1ms", "--start-rate", "64", "--requests-per-point", "4")
        process = start_search(tmp_path, port, *words, "--point-duration", "0.1s")
        out, err = process.communicate(timeout=200)
        assert process.returncode == 1, err
        found = json.loads(out)
        assert found["capacity"] is None
        assert found["model"] == "smollm2-135m"
        assert all(point["summary"]["scheduling_delay"]["count"] for point in found["points"])
        assert not answers(port)

    def test_a_search_that_gets_a_signal_stops_the_server(self, tmp_path: Path) -> None:
        port = free_port()
        process = start_search(tmp_path, port, "--tbt-target", "1s", "--start-rate", "0.1")
        try:
            deadline = time.monotonic() + 100
            while not answers(port):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 128 + signal.SIGTERM
        assert not answers(port)


class TestCompare:
    def test_ratios_are_those_of_the_servers(
        self, server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with ScriptedServer(steady(TTFT, 3 * TBT)) as slower:
            words = ["compare", "--url", f"quick={server.url}", "--url", f"slow={slower.url}"]
            words += [
                "--rates",
                "20,40",
                "--requests-per-point",
                "6",
                "--rounds",
                "2",
                *LOAD,
                "--json",
            ]
            assert main([*words, "--results", str(tmp_path), "--max-client-lag", "1s"]) == 0
            texts = [{request.prompt for request in of.requests} for of in (server, slower)]
        rows = of_json(capsys)["rows"]
        assert [(row["rate"], row["label"]) for row in rows] == [
            (rate, label) for rate in (20, 40) for label in ("quick", "slow")
        ]
        for row in rows:
            expected = 3 if row["label"] == "slow" else 1
            assert row["ratios"]["tbt_p50"] == pytest.approx(expected, rel=0.2)
            assert row["ratios"]["ttft_p50"] == pytest.approx(1, rel=0.3)
            assert row["requests"] == 12
        assert texts[1] <= texts[0]  # the same requests; the other had some before

    def test_capacities_are_searched_for_in_turns(
        self, server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with ScriptedServer(queue(0.01)) as one, ScriptedServer(queue(0.0025)) as other:
            words = ["compare", "--url", f"slow={one.url}", "--url", f"quick={other.url}"]
            words += ["--tbt-target", "1s", *SEARCH, "--json", "--results", str(tmp_path)]
            assert main(words) == 0
        slow, quick = of_json(capsys)["capacities"]
        assert (slow["label"], quick["label"]) == ("slow", "quick")
        assert slow["capacity"] < quick["capacity"]


class TestReport:
    def test_it_has_what_was_measured(
        self, server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved, page = tmp_path / "run.json", tmp_path / "page.html"
        words = ("--rate", "40", "--num-requests", "5", "--label", "a < b", "--save", str(saved))
        assert bench(server, *words) == 0
        assert main(["report", str(saved), "--output", str(page)]) == 0
        assert "a &lt; b" in page.read_text()
        assert list((tmp_path / "page-figures").glob("*.png"))
