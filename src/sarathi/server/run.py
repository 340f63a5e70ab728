"""The HTTP process: starts the engine, listens, and tells the person at the terminal."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from sarathi.engine.client import EngineClient, EngineError
from sarathi.engine.config import ConfigError, EngineConfig
from sarathi.engine.messages import ModelInfo
from sarathi.models.model import open_tokenizer
from sarathi.server.app import create_app

_DRAIN_SECONDS = 5  # for open streams after the first Ctrl-C


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    host: str
    port: int  # 0 for any that is free
    served_name: str  # what clients call the model
    api_keys: tuple[str, ...] = ()


def serve(path: Path, engine: EngineConfig, config: ServerConfig) -> int:
    """Serve until interrupted; returns the exit code.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelError: the model has no tokenizer that can be read.
    """
    with _listen(config.host, config.port) as listener:
        if sys.platform == "win32":
            return asyncio.run(_serve(path, engine, config, listener))
        import uvloop

        return uvloop.run(_serve(path, engine, config, listener))


class _Server(uvicorn.Server):
    """Leaves signals alone: the engine has to be stopped, too, before the process ends."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _serve(
    path: Path, engine: EngineConfig, config: ServerConfig, listener: socket.socket
) -> int:
    client = EngineClient(path, engine, report=_say)
    client.start()  # loads in its own process while this one reads the tokenizer
    try:
        tokenizer = await asyncio.to_thread(open_tokenizer, path)
        app = create_app(
            client, tokenizer, served_name=config.served_name, api_keys=config.api_keys
        )
        server = _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        _stop_on_signals(server)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        telling = asyncio.create_task(_tell(client, config, listener))
        done, _ = await asyncio.wait({serving, telling}, return_when=asyncio.FIRST_COMPLETED)
        code = telling.result() if telling in done else 0
        server.should_exit |= code != 0
        await serving
        telling.cancel()
        return code
    finally:
        await client.stop()


async def _tell(client: EngineClient, config: ServerConfig, listener: socket.socket) -> int:
    """Say when the model is ready, or why it never will be; an exit code for the latter.

    An engine that dies later leaves the server up, which then says so to whoever asks.
    """
    try:
        info = await client.loaded()
    except EngineError as error:
        _say(f"error: {error}")
        return 2 if client.bad_input else 1
    _say(_ready(info, config, listener))
    _say(f"error: {await client.failed()}; requests are answered with status 503")
    return 0


def _ready(info: ModelInfo, config: ServerConfig, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    tokens = info.num_blocks * info.block_size
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    budget = f", token budget {info.token_budget}" if info.token_budget is not None else ""
    return (
        f"{config.served_name} is ready on {url} ({info.precision}, policy {info.policy}{budget}, "
        f"KV cache of {tokens} tokens in {info.kv_precision}, up to {info.max_model_len} tokens "
        "a request)"
    )


def _say(line: str) -> None:
    print(f"sarathi: {line}", file=sys.stderr, flush=True)


def _stop_on_signals(server: uvicorn.Server) -> None:
    """The first Ctrl-C lets open streams end for a while, the second does not."""

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, so that a port in use is known at once."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host} is no address: {error.strerror}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
