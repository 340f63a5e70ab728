"""Finds out which model a server has, and which request fields it accepts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import msgspec

from sarathi.bench.client.answer import MALFORMED, error_message, quoted
from sarathi.bench.client.endpoint import Call, Dialect, Endpoint
from sarathi.bench.client.open_loop import play
from sarathi.errors import BenchmarkError

# Ordered from the most informative. A server that refuses an optional field does so at once.
DIALECTS = (
    *(Dialect(eos, True, continuous) for eos in (True, False) for continuous in (True, False)),
    *(Dialect(eos, usage=False, continuous_usage=False) for eos in (True, False)),
)

# If the answer ends before its eighth token, the server ignores `ignore_eos`. Most models would end
# it there, but not all: a long answer is no proof of the opposite.
_QUESTION = Call(
    at=0, prompt="Answer yes or no: is the sky blue?", prompt_tokens=9, output_tokens=8
)
_POLL_INTERVAL = 0.5  # seconds
_GET_TIMEOUT = 10.0  # seconds
_NAMES_SHOWN = 10
_REFUSED = ("status_400", "status_422", "short")


@dataclass(frozen=True)
class ServerFacts:
    """The properties of a server that matter to a run."""

    model: str  # its name at the server
    max_model_len: int | None  # tokens; None where the server does not report it
    dialect: Dialect
    tells_delay: bool  # it reports the scheduling delay, in a `Server-Timing` header


class ModelEntry(msgspec.Struct, frozen=True):
    """One model in the list of a server."""

    id: str
    max_model_len: Any = None


class ServedModels(msgspec.Struct, frozen=True):
    """The answer to GET /v1/models."""

    data: list[ModelEntry]


class _LoadingError(Exception):
    """The server is still loading; the message is from the server."""


def probe(
    endpoint: Endpoint,
    *,
    ready_timeout: float = 0.0,
    timeout: float = 60.0,
    ignore_eos: bool = True,
) -> ServerFacts:
    """Request the list of models, then a few tokens in the same way as a run does.

    It starts an event loop, so it cannot be called from within one.

    Args:
        endpoint: its model must be among those served; without one it is the first served.
        ready_timeout: seconds to wait for a server that is still loading.
        timeout: seconds to wait for each token.

    Raises:
        BenchmarkError: there is no server, or none that can be measured.
    """
    dialects = [dialect for dialect in DIALECTS if ignore_eos or not dialect.ignore_eos]
    deadline = time.monotonic() + ready_timeout
    while True:
        try:
            return _ask(endpoint, dialects, timeout)
        except _LoadingError as error:
            if time.monotonic() + _POLL_INTERVAL > deadline:
                waited = f" after {ready_timeout:g} s" if ready_timeout else ""
                raise BenchmarkError(
                    f"{endpoint.url} is not ready{waited} (status 503: {error})"
                ) from None
        time.sleep(_POLL_INTERVAL)


def _ask(endpoint: Endpoint, dialects: Sequence[Dialect], timeout: float) -> ServerFacts:
    model = _model(endpoint, _models(endpoint))
    named = replace(endpoint, model=model.id)
    for dialect in dialects:
        [record] = asyncio.run(play(named, dialect, [_QUESTION], timeout=timeout)).records
        if record.failure not in _REFUSED:
            break
    message = record.detail or ""
    if record.failure in _REFUSED:
        raise BenchmarkError(
            f"{endpoint.url} refuses even a plain request to {endpoint.path}: {message}"
        )
    if record.failure is not None:
        _check_status(endpoint, record.failure, message)
        raise BenchmarkError(
            f"{endpoint.url} does not stream an answer from {endpoint.path} "
            f"({record.failure.replace('_', ' ')}: {message})"
        )
    length = model.max_model_len
    return ServerFacts(
        model=model.id,
        max_model_len=length if type(length) is int and length > 0 else None,
        dialect=dialect,
        tells_delay=record.scheduling_delay is not None,
    )


def _models(endpoint: Endpoint) -> list[ModelEntry]:
    url = f"{endpoint.url}/v1/models"
    try:
        with endpoint.http_client(_GET_TIMEOUT) as client:
            response = client.get(url)
    except httpx.TimeoutException:
        raise BenchmarkError(f"GET {url} was not answered within {_GET_TIMEOUT:g} s") from None
    except httpx.TransportError as error:
        raise BenchmarkError(f"there is no server at {endpoint.url} ({error})") from None
    message = error_message(response.content) or quoted(response.content)
    _check_status(endpoint, f"status_{response.status_code}", message)
    reason = f"status {response.status_code}"
    if response.status_code == 200:
        try:
            return msgspec.json.decode(response.content, type=ServedModels).data
        except MALFORMED as error:
            reason = str(error)
    raise BenchmarkError(
        f"{endpoint.url} is not an OpenAI-compatible server: GET {url} gives no list of models "
        f"({reason})"
    )


def _model(endpoint: Endpoint, served: list[ModelEntry]) -> ModelEntry:
    if not served:
        raise BenchmarkError(f"{endpoint.url} serves no model")
    for entry in served:
        if endpoint.model in (None, entry.id):
            return entry
    names = ", ".join(entry.id for entry in served[:_NAMES_SHOWN])
    more = f" and {len(served) - _NAMES_SHOWN} more" if len(served) > _NAMES_SHOWN else ""
    raise BenchmarkError(f"{endpoint.url} has no model {endpoint.model!r}, only {names}{more}")


def _check_status(endpoint: Endpoint, status: str, message: str) -> None:
    if status == "status_503":
        raise _LoadingError(message)
    if status in ("status_401", "status_403"):
        problem = "is missing" if endpoint.api_key is None else "is not accepted"
        raise BenchmarkError(
            f"{endpoint.url} wants a key that {problem}; give it with --api-key "
            f"({status.replace('_', ' ')}: {message})"
        )
