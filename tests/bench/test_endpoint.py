from __future__ import annotations

import json

import pytest

from sarathi.bench.client.endpoint import Call, Dialect, Endpoint, request
from sarathi.errors import BenchmarkError

CALL = Call(at=0.0, prompt="Grüße", prompt_tokens=2, output_tokens=7)
PLAIN = Dialect(ignore_eos=False, usage=False, continuous_usage=False)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "prefix"),
    [
        ("http://localhost:8000", "http", "localhost", 8000, ""),
        ("http://localhost:8000/", "http", "localhost", 8000, ""),
        ("http://localhost:8000/v1", "http", "localhost", 8000, ""),
        ("HTTPS://Host/v1/", "https", "host", 443, ""),
        ("http://10.0.0.1", "http", "10.0.0.1", 80, ""),
        ("https://host:8443/llm/v1", "https", "host", 8443, "/llm"),
        ("http://[::1]:8000/v1", "http", "::1", 8000, ""),
        ("http://bücher.example", "http", "xn--bcher-kva.example", 80, ""),
        ("http://host/ä", "http", "host", 80, "/%C3%A4"),
    ],
)
def test_a_url_is_taken_apart(url: str, scheme: str, host: str, port: int, prefix: str) -> None:
    if prefix is None:
        with pytest.raises(BenchmarkError):
            Endpoint.parse(url)
        return
    found = Endpoint.parse(url)
    assert (found.scheme, found.host, found.port, found.prefix) == (scheme, host, port, prefix)
    assert Endpoint.parse(found.url) == found


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "localhost",
        "ftp://localhost",
        "http://",
        "http://:8000",
        "http://host:port",
        "http://host:0",
        "http://host:65536",
        "http://[::1",
        "http://[host]",
        "http://a..b",
        "http://user:secret@host",
        "http://host/two words",
        "http://host?model=x",
        "http://host#x",
        "http://host\r\nEvil: header",
    ],
)
def test_what_is_no_address_is_named_with_an_example(url: str) -> None:
    with pytest.raises(BenchmarkError, match=r"is no address .*http://localhost:8000"):
        Endpoint.parse(url)


@pytest.mark.parametrize("key", ["two\r\nlines", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(BenchmarkError, match="API key"):
        Endpoint.parse("http://host", api_key=key)


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Endpoint.parse("http://host", api_key="secret"))


def sent(endpoint: Endpoint, dialect: Dialect = PLAIN) -> tuple[list[str], dict[str, object]]:
    head, body = request(endpoint, dialect, CALL).split(b"\r\n\r\n", 1)
    lines = head.decode("ascii").split("\r\n")
    assert f"Content-Length: {len(body)}" in lines
    return lines, json.loads(body)


def test_a_request_names_host_key_model_and_length() -> None:
    endpoint = Endpoint.parse("http://[::1]:8000/llm/v1", model="m", api_key="k")
    lines, body = sent(endpoint)
    assert lines[0] == "POST /llm/v1/completions HTTP/1.1"
    assert {"Host: [::1]:8000", "Authorization: Bearer k", "Connection: close"} <= set(lines)
    assert body == {
        "model": "m",
        "prompt": "Grüße",
        "max_tokens": 7,
        "temperature": 0,
        "stream": True,
    }


def test_the_chat_api_gets_one_message_of_the_user() -> None:
    lines, body = sent(Endpoint.parse("http://host", api="chat"))
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    assert body["messages"] == [{"role": "user", "content": "Grüße"}]
    assert not {"prompt", "model"} & body.keys()
    assert not any(line.startswith("Authorization") for line in lines)


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (
            Dialect(),
            {
                "ignore_eos": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
        ),
        (
            Dialect(continuous_usage=False),
            {"ignore_eos": True, "stream_options": {"include_usage": True}},
        ),
        (PLAIN, {}),
    ],
)
def test_a_dialect_adds_its_fields_and_no_other(
    dialect: Dialect, fields: dict[str, object]
) -> None:
    plain = sent(Endpoint.parse("http://host"))[1]
    assert sent(Endpoint.parse("http://host"), dialect)[1] == plain | fields
