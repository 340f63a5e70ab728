"""Request ids, CORS, and the methods and paths that clients try."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sarathi.server.reply_headers import ReplyHeaders, parse_origin
from tests.server.fake_engine import MODEL, FakeEngine, call, error

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
PAGE = "https://page.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def ask(method: str = "POST", path: str = CHAT, body: Any = None, **options: Any):
    body = BODY if method == "POST" and body is None else body
    return call(FakeEngine(), method, path, body, **options)


def allowed(response) -> dict[str, str]:
    return {
        name.removeprefix("access-control-allow-"): value
        for name, value in response.headers.items()
        if name.startswith("access-control-allow-")
    }


class TestRequestIds:
    @pytest.mark.parametrize("given", ["abc-123", "a" * 128, "req_1:2/3"])
    def test_a_sane_one_comes_back(self, given):
        headers = {"X-Request-Id": given}
        assert ask(headers=headers).headers["x-request-id"] == given

    @pytest.mark.parametrize("given", ["", "a b", "a" * 129, "é".encode("latin-1"), "\t"])
    def test_another_is_replaced(self, given):
        found = ask(headers={"X-Request-Id": given}).headers["x-request-id"]
        assert found.startswith("req_")
        assert found != ask().headers["x-request-id"]

    @pytest.mark.parametrize(
        ("options", "status"),
        [
            ({"body": {}}, 400),
            ({"path": "/nothing"}, 404),
            ({"method": "GET"}, 405),
            ({"api_keys": ["one"]}, 401),
            ({"max_body": 5}, 413),
            ({"method": "GET", "path": "/metrics"}, 200),
            ({"method": "OPTIONS"}, 204),
            ({"body": {**BODY, "stream": True}}, 200),
        ],
    )
    def test_every_reply_has_one(self, options, status):
        response = ask(**options)
        assert response.status_code == status
        assert len(response.headers.get_list("x-request-id")) == 1


class TestCors:
    @pytest.mark.parametrize("keys", [{}, {"api_keys": ["one"]}])
    @pytest.mark.parametrize("origins", [[PAGE], ["*"], ["http://other.example", PAGE]])
    def test_a_preflight_allows_pages_of_the_origin(self, origins, keys):
        response = ask("OPTIONS", headers=PREFLIGHT, cors_origins=origins, **keys)
        assert response.status_code == 204
        found = allowed(response)
        assert found["origin"] == ("*" if origins == ["*"] else PAGE)
        assert found["headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        assert "POST" in found["methods"]
        assert response.headers.get("vary") == (None if origins == ["*"] else "Origin")

    @pytest.mark.parametrize(
        "origin", ["http://page.example", f"{PAGE}:444", "null", f"{PAGE}.evil"]
    )
    def test_other_pages_are_not_allowed(self, origin):
        headers = {**PREFLIGHT, "Origin": origin}
        assert not allowed(ask("OPTIONS", headers=headers, cors_origins=[PAGE]))
        response = ask(headers={"Origin": origin}, cors_origins=[PAGE])
        assert not allowed(response)
        assert response.headers["vary"] == "Origin"

    @pytest.mark.parametrize("keys", [{}, {"api_keys": ["one"]}])
    def test_without_origins_nothing_is_allowed(self, keys):
        response = ask("OPTIONS", headers=PREFLIGHT, **keys)
        assert response.status_code == 204
        assert set(response.headers["allow"].split(", ")) == {"POST", "OPTIONS"}
        assert not allowed(response)
        assert not allowed(ask(headers={"Origin": PAGE}))

    @pytest.mark.parametrize("stream", [False, True])
    def test_replies_can_be_read(self, stream):
        body = {**BODY, "stream": stream, "unknown": 1}
        response = ask(body=body, headers={"Origin": PAGE}, cors_origins=[PAGE])
        assert allowed(response) == {"origin": PAGE}
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-sarathi-ignored"} <= set(exposed) & set(response.headers)

    @pytest.mark.parametrize(("keys", "status"), [({"api_keys": ["one"]}, 401), ({}, 400)])
    def test_errors_can_be_read(self, keys, status):
        response = ask(body={"model": 5}, headers={"Origin": PAGE}, cors_origins=["*"], **keys)
        assert response.status_code == status
        assert allowed(response) == {"origin": "*"}

    @pytest.mark.parametrize("path", ["/scale", "/scale/"])
    @pytest.mark.parametrize("keys", [{}, {"admin_keys": ["root"]}, {"api_keys": ["one"]}])
    def test_no_page_may_change_the_server(self, keys, path):
        options = {"cors_origins": ["*"], **keys}
        response = ask("OPTIONS", path, headers=PREFLIGHT, **options)
        assert response.status_code >= 400
        assert not allowed(response)
        engine = FakeEngine()
        headers = {"Origin": PAGE, "Authorization": "Bearer one"}
        response = call(engine, "POST", path, {"replicas": 2}, headers=headers, **options)
        assert response.status_code >= 400
        assert not allowed(response)
        assert engine.scaled == []

    def test_streams_pay_one_call_per_message(self):
        sent: list[Any] = []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})
            pending = send(body)
            assert pending.__qualname__.endswith("transport")  # not wrapped in a coroutine
            await pending

        async def transport(message):
            sent.append(message)

        body = {"type": "http.response.body", "body": b"x"}
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"origin", b"x")]}
        asyncio.run(ReplyHeaders(app, frozenset("*"))(scope, None, transport))  # type: ignore[arg-type]
        assert sent[1] is body
        assert (b"access-control-allow-origin", b"*") in sent[0]["headers"]


@pytest.mark.parametrize(
    "text", ["*", "https://a.example", "http://localhost:3000", "app://obsidian"]
)
def test_origins(text):
    assert parse_origin(text) == text


def test_origins_as_they_are_copied():
    assert parse_origin(" https://A.example/ ") == "https://a.example"


@pytest.mark.parametrize("text", ["", "a.example", "https://", "https://a.example/page", "**"])
def test_what_is_no_origin(text):
    with pytest.raises(ValueError, match="no origin"):
        parse_origin(text)


class TestPaths:
    @pytest.mark.parametrize(
        "path", ["/v1/models", "/v1/models/tiny", "/health", "/version", "/metrics", "/"]
    )
    def test_head_is_get_without_a_body(self, path):
        response = ask("HEAD", path)
        assert response.status_code == 200
        assert response.headers["content-type"] == ask("GET", path).headers["content-type"]

    @pytest.mark.parametrize(
        "path",
        [CHAT + "/", "/chat/completions", "/chat/completions/", "/completions/", "/tokenize/"],
    )
    def test_paths_of_wrong_base_urls(self, path):
        body = {"prompt": "a"} if "chat" not in path else BODY
        assert ask(path=path, body=body).status_code == 200
        assert ask(path=path, body=body, api_keys=["one"]).status_code == 401

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/models", "/models/"])
    def test_models_are_a_list(self, path):
        [card] = ask("GET", path).json()["data"]
        expected = {
            "id": MODEL,
            "object": "model",
            "owned_by": "sarathi",
            "root": MODEL,
            "parent": None,
        }
        assert expected.items() <= card.items()
        assert isinstance(card["created"], int)
        assert isinstance(card["max_model_len"], int)

    @pytest.mark.parametrize(
        "path", ["/v1/models/org/name", "/v1/models/org/name/", "/models/org/name"]
    )
    def test_names_of_models_may_have_slashes(self, path):
        assert ask("GET", path, served_name="org/name").json()["id"] == "org/name"
        error(ask("GET", path), 404, "model")

    def test_the_root_says_what_this_is(self):
        assert ask("GET", "/").json()["model"] == MODEL

    @pytest.mark.parametrize("path", ["/scale/", "/v1/scale", "/v1/health"])
    def test_other_paths_have_no_variants(self, path):
        assert ask(path=path).status_code == 404

    @pytest.mark.parametrize(
        "kind",
        ["", "text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded"],
    )
    def test_any_content_type_is_read_as_json(self, kind):
        content = b'{"messages": [{"role": "user", "content": "a"}]}'
        assert ask(content=content, headers={"Content-Type": kind}).status_code == 200
