"""Bad input, clients that leave, and a server that is not ready yet."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

LONG = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Once upon a time"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tell a story."}]},
}


def stats(http: httpx.Client) -> dict[str, int]:
    return http.get("/stats").json()


def wait_for_work(http: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while stats(http)["running"] + stats(http)["waiting"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=60)


def send(connection: socket.socket, path: str, body: bytes, api_key: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def reset(connection: socket.socket) -> None:
    """Close with RST, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_a_disconnect_frees_everything(http, server_url, api_key, path, n, stream, leave):
    choices: dict[str, Any] = {"n": n, "temperature": 1} if n > 1 else {}
    body = json.dumps({**PATHS[path], **LONG, **choices, "stream": stream}).encode()
    connection = connect(server_url)
    send(connection, path, body, api_key)
    if stream:
        received = b""
        while received.count(b"data: ") < 3 + n:
            received += connection.recv(4096)
    else:
        wait_for_work(http)
    leave(connection)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("stream", [False, True])
def test_disconnects_before_the_first_token_free_everything(http, server_url, api_key, stream):
    # Long prompts, and more of them than one iteration computes.
    body = json.dumps({"prompt": "word " * 400, **LONG, "stream": stream}).encode()
    connections = [connect(server_url) for _ in range(8)]
    for connection in connections:
        send(connection, "/v1/completions", body, api_key)
    wait_for_work(http)
    for connection in connections:
        connection.close()


@pytest.mark.usefixtures("idle")
def test_an_unfinished_body_delays_no_other_request(http, server_url, api_key):
    connection = connect(server_url)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer "
        + api_key.encode()
        + b'\r\nContent-Length: 1000\r\n\r\n{"prompt": '
    )
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).is_success
    connection.close()


BAD = {
    "nothing": (b"", 400),
    "half": (b'{"prompt": "a"', 400),
    "no JSON": (b"prompt=a", 400),
    "NaN": (b'{"prompt": "a", "temperature": NaN}', 400),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe\xfa"}', 400),
    "half a surrogate pair": (b'{"prompt": "\\ud83d alone"}', 400),
    "deep nesting": (b'{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, 400),
    "empty prompt": (b'{"prompt": ""}', 400),
    "token ids out of the vocabulary": (b'{"prompt": [1, 99999999]}', 400),
    "negative token ids": (b'{"prompt": [-1]}', 400),
    "huge numbers": (b'{"prompt": [123456789012345678901234567890]}', 400),
    "huge max_tokens": (b'{"prompt": "a", "max_tokens": 100000000000000000000}', 400),
    "unknown model": (b'{"prompt": "a", "model": "missing"}', 404),
    "wrong type": (b'{"prompt": "a", "max_tokens": "many"}', 400),
    "no duration": (b'{"prompt": "a", "tbt_target": "fast"}', 400),
    "a priority without an effect": (b'{"prompt": "a", "priority": 1}', 400),
    "unsupported field": (b'{"prompt": "a", "suffix": "z"}', 400),
    "too long a prompt": (b'{"prompt": "' + b"word " * 100_000 + b'"}', 400),
    "too large a body": (b'{"prompt": "' + b"x" * 10_000_000 + b'"}', 413),
    "too many choices": (b'{"prompt": [' + b"[1]," * 50_000 + b"[1]]}", 400),
}


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_the_server_continues(http, name):
    content, status = BAD[name]
    response = http.post("/v1/completions", content=content)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    good = http.post("/v1/completions", json={"prompt": "The sky is", "max_tokens": 2})
    assert good.json()["usage"]["completion_tokens"] >= 1


def test_a_broken_request_line_is_refused(http, server_url):
    with connect(server_url) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in connection.recv(1000)
    assert http.get("/health").status_code == 200


def test_a_server_answers_while_it_loads(starting_server):
    """A server started here is used, since that of the other tests has loaded."""
    health = starting_server.get_when_up("/health")
    request = httpx.post(starting_server.url + "/v1/completions", json={"prompt": "a"})
    assert health.status_code == 503
    assert health.json()["status"] == "loading"
    assert request.status_code == 503
    assert request.json()["error"]["code"] == "model_loading"
    assert "retry-after" in request.headers
    starting_server.wait_until_healthy()
    response = httpx.post(starting_server.url + "/v1/completions", json={"prompt": "a"}, timeout=60)
    assert response.status_code == 200
