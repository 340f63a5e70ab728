"""A server started by the real command."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_SECONDS = 120.0


class StartedServer:
    """The real command, on a free port."""

    def __init__(self, log: Path, *more: str) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        command = [sys.executable, "-m", "sarathi.cli.main", "serve", "smollm2-135m"]
        # In f32, so that outputs do not depend on what else is in the batch.
        options = ["--port", str(port), "--max-model-len", "2048", "--precision", "f32"]
        options += ["--kv-cache-memory", "512MiB", *more]
        with log.open("wb") as output:
            self.process = subprocess.Popen([*command, *options], stdout=output, stderr=output)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get_when_up(self, path: str) -> httpx.Response:
        """The first answer, which comes before the model is loaded."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check()
            try:
                return httpx.get(self.url + path, timeout=10)
            except httpx.TransportError:
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.get_when_up("/health").status_code != 200:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def check(self) -> None:
        assert self.process.poll() is None, self._log.read_text()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
