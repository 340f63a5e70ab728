"""Whoever is to be measured: a server that runs, or a command that starts one."""

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
from sarathi.bench.masked_command import shown_command
from sarathi.bench.server_process import Launched
from sarathi.errors import BenchmarkError

_CONNECT_TIMEOUT = 10.0  # seconds: a server under load may be slow to accept


@dataclass(frozen=True)
class Target:
    """Has a URL, a command that starts it, or both."""

    label: str
    url: str | None = None
    command: str | None = None

    @property
    def server(self) -> str:
        """How the results name it, keys left out."""
        return self.url or "" if self.command is None else shown_command(self.command)


@dataclass(frozen=True)
class Credentials:
    """How servers are asked, all alike."""

    model: str | None  # None: the first that a server has
    api: Api
    api_key: str | None
    patience: float  # seconds for a server to load its model
    ignore_eos: bool = True  # ask for answers of an exact length where the server can do that


@dataclass(frozen=True)
class Subject:
    """A contender that answers."""

    label: str
    server: str
    endpoint: Endpoint
    facts: ServerFacts
    check: Callable[[], None]  # raises BenchmarkError where the server is gone


@contextmanager
def answering(
    contender: Target, access: Credentials, log: Path = Path(os.devnull)
) -> Iterator[Subject]:
    """The contender while it runs; what was started is stopped at the end.

    Args:
        log: for what a started server prints.

    Raises:
        BenchmarkError: it cannot be started, does not answer, or not as it should.
    """
    if contender.command is None:
        assert contender.url is not None
        yield _subject(contender, access, contender.url, None)
        return
    with Launched(contender.command, contender.url, log) as launched:
        launched.wait_ready(access.patience)
        yield _subject(contender, access, launched.url, launched.check)


def _subject(
    contender: Target, access: Credentials, url: str, check: Callable[[], None] | None
) -> Subject:
    endpoint = Endpoint.parse(url, model=access.model, api_key=access.api_key, api=access.api)
    facts = probe(endpoint, patience=access.patience, ignore_eos=access.ignore_eos)
    named = replace(endpoint, model=facts.model)
    check = check or partial(_check_listening, named)
    return Subject(contender.label, contender.server, named, facts, check)


def _check_listening(endpoint: Endpoint) -> None:
    """Its absence must not be taken for a rate that it cannot serve."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise BenchmarkError(f"there is no server at {endpoint.url} any more ({error})") from None
