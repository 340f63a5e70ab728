"""The servers to measure: one that runs already, or a command that starts one.

A started server runs under `process_guard`, and is stopped at the end.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import httpx

from sarathi.bench import process_guard as guard
from sarathi.bench.client.endpoint import Api, Endpoint
from sarathi.bench.client.server_probe import ServerFacts, probe
from sarathi.errors import BenchmarkError

_KILLING = 15.0  # seconds for the system to end a process that was killed
_POLL_INTERVAL = 0.1  # seconds
_GET_TIMEOUT = 5.0  # seconds
_CONNECT_TIMEOUT = 2.0  # seconds
_ACCEPT_TIMEOUT = 10.0  # seconds: a server under load may be slow to accept

_NAME = r"(?:api[-_]?key|token|secret|password)"
_VALUE = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])+"""  # one word of a shell
_SECRET = re.compile(
    rf"(?<![\w-])(?P<name>-[\w-]*{_NAME}(?:=|\s+)|\w*{_NAME}=){_VALUE}",
    re.IGNORECASE | re.ASCII,
)


class Launched:
    """A server process. Entering the context starts it, without waiting for the model.

    A small process in between (`process_guard`) ends the server and all its children as soon as
    this process leaves the context or dies, even of SIGKILL.
    """

    def __init__(self, command: str, url: str | None, log: Path, grace: float = 15.0) -> None:
        """
        Args:
            command: a command line, without shell syntax.
            url: where it will listen; None: by `--host` and `--port` of the command.
            log: a file for what it prints, emptied before.
            grace: seconds between SIGTERM and SIGKILL.

        Raises:
            BenchmarkError: there is no such command, or the URL is invalid.
        """
        self._command = mask_secrets(command)  # as messages have it
        self._arguments = _split(command)
        self._endpoint = Endpoint.parse(url or url_of(self._arguments))
        self.url = self._endpoint.url
        self._log = log
        self._grace = grace
        # `sarathi` must be that of the same installation.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._environment = os.environ | {"PATH": path}
        if shutil.which(self._arguments[0], path=path) is None:
            raise BenchmarkError(f"there is no command {self._arguments[0]!r} to start")

    def __enter__(self) -> Launched:
        """Start it; raise BenchmarkError where its port is in use, or the log cannot be written."""
        self._check_free()
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._guard = subprocess.Popen(
                    [sys.executable, "-IS", guard.__file__, str(self._grace), *self._arguments],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C in the terminal must not reach it
                )
        except OSError as error:
            raise BenchmarkError(
                f"{self._command!r} cannot be started with its output in {self._log}: "
                f"{error.strerror or error}"
            ) from None
        return self

    def __exit__(self, *error: object) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # the guard goes on with what is hard to kill
            self._guard.wait(self._grace + _KILLING)

    def check(self) -> None:
        """Raise BenchmarkError, with the last lines it printed, where the server has ended."""
        code = self._guard.poll()
        if code is None:
            return
        ending = f"exit code {code}"
        if code == 0:
            ending += ": it must stay in the foreground"
        elif code - 128 in set(signal.Signals):
            ending = signal.Signals(code - 128).name
        raise BenchmarkError(f"{self._command!r} has ended ({ending}){self._last_lines()}")

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Poll its list of models, and its health if it has such a page, until both are ready.

        Raises:
            BenchmarkError: the server ended, or is not ready in time.
        """
        deadline = time.monotonic() + timeout
        with self._endpoint.http_client(_GET_TIMEOUT) as client:
            while (reason := self._unready(client)) is not None:
                self.check()
                if time.monotonic() > deadline:
                    raise BenchmarkError(
                        f"{self._command!r} is not ready after {timeout:g} s: {reason}"
                        f"{self._last_lines()}"
                    )
                time.sleep(_POLL_INTERVAL)
        self.check()

    def _unready(self, client: httpx.Client) -> str | None:
        """Why it cannot be measured yet."""
        url = f"{self.url}/v1/models"
        try:
            status = client.get(url).status_code
            if status in (401, 403):  # it is up; the probe reports the missing key
                return None
            if status == 200:
                url = f"{self.url}/health"
                status = client.get(url).status_code
                if status < 500:  # many servers have no such page
                    return None
        except httpx.HTTPError as error:
            return f"GET {url} fails ({error})"
        return f"GET {url} gives status {status}"

    def _check_free(self) -> None:
        address = (self._endpoint.host, self._endpoint.port)
        try:
            socket.create_connection(address, _CONNECT_TIMEOUT).close()
        except OSError:
            return
        raise BenchmarkError(
            f"something already answers at {self.url}: stop it, or choose another port for "
            f"{self._command!r}"
        )

    def _last_lines(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - 8192))
                lines = log.read().decode(errors="replace").splitlines()[-20:]
        except OSError:
            lines = []
        if not lines:
            return f"; it printed nothing to {self._log}"
        return "\n".join([f"; the last lines of {self._log}:", *(f"  {line}" for line in lines)])


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Handle signals that end this process like Ctrl-C, so that servers are stopped.

    SIGTERM and SIGHUP raise KeyboardInterrupt, whose argument is the signal. Only for the main
    thread. A SIGHUP that is ignored, as under `nohup`, stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number))

    ending = (signal.SIGTERM, signal.SIGHUP)
    caught = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mask_secrets(command: str) -> str:
    """Mask the keys in a command, for results, reports and messages.

    They are the values of options whose names end in api-key, token, secret or password, such as
    `--api-key` and `--hf-token`, and of variables before the command, such as `HF_TOKEN=`.
    """
    return _SECRET.sub(r"\g<name>***", command)


def url_of(arguments: Sequence[str]) -> str:
    """Return the address of a server, from `--host` and `--port` (or `-p`) of its command line."""
    host = _option(arguments, "--host") or "localhost"
    port = _option(arguments, "--port", "-p")
    port = "8000" if port is None else port
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise BenchmarkError(
            f"the port of the command is {port!r}, expected 1 to 65535, or the URL beside it"
        )
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _option(arguments: Sequence[str], *names: str) -> str | None:
    """Return the last value given, as argparse does."""
    found = None
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else following
    return found


def _split(command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise BenchmarkError(f"the command {command!r} cannot be read: {error}") from None
    if not arguments:
        raise BenchmarkError("the command to start is empty")
    return arguments


@dataclass(frozen=True)
class Target:
    """A server to measure: its URL, a command that starts it, or both."""

    label: str
    url: str | None = None
    command: str | None = None

    @property
    def server(self) -> str:
        """How results name it, with keys masked."""
        return self.url or "" if self.command is None else mask_secrets(self.command)


@dataclass(frozen=True)
class Credentials:
    """How to access the servers, the same for all."""

    model: str | None  # None: the first that a server has
    api: Api
    api_key: str | None
    ready_timeout: float  # seconds for a server to load its model
    ignore_eos: bool = True  # request answers of an exact length where the server supports it


@dataclass(frozen=True)
class RunningServer:
    """A target that answers."""

    label: str
    server: str
    endpoint: Endpoint
    facts: ServerFacts
    check: Callable[[], None]  # raises BenchmarkError where the server is gone


@contextmanager
def running_server(
    target: Target, access: Credentials, log: Path = Path(os.devnull)
) -> Iterator[RunningServer]:
    """Start the target if it has a command, probe it, and stop what was started at the end.

    Args:
        log: for the output of a started server.

    Raises:
        BenchmarkError: it cannot be started, does not answer, or cannot be measured.
    """
    with ExitStack() as stack:
        url, check = target.url or "", None
        if target.command is not None:
            launched = stack.enter_context(Launched(target.command, target.url, log))
            launched.wait_ready(access.ready_timeout)
            url, check = launched.url, launched.check
        endpoint = Endpoint.parse(url, model=access.model, api_key=access.api_key, api=access.api)
        facts = probe(endpoint, ready_timeout=access.ready_timeout, ignore_eos=access.ignore_eos)
        endpoint = replace(endpoint, model=facts.model)
        check = check or partial(_check_listening, endpoint)
        yield RunningServer(target.label, target.server, endpoint, facts, check)


def _check_listening(endpoint: Endpoint) -> None:
    """Check the address: a missing server must not look like a rate that it cannot serve."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), _ACCEPT_TIMEOUT).close()
    except OSError as error:
        raise BenchmarkError(f"there is no server at {endpoint.url} any more ({error})") from None
