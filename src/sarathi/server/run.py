"""The HTTP process: starts the engines, listens, logs to the terminal, and shuts down.

When it shuts down, open requests are drained, and those that remain end with an error.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import ASGIApp

from sarathi.engine.config import MAX_REPLICAS, EngineConfig
from sarathi.engine.messages import ModelInfo
from sarathi.errors import ConfigError
from sarathi.fleet.engine_client import EngineError, ShuttingDownError
from sarathi.fleet.fleet import Fleet
from sarathi.models.model import open_tokenizer
from sarathi.options import LogLevel
from sarathi.server.app import create_app
from sarathi.server.auth import AuthRules
from sarathi.server.connection_limits import BoundedProtocol, ConnectionLimits, IdleConnections
from sarathi.server.parsers.format_detection import OutputFormats, model_formats
from sarathi.server.server_config import ServerConfig
from sarathi.system.machine import raise_descriptor_limit, usable_cores
from sarathi.system.processes import LOCAL, Spawner
from sarathi.system.sockets import bracketed
from sarathi.units import format_duration

_LOG = logging.getLogger("sarathi")
_LEVEL_PREFIX = re.compile(r"(?:replica \d+: )?(error|warning): ")
_SPARE_DESCRIPTORS = 64  # for what is not a client's connection
_POLL = 0.05  # seconds
_SEND_ERRORS = 2.0  # seconds for the last errors to reach clients


class GracefulShutdown:
    """Drains a server: no new connections, a bounded time for open requests, then an error."""

    def __init__(self, server: uvicorn.Server, fleet: Fleet, drain_seconds: float) -> None:
        self._server = server
        self._fleet = fleet
        self._drain_seconds = drain_seconds  # for requests that are open when it begins
        self._deadline = 0.0  # for requests to end, time.monotonic
        self._task: asyncio.Task[None] | None = None
        self._reason = "the drain timeout is over"

    def begin(self) -> None:
        """Start to drain; called again, end open requests at once."""
        if self._task is not None:
            self._reason = "interrupted again"
            self._deadline = 0.0
            return
        self._start(self._drain_seconds)
        if self._num_open and self._drain_seconds:
            log(
                f"shutting down: {_requests(self._num_open)} may take up to "
                f"{format_duration(self._drain_seconds)} to end (interrupt again to end at once)"
            )
        else:
            log("shutting down")

    def end(self) -> None:
        """End open requests at once, because the engine could not be started."""
        self._reason = "there is no engine"
        if self._task is None:
            self._start(0.0)
        self._deadline = 0.0

    def _start(self, drain_seconds: float) -> None:
        self._server.should_exit = True
        self._deadline = time.monotonic() + drain_seconds
        self._task = asyncio.create_task(self._run())

    @property
    def _num_open(self) -> int:
        return len(self._server.server_state.tasks)

    async def _run(self) -> None:
        await self._wait_until_none_open()
        if self._num_open:
            log(f"{_requests(self._num_open)} ended with an error: {self._reason}")
        self._fleet.end_requests(ShuttingDownError())
        self._deadline = time.monotonic() + _SEND_ERRORS
        await self._wait_until_none_open()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # its client does not read, or never completes a request

    async def _wait_until_none_open(self) -> None:
        while self._num_open and time.monotonic() < self._deadline:
            await asyncio.sleep(_POLL)


def _requests(count: int) -> str:
    return f"{count} open request" + ("s" if count != 1 else "")


def serve(path: Path, engine: EngineConfig, config: ServerConfig, spawner: Spawner = LOCAL) -> int:
    """Serve until interrupted; return the exit code.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelError: the model has no tokenizer that can be read.
    """
    set_up_logging(config.log_level)
    with _listen(config.host, config.port) as listener:
        try:
            return uvloop.run(_run(path, engine, config, spawner, listener))
        except asyncio.CancelledError:  # interrupted before there was a server
            return 130


def make_server(
    app: ASGIApp, limits: ConnectionLimits, log_level: LogLevel = "info"
) -> uvicorn.Server:
    """Return a server for `app` that listens on given sockets and leaves signals alone."""
    return _Server(
        uvicorn.Config(
            app,
            http=partial(BoundedProtocol, limits, IdleConnections()),  # type: ignore[arg-type]  # called as a class
            # Wrong requests are answered, not logged.
            log_level="debug" if log_level == "debug" else "error",
            access_log=log_level == "debug",
            lifespan="off",
            ws="none",
            proxy_headers=False,  # a header must not decide which client is on this machine
        )
    )


class _Server(uvicorn.Server):
    """Leaves signals to `GracefulShutdown`, which also ends the requests of the engines."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _run(
    path: Path,
    engine: EngineConfig,
    config: ServerConfig,
    spawner: Spawner,
    listener: socket.socket,
) -> int:
    task = asyncio.current_task()
    assert task is not None
    _on_signals(task.cancel)  # until there is a server to stop
    host, port = listener.getsockname()[:2]
    url = f"http://{bracketed(host)}:{port}/v1"
    # More engines than cores would only compete for them.
    max_replicas = max(usable_cores(), config.replicas) if spawner.host is None else MAX_REPLICAS
    fleet = Fleet(
        path, engine, config.replicas, spawner=spawner, max_replicas=max_replicas, log=log
    )
    try:
        fleet.start()  # engines load in their own processes while this one reads the tokenizer
        tokenizer = await asyncio.to_thread(open_tokenizer, path, engine.load_format)
        for warning in tokenizer.warnings:
            log(f"warning: {warning}")
        gc.freeze()  # loaded objects stay: the collector need not pause the streams to visit them
        auth = AuthRules(config.api_keys, config.admin_keys, config.host)
        formats = model_formats(tokenizer, config.tool_call_parser, config.reasoning_parser)
        app = create_app(
            fleet,
            tokenizer,
            served_name=config.served_name,
            auth=auth,
            formats=formats,
            strict=config.strict,
            cors_origins=config.cors_origins,
        )
        # Some file descriptors are kept, so that a connection too many can be refused.
        most = max(1, raise_descriptor_limit() - _SPARE_DESCRIPTORS)
        limits = ConnectionLimits(connections=most)
        server = make_server(app, limits, config.log_level)
        shutdown = GracefulShutdown(server, fleet, config.drain_seconds)
        _on_signals(shutdown.begin)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        announcing = asyncio.create_task(_log_state(fleet, config.served_name, url, formats))
        done, _ = await asyncio.wait({serving, announcing}, return_when=asyncio.FIRST_COMPLETED)
        code = announcing.result() if announcing in done else 0
        if code:
            shutdown.end()
        await serving
        announcing.cancel()
        return code
    finally:
        await fleet.stop()


