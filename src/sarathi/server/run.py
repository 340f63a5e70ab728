"""The HTTP process: starts the engine, listens, and tells the person at the terminal."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
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
from sarathi.fleet.fleet import Fleet
from sarathi.fleet.generation import EngineError
from sarathi.fleet.launcher import EngineLauncher
from sarathi.models.model import open_tokenizer
from sarathi.server.access import AccessRules
from sarathi.server.app import create_app
from sarathi.server.connection_limits import BoundedProtocol, ConnectionLimits, IdleConnections
from sarathi.server.server_config import ServerConfig
from sarathi.server.shutdown import GracefulShutdown
from sarathi.system.machine import raise_descriptor_limit, usable_cores
from sarathi.system.processes import LOCAL, Spawner
from sarathi.system.sockets import bracketed
from sarathi.units import format_duration

_BACKLOG = 2048
_SPARE_DESCRIPTORS = 64  # for what is not a client's connection


def serve(path: Path, engine: EngineConfig, config: ServerConfig, spawner: Spawner = LOCAL) -> int:
    """Serve until interrupted; returns the exit code.

    Args:
        spawner: starts the engines.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelError: the model has no tokenizer that can be read.
    """
    with _listen(config.host, config.port) as listener:
        try:
            return uvloop.run(_serve(path, engine, config, spawner, listener))
        except asyncio.CancelledError:  # interrupted before there was a server
            return 130


def make_server(app: ASGIApp, limits: ConnectionLimits) -> uvicorn.Server:
    """A server that serves `app` on sockets that it is given, and never ends by itself."""
    return _Server(
        uvicorn.Config(
            app,
            http=partial(BoundedProtocol, limits, IdleConnections()),  # type: ignore[arg-type]  # called as a class
            log_level="error",  # what clients do wrong is answered, not logged
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,  # who is on this machine must not be a matter of a header
        )
    )


class _Server(uvicorn.Server):
    """Leaves signals alone: the engine has to be stopped, too, before the process ends."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _serve(
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
    # More engines than cores would only take turns.
    most = max(usable_cores(), config.replicas) if spawner.host is None else MAX_REPLICAS
    launch = EngineLauncher(path, engine, spawner)
    fleet = Fleet(launch, config.replicas, most_replicas=most, report=say)
    try:
        fleet.start()  # engines load in their own processes while this one reads the tokenizer
        tokenizer = await asyncio.to_thread(open_tokenizer, path, engine.load_format)
        for warning in tokenizer.warnings:
            say(f"warning: {warning}")
        gc.freeze()  # what is loaded stays: the collector need not stop the streams to look at it
        access = AccessRules(config.api_keys, config.admin_keys, config.host)
        app = create_app(fleet, tokenizer, served_name=config.served_name, access=access)
        server = make_server(app, ConnectionLimits(connections=_most_connections()))
        shutdown = GracefulShutdown(server, fleet, config.drain_seconds, say)
        _on_signals(shutdown.begin)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        telling = asyncio.create_task(_tell(fleet, config.served_name, url))
        done, _ = await asyncio.wait({serving, telling}, return_when=asyncio.FIRST_COMPLETED)
        code = telling.result() if telling in done else 0
        if code:
            shutdown.end()
        await serving
        telling.cancel()
        return code
    finally:
        await fleet.stop()


async def _tell(fleet: Fleet, served_name: str, url: str) -> int:
    """Say when the model is ready, or why it never will be; an exit code for the latter.

    Engines that die later, and cannot be started again, leave the server up, which then says so to
    whoever asks.
    """
    try:
        info = await fleet.loaded()
    except EngineError as error:
        say(f"error: {error}")
        return 2 if fleet.bad_input else 1
    say(f"{served_name} is ready on {url} ({summary(info)})")
    say(f"error: {await fleet.failed()}; requests are answered with status 503")
    return 0


def summary(info: ModelInfo) -> str:
    """What came of the options, for the line that says the model is ready."""
    parts = ["random weights"] if info.random_weights else []
    parts += [info.precision, f"policy {info.policy}"]
    if info.tbt_target is not None:
        derived = f" ({info.tbt_target_reason})" if info.tbt_target_reason else ""
        parts.append(f"target of {format_duration(info.tbt_target)} between tokens{derived}")
    if info.token_budget is not None:
        parts.append(f"token budget {info.token_budget}")
    if info.order != "fcfs":
        parts.append(f"order {info.order}")
    if info.fair_by is not None:
        parts.append(f"fair by {info.fair_by}")
    if info.deterministic:
        parts.append("deterministic")
    if not info.prefix_caching:
        parts.append("no prefix caching")
    parts.append(f"KV cache of {info.num_blocks * info.block_size} tokens in {info.kv_precision}")
    parts.append(f"up to {info.max_model_len} tokens a request")
    return ", ".join(parts)


def say(line: str) -> None:
    """Print a line for the operator, if there still is somebody at the other end."""
    with suppress(OSError, ValueError):  # a closed pipe must not keep the server from stopping
        print(f"sarathi: {line}", file=sys.stderr, flush=True)


def _on_signals(act: Callable[[], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


def _most_connections() -> int:
    """As many as there are descriptors for, beyond which none could be accepted and refused."""
    limit = raise_descriptor_limit()
    return max(1, limit - _SPARE_DESCRIPTORS)


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, so that a port in use is known at once."""
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
        listener.listen(_BACKLOG)  # or a second server could still bind
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
