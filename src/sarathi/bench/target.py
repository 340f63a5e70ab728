"""The servers to measure: one that runs already, or a command that starts one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sarathi.bench.client.endpoint import Api, Endpoint
from sarathi.bench.client.server_probe import ServerFacts, probe
from sarathi.bench.server_process import Launched, mask_secrets
from sarathi.errors import BenchmarkError

_CONNECT_TIMEOUT = 10.0  # seconds: a server under load may be slow to accept


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
    if target.command is None:
        assert target.url is not None
        yield _probed(target, access, target.url, None)
        return
    with Launched(target.command, target.url, log) as launched:
        launched.wait_ready(access.ready_timeout)
        yield _probed(target, access, launched.url, launched.check)


def _probed(
    target: Target, access: Credentials, url: str, check: Callable[[], None] | None
) -> RunningServer:
    endpoint = Endpoint.parse(url, model=access.model, api_key=access.api_key, api=access.api)
    facts = probe(endpoint, ready_timeout=access.ready_timeout, ignore_eos=access.ignore_eos)
    named = replace(endpoint, model=facts.model)
    check = check or partial(_check_listening, named)
    return RunningServer(target.label, target.server, named, facts, check)


def _check_listening(endpoint: Endpoint) -> None:
    """Check the address: a missing server must not look like a rate that it cannot serve."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise BenchmarkError(f"there is no server at {endpoint.url} any more ({error})") from None
