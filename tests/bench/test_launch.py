"""Servers that are started and ended, whatever they or we do."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sarathi.bench.target import Launched, ending_on_signals, url_of
from sarathi.errors import BenchmarkError

# Prints its process id, does what its arguments say, and answers at a port if one is given.
SERVER = """
import argparse, http.server, os, signal, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--stubborn", action="store_true")
parser.add_argument("--polite", action="store_true")
parser.add_argument("--child", action="store_true")
parser.add_argument("--daemon", action="store_true")
parser.add_argument("--fail")
parser.add_argument("--models", type=int, nargs="+", default=[200])
parser.add_argument("--health", type=int, nargs="+", default=[404])
args = parser.parse_args()

def goodbye(*_):
    print("goodbye", flush=True)
    sys.exit()

if args.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if args.polite:
    signal.signal(signal.SIGTERM, goodbye)
print("pid", os.getpid(), flush=True)
if args.child or args.daemon:
    code = "import time; print('started', flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=args.daemon
    )
    child.stdout.readline()
    print("pid", child.pid, flush=True)
if args.fail is not None:
    print("cannot go on:", args.fail, file=sys.stderr, flush=True)
    if args.fail == "abort":
        os.abort()
    sys.exit(3)
if args.port is None:
    time.sleep(60)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        statuses = {"/v1/models": args.models, "/health": args.health}[self.path]
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.HTTPServer(("localhost", args.port), Handler).serve_forever()
"""

# Starts the above, says that it is ready, and waits for its own end.
STARTER = """
import sys, time
from pathlib import Path
from sarathi.bench.target import Launched, ending_on_signals

with ending_on_signals(), Launched(sys.argv[1], "http://localhost:1", Path(sys.argv[2]), 0.3):
    print("entered", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        number: int = listener.getsockname()[1]
        return number


@pytest.fixture
def server(tmp_path: Path) -> str:
    """Its command line, without arguments."""
    script = tmp_path / "a server.py"
    script.write_text(SERVER)
    return shlex.join([sys.executable, str(script)])


def launched(command: str, log: Path, grace: float = 5.0) -> Launched:
    """One that is not asked anything."""
    return Launched(command, "http://localhost:1", log, grace)


def pids(log: Path, number: int = 1) -> list[int]:
    """Return the ids of the processes, once so many have printed theirs."""
    for _ in waiting():
        lines = log.read_text().splitlines() if log.exists() else []
        found = [int(line.split()[1]) for line in lines if line.startswith("pid ")]
        if len(found) == number:
            return found
    raise AssertionError(f"{log} has {lines}")


def waiting() -> Iterator[None]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        yield
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_end(of: list[int]) -> bool:
    return any(not any(map(lives, of)) for _ in waiting())


def test_a_server_runs_within_the_context(server: str, log: Path, port: int) -> None:
    with Launched(f"{server} --port {port}", None, log) as running:
        running.wait_ready(10)
        running.check()
        assert running.url == f"http://localhost:{port}"
        (pid,) = pids(log)
        assert lives(pid)
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C in our terminal does not reach it"
        assert psutil.Process(pid).environ().keys() == os.environ.keys()
    assert not lives(pid)
    with Launched(f"{server} --port={port}", None, log) as running:
        running.wait_ready(10)
        assert pids(log) != [pid], "the log is truncated"


def test_it_is_asked_to_end_before_it_is_killed(server: str, log: Path) -> None:
    with launched(f"{server} --polite", log):
        (pid,) = pids(log)
    assert not lives(pid)
    assert "goodbye" in log.read_text()


def test_one_that_will_not_end_is_killed(server: str, log: Path) -> None:
    with launched(f"{server} --stubborn", log, grace=0.2):
        (pid,) = pids(log)
    assert not lives(pid)


@pytest.mark.parametrize(
    "option",
    [
        "--child",
        pytest.param(
            "--daemon", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
        ),
    ],
)
@pytest.mark.parametrize("stubborn", ["", "--stubborn"])
def test_what_it_has_started_ends_with_it(
    server: str, log: Path, option: str, stubborn: str
) -> None:
    with launched(f"{server} {option} {stubborn}", log, grace=0.2):
        started = pids(log, 2)
        assert all(map(lives, started))
    assert not any(map(lives, started))


def test_it_ends_when_something_goes_wrong_here(server: str, log: Path) -> None:
    found: list[int] = []

    def fails() -> None:
        with launched(server, log):
            found.extend(pids(log))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not lives(found[0])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_it_ends_when_we_are_ended(
    server: str, log: Path, tmp_path: Path, how: signal.Signals
) -> None:
    starter = tmp_path / "starter.py"
    starter.write_text(STARTER)
    arguments = [sys.executable, str(starter), f"{server} --child --stubborn", str(log)]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"entered\n"
        started = pids(log, 2)
        ours.send_signal(how)
        ours.wait(10)
    assert all_end(started)


def test_one_that_dies_at_once_is_reported_with_its_last_output(server: str, log: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match=r"has ended \(exit code 3\); the last") as error,
        launched(f"{server} --fail 'no memory'", log) as running,
    ):
        running.wait_ready(10)
    assert "cannot go on: no memory" in str(error.value)


