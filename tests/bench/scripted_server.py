"""A server of the OpenAI API that follows a script exactly, at the times of the script.

    with ScriptedServer(steady(ttft=0.05, tbt=0.01)) as server:
        ...  # talk to server.url, look at server.requests

A script gives the reply for each generation request, so that one in three can hang, drop its
connection or answer 500: see scripted_replies.py.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tests.bench.scripted_replies import TOKEN, Raw, Received, Reply, Script, Tokens, error_body

MODEL = "scripted"


class ScriptedServer:
    """Runs in a thread of its own from `with` to the end of the block.

    It also answers GET /v1/models and GET /health, and POST /tokenize, where words are tokens.
    """

    def __init__(
        self,
        script: Script,
        *,
        model: str = MODEL,
        max_model_len: int | None = 4096,
        api_key: str | None = None,
        refuses: Sequence[str] = (),
        loading: float = 0.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            api_key: what requests must have; None: nothing.
            refuses: fields of the body, or of its `stream_options`, that are answered with 400.
            loading: seconds for which everything is answered with 503.
            context: for HTTPS.
        """
        self.requests: list[Received] = []  # generation requests, those that were refused too
        self._script = script
        self._model = {"id": model, "object": "model", "max_model_len": max_model_len}
        self._api_key = api_key
        self._refuses = frozenset(refuses)
        self._ready_at = time.perf_counter() + loading
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._port = 0

    @property
    def url(self) -> str:
        return f"{'http' if self._context is None else 'https'}://127.0.0.1:{self._port}"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        starting = asyncio.start_server(
            self._connected, "127.0.0.1", 0, ssl=self._context, backlog=4096
        )
        server = loop.run_until_complete(starting)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        loop.run_forever()
        server.close()
        open_ones = asyncio.all_tasks(loop)
        for task in open_ones:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*open_ones, return_exceptions=True))
        loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin = await reader.readexactly(4)
        if begin not in (b"GET ", b"POST"):
            _answer(writer, 400, error_body("This is not HTTP."))
            return
        head = (begin + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        at = time.perf_counter()
        refusal = self._refusal(at, headers)
        if refusal is not None:
            _answer(writer, *refusal)
        elif method == "POST" and path.endswith(("/v1/completions", "/v1/chat/completions")):
            request = Received(len(self.requests), at, path, headers, json.loads(body))
            self.requests.append(request)
            await self._generate(request, writer)
        elif method == "POST" and path.endswith("/tokenize"):
            words = json.loads(body)["prompt"].split()
            reply = {"count": len(words), "tokens": list(range(len(words)))}
            limit = self._model["max_model_len"]
            _answer(writer, 200, json.dumps({**reply, "max_model_len": limit}).encode())
        elif method == "GET" and path.endswith("/v1/models"):
            _answer(writer, 200, json.dumps({"object": "list", "data": [self._model]}).encode())
        elif method == "GET" and path.endswith("/health"):
            _answer(writer, 200, b'{"status": "ok"}')
        else:
            _answer(writer, 404, error_body(f"there is no {method} {path}"))
        await writer.drain()

    def _refusal(self, now: float, headers: Mapping[str, str]) -> tuple[int, bytes] | None:
        if self._api_key and headers.get("authorization") != f"Bearer {self._api_key}":
            return 401, error_body("Incorrect API key provided.")
        if now < self._ready_at:
            return 503, error_body("The model is still loading.")
        return None

    async def _generate(self, request: Received, writer: asyncio.StreamWriter) -> None:
        given = {*request.body, *request.body.get("stream_options", {})}
        unknown = sorted(given & self._refuses)
        if unknown:
            _answer(writer, 400, error_body(f"Unknown field {unknown[0]!r}."))
            return
        reply = self._script(request)
        if reply.instead is not None:
            writer.write(reply.instead)
        elif reply.status != 200:
            _answer(writer, reply.status, reply.body, reply.headers)
        else:
            await _Stream(request, reply, writer).send()


class _Stream:
    """One reply as server-sent events in HTTP chunks."""

    def __init__(self, request: Received, reply: Reply, writer: asyncio.StreamWriter) -> None:
        options = request.body.get("stream_options", {})
        self._request = request
        self._reply = reply
        self._writer = writer
        self._sent = 0  # tokens
        self._continuous = reply.usage == "continuous" or (
            reply.usage == "asked" and options.get("continuous_usage_stats", False)
        )
        self._final = reply.usage in ("continuous", "final") or (
            reply.usage == "asked" and options.get("include_usage", False)
        )

    async def send(self) -> None:
        reply = self._reply
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "transfer-encoding": "chunked",
            **reply.headers,
        }
        self._writer.write(_head(200, headers))
        for step in reply.steps:
            if isinstance(step, Raw):
                await self._sleep_until(step.at)
                self._chunk(step.data)
            else:
                await self._tokens(step)
            await self._writer.drain()
        if reply.ending == "hung":
            await asyncio.sleep(3600)
        elif reply.ending == "done":
            last = self._event("", "length")
            if self._final:
                last += _data({"choices": [], "usage": self._usage()})
            self._chunk(last + b"data: [DONE]\n\n")
        if reply.ending != "dropped":
            self._writer.write(b"0\r\n\r\n")

    async def _tokens(self, step: Tokens) -> None:
        self._sent += step.count
        event = self._event(TOKEN * step.count if step.text is None else step.text, None)
        if not step.split:
            await self._sleep_until(step.at)
            self._chunk(event)
            return
        await self._sleep_until(step.at - 0.01)
        self._chunk(event[: len(event) // 2])
        await self._writer.drain()
        await self._sleep_until(step.at)
        self._chunk(event[len(event) // 2 :])

    def _event(self, text: str, finish_reason: str | None) -> bytes:
        chat = "messages" in self._request.body
        said = {"delta": {"content": text}} if chat else {"text": text}
        usage = {"usage": self._usage()} if self._continuous else {}
        return _data({"choices": [{"index": 0, **said, "finish_reason": finish_reason}], **usage})

    def _usage(self) -> dict[str, Any]:
        prompt = len(self._request.prompt.split())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._sent,
            "total_tokens": prompt + self._sent,
        }

    def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def _sleep_until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self._request.at + at - time.perf_counter()))


def _data(fields: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _answer(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    writer.write(_head(status, {**fields, **(headers or {})}) + body)
