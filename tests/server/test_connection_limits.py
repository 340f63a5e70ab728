"""What a connection may send, and for how long, before anything else is done with it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import ASGIApp

from sarathi.server.app import until_disconnect
from sarathi.server.auth import AuthRules
from sarathi.server.connection_limits import ConnectionLimits
from sarathi.server.run import make_server
from tests.server.fake_engine import MODEL, FakeEngine, fake_app

LIMITS = ConnectionLimits(head_bytes=4096, header_fields=32, head_seconds=0.3, body_seconds=0.6)
LONG_TIMEOUTS = replace(LIMITS, head_seconds=30.0, body_seconds=30.0)
BODY = json.dumps({"model": MODEL, "prompt": "p"}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send_until_refused(self, data: bytes, times: int) -> int:
        """How often `data` was sent before the server closed the connection."""
        for sent in range(times):
            try:
                await self.send(data)
                await asyncio.sleep(0)  # the server runs on the same event loop
            except ConnectionError:
                return sent
        return times

    async def response(self) -> tuple[int, dict[str, Any]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body = await self._reader.readexactly(length)
        return int(head.split()[1]), json.loads(body)

    async def closed(self) -> bytes:
        """What comes until the server closes the connection."""
        try:
            return await self._reader.read()
        except ConnectionError:
            return b""

    def read_nothing(self) -> None:
        transport = self._writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    def close(self) -> None:
        self._writer.close()


Scenario = Callable[[Callable[[], Awaitable[Connection]]], Awaitable[None]]


def serve(
    scenario: Scenario,
    limits: ConnectionLimits = LONG_TIMEOUTS,
    engine: FakeEngine | None = None,
    app: ASGIApp | None = None,
    **rules: Any,
) -> None:
    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        auth = AuthRules(**rules)
        real = fake_app(engine or FakeEngine(), auth=auth)
        server = make_server(app or real, limits)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        opened: list[Connection] = []
        address = listener.getsockname()

        async def connect() -> Connection:
            opened.append(Connection(*await asyncio.open_connection(*address)))
            return opened[-1]

        try:
            await scenario(connect)
        finally:
            for connection in opened:
                connection.close()
            server.should_exit = True
            await serving

    asyncio.run(asyncio.wait_for(run(), 30))


def code(answer: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    status, body = answer
    return status, body["error"]["code"]


ENDLESS = {
    "a header": (POST + b"X-Long: ", b"a" * 1024),
    "a header name": (POST, b"a" * 1024),
    "a request line": (b"GET /", b"a" * 1024),
    "many headers": (POST, b"x: y\r\n" * 8),
    "continued header": (POST + b"X: a\r\n", b"\r\n aaaaaaaa" * 100),
}


@pytest.mark.parametrize(("start", "rest"), ENDLESS.values(), ids=ENDLESS)
def test_an_endless_head_is_refused_before_a_key_is_asked_for(start, rest):
    async def scenario(connect):
        connection = await connect()
        await connection.send(start)
        sent = await connection.send_until_refused(rest, 20_000)
        assert sent < 20_000
        received = await connection.closed()
        # The reply is lost where the client goes on sending after the connection was closed.
        assert received == b"" or received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))

    serve(scenario, api_keys=("secret",))


@pytest.mark.parametrize(
    "head",
    [
        POST + b"X-Long: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        POST + b"x: y\r\n" * 40 + b"\r\n",
    ],
    ids=["long header", "long line", "many headers"],
)
def test_a_large_head_gets_status_431(head):
    async def scenario(connect):
        connection = await connect()
        await connection.send(head)
        assert code(await connection.response()) == (431, "head_too_large")
        assert await connection.closed() == b""

    serve(scenario)


def test_a_head_just_within_the_limits_is_served():
    async def scenario(connect):
        connection = await connect()
        headers = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 100) for number in range(30))
        length = b"Content-Length: %d\r\n\r\n" % len(BODY)
        for _ in range(3):  # on one connection, whose counts restart
            await connection.send(POST + headers + length + BODY)
            status, body = await connection.response()
            assert (status, body["object"]) == (200, "text_completion")

    serve(scenario)


def test_a_body_far_larger_than_a_head_may_be_is_served():
    prompt = json.dumps({"model": MODEL, "prompt": "p"}).ljust(99_999)

    async def scenario(connect):
        connection = await connect()
        await connection.send(POST + b"Content-Length: %d\r\n\r\n" % len(prompt) + prompt.encode())
        assert (await connection.response())[0] == 200
        # In chunks of one byte, most of what is sent is not the body.
        await connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        await connection.send(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(9000)))
        await connection.send(b"0\r\n\r\n")
        assert (await connection.response())[0] == 200

    serve(scenario)


@pytest.mark.parametrize("start", [b"1;", b"1\r\na\r\n0\r\nX: "], ids=["extension", "trailer"])
def test_endless_framing_of_a_body_is_refused(start):
    async def scenario(connect):
        connection = await connect()
        await connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + start)
        assert await connection.send_until_refused(b"a" * 1024, 20_000) < 20_000

    serve(scenario)


def test_invalid_http_is_refused_in_json():
    async def scenario(connect):
        connection = await connect()
        await connection.send(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert code(await connection.response()) == (400, "invalid_http")

    serve(scenario)


@pytest.mark.parametrize(
    "start",
    [
        POST,
        POST + b"Content-Length: 100\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
    ids=["half a head", "half a body", "half a chunk"],
)
def test_a_request_that_is_never_completed_is_ended(start):
    async def scenario(connect):
        connection = await connect()
        await connection.send(start)
        assert code(await connection.response()) == (408, "request_timeout")
        assert await connection.closed() == b""

    serve(scenario, LIMITS)


def test_a_byte_now_and_then_does_not_keep_a_request_alive():
    async def scenario(connect):
        connection = await connect()
        await connection.send(POST + b"Content-Length: 100\r\n\r\n")
        for _ in range(100):
            try:
                await connection.send(b" ")
            except ConnectionError:
                return
            await asyncio.sleep(0.05)
        pytest.fail("the server went on reading")

    serve(scenario, LIMITS)


def test_a_connection_without_a_request_is_closed_without_a_reply():
    async def scenario(connect):
        assert await (await connect()).closed() == b""

    serve(scenario, LIMITS)


def test_the_next_request_on_a_connection_has_its_own_time():
    async def scenario(connect):
        connection = await connect()
        whole = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        await connection.send(whole)
        assert (await connection.response())[0] == 200
        await asyncio.sleep(2 * LIMITS.head_seconds)  # idle between two requests
        await connection.send(whole)
        assert (await connection.response())[0] == 200
        await connection.send(POST)
        assert code(await connection.response()) == (408, "request_timeout")

    serve(scenario, LIMITS)


def test_many_pipelined_requests_are_refused_and_a_few_are_answered_in_order():
    async def scenario(connect):
        few = await connect()
        await few.send(HEALTH * 5 + POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        for _ in range(5):
            assert (await few.response())[1]["status"] == "ok"
        assert (await few.response())[1]["object"] == "text_completion"
        many = await connect()
        await many.send(HEALTH * 1000)
        assert (await many.closed()).count(b"HTTP/1.1 200") < 20

    serve(scenario)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behind", [0, 1, 5, 100])
def test_a_disconnect_ends_the_request_whatever_is_pipelined_behind(behind, stream):
    engine = FakeEngine(script=lambda prompt, params: [[72], [105]])  # and then silence

    async def scenario(connect):
        connection = await connect()
        body = json.dumps({"model": MODEL, "prompt": "p", "stream": stream}).encode()
        await connection.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await engine.silent.wait()
        await connection.send(HEALTH * behind)
        await asyncio.sleep(0.05)
        connection.close()
        while not engine.generations[0].cancelled:
            await asyncio.sleep(0.01)

    serve(scenario, engine=engine)


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNFINISHED = POST + b"Content-Length: %d\r\n\r\n" % len(BODY)


def test_requests_on_connections_beyond_the_limit_get_status_503():
    async def scenario(connect):
        first = await connect()
        await first.send(UNFINISHED)
        await asyncio.sleep(0.05)
        second = await connect()
        await second.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert code(await second.response()) == (503, "overloaded")
        assert await second.closed() == b""
        third = await connect()
        await third.send(HEALTH)  # or an orchestrator would end a server that is only busy
        assert (await third.response())[0] == 200
        await first.send(BODY)  # the first connection is not disturbed
        assert (await first.response())[0] == 200

    serve(scenario, replace(LONG_TIMEOUTS, connections=1))


MODELS = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", POST, HEALTH, UNFINISHED + BODY[:9]],
    ids=["nothing", "half a head", "a request", "half a body"],
)
def test_idle_connections_are_closed_for_new_ones(sent):
    engine = FakeEngine(script=lambda prompt, params: [[72], [105]])  # and then silence

    async def scenario(connect):
        busy = await connect()
        await busy.send(UNFINISHED + BODY)
        await engine.silent.wait()
        for _ in range(5):
            await (await connect()).send(sent)
        await asyncio.sleep(0.1)
        new = await connect()
        await new.send(MODELS)
        assert (await new.response())[0] == 200
        assert not engine.generations[0].cancelled

    serve(scenario, replace(LONG_TIMEOUTS, connections=6, idle_seconds=0.05), engine=engine)


def test_a_reply_that_is_not_read_is_ended():
    given_up = asyncio.Event()

    async def endless(scope, receive, send):
        async def work():
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"a" * 65536, "more_body": True})
                await asyncio.sleep(0)

        await until_disconnect(receive, work())
        given_up.set()

    async def scenario(connect):
        connection = await connect()
        connection.read_nothing()
        await connection.send(HEALTH)
        await given_up.wait()

    serve(scenario, replace(LONG_TIMEOUTS, unread_seconds=0.2), app=endless)


@pytest.mark.parametrize("kind", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_offer_to_upgrade_is_declined_by_answering(kind):
    async def scenario(connect):
        connection = await connect()
        offer = (
            b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\nUpgrade: %s\r\n" % kind
        )
        length = b"Content-Length: %d\r\n\r\n" % len(BODY)
        for _ in range(2):
            await connection.send(POST + offer + length + BODY)
            status, body = await connection.response()
            assert (status, body["object"]) == (200, "text_completion")
        await connection.send(POST + offer + length + BODY[:7])
        await asyncio.sleep(0.05)
        await connection.send(BODY[7:])
        assert (await connection.response())[0] == 200

    serve(scenario)


def test_a_length_of_thousands_of_digits_is_too_large():
    async def scenario(connect):
        connection = await connect()
        await connection.send(POST + b"Content-Length: " + b"0" * 5000 + b"9" * 19 + b"\r\n\r\n")
        status = (await connection.response())[0]
        assert 400 <= status < 500

    serve(scenario, ConnectionLimits())
