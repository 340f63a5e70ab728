"""The real command `sarathi serve`, started on a free port and stopped at the end."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import psutil

from perf.report import MODEL

_TIMEOUT = 120.0  # seconds for a server to load or to answer
_POLL = 0.02  # seconds


class ServerError(RuntimeError):
    """The server ended or does not answer; the message is what it printed."""


class Server:
    """A server process. Entering the context starts it, without waiting for the model."""

    def __init__(self, options: Sequence[str] = (), command: Sequence[str] | None = None) -> None:
        """Prepare a server; `command` is that of another one, which takes `--port`, too."""
        self.port = free_port()
        own = (sys.executable, "-m", "sarathi.cli.main", "serve", MODEL)
        self._command = [*(own if command is None else command), *options]

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [*self._command, "--port", str(self.port)],
            stdout=self._log,
            stderr=self._log,
            # Clients send no key.
            env={name: value for name, value in os.environ.items() if name != "SARATHI_API_KEY"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def engine_pid(self) -> int | None:
        """The process that computes, None before it is started."""
        children = psutil.Process(self.pid).children()
        return children[0].pid if children else None

    def wait_for_token(self) -> float:
        """Request one token until there is an answer; return the time as perf_counter does.

        Raises:
            ServerError: the server ended, or took too long.
        """
        body = json.dumps({"prompt": "The capital of France is", "max_tokens": 1})
        while not self._answers(body):
            if self._process.poll() is not None or time.perf_counter() > self.started + _TIMEOUT:
                self._log.seek(0)
                raise ServerError(self._log.read())
            time.sleep(_POLL)
        return time.perf_counter()

    def stats(self) -> dict[str, Any]:
        """Return what GET /stats reports of its scheduler."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request("GET", "/stats")
            fields: dict[str, Any] = json.loads(connection.getresponse().read())
            return fields
        finally:
            connection.close()

    def _answers(self, body: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/completions", body, headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False  # not listening yet
        finally:
            connection.close()


def free_port() -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