async def _log_state(fleet: Fleet, served_name: str, url: str, formats: OutputFormats) -> int:
    """Log when the model is ready; return an exit code where it cannot be loaded.

    Engines that die later, and cannot be started again, leave the server up, which then answers
    requests with an error.
    """
    try:
        info = await fleet.loaded()
    except EngineError as error:
        log(f"error: {error}")
        return 2 if fleet.bad_input else 1
    tools, reasoning = formats.names
    log(
        f"{served_name} is ready on {url} ({summary(info)}, tool calls: {tools}, "
        f"reasoning: {reasoning})"
    )
    log(f"error: {await fleet.failed()}; requests are answered with status 503")
    return 0


def summary(info: ModelInfo) -> str:
    """Return how the model is served, for the message that it is ready."""
    target = ""
    if info.tbt_target is not None:
        derived = f" ({info.tbt_target_reason})" if info.tbt_target_reason else ""
        target = f"target of {format_duration(info.tbt_target)} between tokens{derived}"
    parts = (
        "random weights" if info.random_weights else "",
        info.precision,
        "" if info.quantization == "none" else f"quantised weights ({info.quantization})",
        f"policy {info.policy}",
        target,
        "" if info.token_budget is None else f"token budget {info.token_budget}",
        "" if info.order == "fcfs" else f"order {info.order}",
        "" if info.fair_by is None else f"fair by {info.fair_by}",
        "deterministic" if info.deterministic else "",
        "" if info.prefix_caching else "no prefix caching",
        f"KV cache of {info.num_blocks * info.block_size} tokens in {info.kv_precision}",
        f"up to {info.max_model_len} tokens a request",
    )
    return ", ".join(filter(None, parts))


def set_up_logging(level: LogLevel) -> None:
    """Send log messages of at least `level` to stderr."""
    if not _LOG.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("sarathi: %(message)s"))
        _LOG.addHandler(handler)
    _LOG.setLevel(level.upper())


def log(message: str) -> None:
    """Log a message for the operator; its prefix "error: " or "warning: " gives its level."""
    if not _LOG.handlers:
        set_up_logging("info")
    prefix = _LEVEL_PREFIX.match(message)
    _LOG.log(logging.getLevelName(prefix[1].upper()) if prefix else logging.INFO, "%s", message)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # a closed pipe must not keep the server from stopping
            print(self.format(record), file=sys.stderr, flush=True)


def _on_signals(act: Callable[[], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


def _listen(host: str, port: int) -> socket.socket:
    """Listen before anything is loaded, so that a port in use is reported at once."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, ValueError) as error:  # such as an empty or too long label
        reason = getattr(error, "strerror", None) or "it cannot be a host name"
        raise ConfigError(f"--host {host} is no address: {reason}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)  # now, or a second server could still bind
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
