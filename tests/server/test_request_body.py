"""How bodies are sent: compressed or not."""

from __future__ import annotations

import gzip
import json
import time
import zlib

import pytest

from tests.server.fake_engine import FakeEngine, call, error

BODY = json.dumps({"prompt": "p", "metadata": "x" * 5000}).encode()


def post(content: object, encoding: str | None = "gzip", **options):
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    engine = FakeEngine()
    return call(engine, "POST", "/v1/completions", content=content, headers=headers, **options)  # type: ignore[arg-type]


async def in_pieces(content: bytes, size: int):
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
        ("", BODY),
        (None, BODY),
    ],
)
def test_encodings(encoding, content):
    for body in (content, in_pieces(content, 1), in_pieces(content, 37)):
        response = post(body, encoding)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x"])
def test_other_encodings_are_refused(encoding):
    response = post(BODY, encoding)
    assert error(response, 415)["code"] == "unsupported_media_type"
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "content",
    [
        BODY,
        gzip.compress(BODY, mtime=0)[:-1],
        gzip.compress(BODY, mtime=0)[:5],
        gzip.compress(BODY, mtime=0) + b"x",
        gzip.compress(BODY, mtime=0) * 2,
        gzip.compress(BODY, mtime=0)[:-8] + b"\0" * 8,
        b"\x1f\x8b",
    ],
)
def test_damaged_bodies_are_refused(content):
    for body in (content, in_pieces(content, 7)):
        assert error(post(body), 400)["code"] == "invalid_encoding"


def test_an_empty_body_is_empty_in_any_encoding():
    assert error(post(b""), 400)["code"] == "invalid_json"
    assert error(post(gzip.compress(b"")), 400)["code"] == "invalid_json"


def test_the_limit_counts_decoded_bytes():
    content = gzip.compress(BODY, mtime=0)
    assert post(content, max_body=len(BODY)).status_code == 200
    assert error(post(content, max_body=len(BODY) - 1), 413)["code"] == "request_too_large"
    assert error(post(in_pieces(content, 9), max_body=len(BODY) - 1), 413)


def test_the_limit_counts_sent_bytes_as_well():
    """Else empty blocks could be sent without end."""
    content = gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 1000
    assert error(post(in_pieces(content, 100), max_body=1000), 413)


def test_a_bomb_is_harmless():
    bomb = gzip.compress(bytes(2**30), compresslevel=9)
    began = time.process_time()
    error(post(bomb), 413)
    assert time.process_time() - began < 1


def test_what_changes_the_server_may_be_compressed_too():
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    engine = FakeEngine()
    content = gzip.compress(b'{"replicas": 2}')
    assert call(engine, "POST", "/scale", content=content, headers=headers).status_code == 200
    assert engine.scaled == [(2, None)]