def test_one_that_crashes_is_reported_with_its_signal(server: str, log: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match=r"has ended \(SIGABRT\)"),
        launched(f"{server} --fail abort", log) as running,
    ):
        running.wait_ready(10)


def test_a_crash_is_noticed_although_others_live_on(server: str, log: Path) -> None:
    with launched(f"{server} --child --stubborn", log, grace=60) as running:
        started = pids(log, 2)
        running.check()
        os.kill(started[0], signal.SIGKILL)
        assert all_end(started)
        with pytest.raises(BenchmarkError, match="SIGKILL"):
            running.wait_ready(10)


def test_one_that_goes_to_the_background_is_reported(log: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match=r"in the foreground\); it printed nothing"),
        launched(f"{sys.executable} -c ''", log) as running,
    ):
        running.wait_ready(10)


def test_waiting_ends(server: str, log: Path) -> None:
    with launched(server, log) as running:
        pids(log)
        with pytest.raises(BenchmarkError, match=r"not ready after 0.3 s: GET \S+ fails") as error:
            running.wait_ready(0.3)
    assert "pid " in str(error.value), "the last lines of the log"


@pytest.mark.parametrize(
    "answers",
    [
        "--models 503 503 200 --health 200",
        "--models 200 --health 503 500 200",
        "--models 500 404 200 --health 405",
        "--models 401",
    ],
)
def test_a_server_is_ready_once_it_is_healthy(
    server: str, log: Path, port: int, answers: str
) -> None:
    with Launched(f"{server} --port {port} {answers}", None, log) as running:
        running.wait_ready(10)


def test_a_server_that_stays_unwell_is_reported(server: str, log: Path, port: int) -> None:
    with (
        pytest.raises(BenchmarkError, match="/health gives status 503"),
        Launched(f"{server} --port {port} --health 503", None, log) as running,
    ):
        running.wait_ready(1)


def test_a_port_in_use_is_reported_before_anything_is_started(log: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        url = f"http://localhost:{listener.getsockname()[1]}"
        with (
            pytest.raises(BenchmarkError, match=f"something already answers at {url}"),
            Launched(f"{sys.executable} -c ''", url, log),
        ):
            pass
    assert not log.exists()


def test_commands_of_the_same_installation_are_found_first(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("ours", "theirs"):
        command = tmp_path / folder / "serve-it"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\necho {folder}\n")
        command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "ours" / "python"))
    (tmp_path / "ours" / "python").symlink_to(os.path.realpath("/proc/self/exe"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'theirs'}{os.pathsep}{os.environ['PATH']}")
    with launched("serve-it", log) as running, pytest.raises(BenchmarkError, match="ours"):
        running.wait_ready(10)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-command --port 1", "there is no command 'no-such-command'"),
        ("/etc/passwd", "there is no command"),
        ("", "empty"),
        ("sarathi 'serve", "No closing quotation"),
        ("true --port x", "the port of the command is 'x', expected 1 to 65535"),
        ("true --port", "the port of the command is ''"),
        ("true -p 70000", "'70000'"),
    ],
)
def test_a_command_that_cannot_be_is_reported(log: Path, command: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        Launched(command, None, log)


def test_a_log_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match="cannot be started with its output in"),
        launched("true", tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        ("", "http://localhost:8000"),
        ("serve tiny", "http://localhost:8000"),
        ("serve tiny --port 8100", "http://localhost:8100"),
        ("serve --port=8100 tiny", "http://localhost:8100"),
        ("serve -p 8100", "http://localhost:8100"),
        ("serve --port 1 --port 2", "http://localhost:2"),
        ("serve --host 0.0.0.0", "http://localhost:8000"),
        ("serve --host=::", "http://localhost:8000"),
        ("serve --host ::1 --port 9", "http://[::1]:9"),
        ("serve --host 10.0.0.7", "http://10.0.0.7:8000"),
    ],
)
def test_the_address_follows_from_the_command(arguments: str, url: str) -> None:
    assert url_of(arguments.split()) == url


def test_a_url_that_is_given_comes_first(log: Path) -> None:
    assert Launched("true --port 1", "http://localhost:2/v1", log).url == "http://localhost:2"


def test_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with ending_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
