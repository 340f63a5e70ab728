"""Counting tokens here, and asking a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sarathi.bench.client.endpoint import Endpoint
from sarathi.bench.workload.token_counter import LocalTokens, ServerTokens
from sarathi.errors import BenchmarkError
from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from tests import tiny_models
from tests.bench.scripted_certificate import self_signed, server_context
from tests.bench.scripted_replies import steady
from tests.bench.scripted_server import ScriptedServer


def asking(
    answer: Callable[[httpx.Request], httpx.Response], chat: bool = False, key: str | None = None
) -> ServerTokens:
    endpoint = Endpoint.parse(
        "http://server:1/",
        model="some-model",
        api_key=key,
        api="chat" if chat else "completions",
    )
    return ServerTokens(endpoint, httpx.MockTransport(answer))


def test_local_tokens_are_those_of_the_model() -> None:
    tokenizer = open_tokenizer(locate("smollm2-135m").path)
    text = "The quick brown fox."
    assert LocalTokens("smollm2-135m", chat=False).count(text) == len(tokenizer.encode(text))


def test_local_tokens_of_a_chat_include_its_template() -> None:
    plain, chat = (LocalTokens("smollm2-135m", chat=chat) for chat in (False, True))
    around = chat.count("fox") - plain.count("fox")
    assert around > 5
    assert chat.count("fox and hare") - plain.count("fox and hare") == around


def test_a_model_that_is_not_there_is_reported() -> None:
    with pytest.raises(BenchmarkError, match=r"--tokenizer nowhere: there is no model 'nowhere'"):
        LocalTokens("nowhere", chat=False)


def test_a_model_without_chat_template_is_reported(tmp_path: Path) -> None:
    tiny_models.save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert LocalTokens(str(tmp_path), chat=False).count("a") > 0
    with pytest.raises(BenchmarkError, match="has no chat template"):
        LocalTokens(str(tmp_path), chat=True)


@pytest.mark.parametrize(
    ("chat", "asked"),
    [(False, {"prompt": "a text"}), (True, {"messages": [{"role": "user", "content": "a text"}]})],
)
def test_a_server_is_asked_as_it_will_be_for_answers(chat: bool, asked: dict[str, object]) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"count": 12, "tokens": [1] * 12, "max_model_len": 99})

    tokens = asking(answer, chat, key="secret")
    assert tokens.count("a text") == 12
    tokens.close()
    [request] = seen
    assert (request.method, str(request.url)) == ("POST", "http://server:1/tokenize")
    assert json.loads(request.content) == {"model": "some-model"} | asked
    assert request.headers["authorization"] == "Bearer secret"


def test_no_key_no_header() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"count": int("authorization" in request.headers)})

    assert asking(answer).count("x") == 0


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(steady(0, 0)) as server:
        assert ServerTokens(Endpoint.parse(server.url, model="scripted")).count("a b c") == 3


def test_certificates_are_those_that_the_client_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    with ScriptedServer(steady(0, 0), context=server_context(certificate)) as server:
        endpoint = Endpoint.parse(server.url, model="scripted")
        with pytest.raises(BenchmarkError, match="certificate"):
            ServerTokens(endpoint).count("a b c")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ServerTokens(endpoint).count("a b c") == 3


@pytest.mark.parametrize("status", [404, 405, 501])
def test_without_the_endpoint_a_tokenizer_is_asked_for(status: int) -> None:
    with pytest.raises(BenchmarkError, match=f"answers {status}.*--tokenizer PATH"):
        asking(lambda request: httpx.Response(status)).count("x")


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"tokens": []}', b'{"count": "3"}'])
def test_an_answer_without_a_count_is_reported(content: bytes) -> None:
    with pytest.raises(BenchmarkError, match="without a count"):
        asking(lambda request: httpx.Response(200, content=content)).count("x")


def test_the_message_of_the_server_is_shown_in_short() -> None:
    with pytest.raises(BenchmarkError) as error:
        asking(lambda request: httpx.Response(401, text="no key\n" + "x" * 1000)).count("x")
    assert "answers 401: no key x" in str(error.value)
    assert len(str(error.value)) < 300


def test_a_server_that_is_not_there_is_reported() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(BenchmarkError, match="tokenize cannot be reached: connection refused"):
        asking(refuse).count("x")
