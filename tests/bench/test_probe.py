from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from sarathi.bench.client.endpoint import Dialect, Endpoint
from sarathi.bench.client.server_probe import DIALECTS, ServerFacts, probe
from sarathi.errors import BenchmarkError
from tests.bench.scripted_replies import Reply, Tokens, error_body, in_turn, steady
from tests.bench.scripted_server import ScriptedServer

ANSWER = steady(0.0, 0.0)


def look(
    server: ScriptedServer,
    *,
    ready_timeout: float = 0.0,
    timeout: float = 2.0,
    ignore_eos: bool = True,
    **endpoint: Any,
) -> ServerFacts:
    return probe(
        Endpoint.parse(server.url, **endpoint),
        ready_timeout=ready_timeout,
        timeout=timeout,
        ignore_eos=ignore_eos,
    )


def problem(server: ScriptedServer, **options: Any) -> str:
    with server, pytest.raises(BenchmarkError) as caught:
        look(server, **options)
    return str(caught.value)


@pytest.mark.parametrize("model", [None, "scripted"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_server_is_known_after_one_small_request(model: str | None, api: str) -> None:
    with ScriptedServer(ANSWER, max_model_len=512) as server:
        facts = look(server, model=model, api=api)
        (request,) = server.requests
    assert facts == ServerFacts("scripted", 512, Dialect(), tells_delay=False)
    assert request.body["model"] == "scripted"
    assert request.tokens == 8


def test_a_limit_that_is_not_reported_is_none() -> None:
    with ScriptedServer(ANSWER, max_model_len=None) as server:
        assert look(server).max_model_len is None


def test_a_server_that_reports_its_delay_is_recognised() -> None:
    with ScriptedServer(steady(0, 0, headers={"server-timing": "queue;dur=0.1"})) as server:
        assert look(server).tells_delay


@pytest.mark.parametrize(
    ("refuses", "dialect"),
    [
        (["continuous_usage_stats"], Dialect(continuous_usage=False)),
        (["ignore_eos"], Dialect(ignore_eos=False)),
        (["stream_options"], Dialect(usage=False, continuous_usage=False)),
        (
            ["ignore_eos", "continuous_usage_stats"],
            Dialect(ignore_eos=False, continuous_usage=False),
        ),
        (["ignore_eos", "stream_options"], DIALECTS[-1]),
    ],
)
def test_fields_that_are_refused_are_left_out_and_no_others(
    refuses: list[str], dialect: Dialect
) -> None:
    with ScriptedServer(ANSWER, refuses=refuses) as server:
        assert look(server).dialect == dialect


def test_a_server_that_accepts_a_field_but_ignores_it_is_recognised() -> None:
    ends_early = Reply([Tokens(0.0), Tokens(0.0)])
    with ScriptedServer(in_turn(ends_early)) as server:
        assert look(server).dialect == Dialect(ignore_eos=False)


@pytest.mark.parametrize(
    ("refuses", "dialect"),
    [
        ([], Dialect(ignore_eos=False)),
        (["continuous_usage_stats"], Dialect(ignore_eos=False, continuous_usage=False)),
        (["stream_options"], DIALECTS[-1]),
    ],
)
def test_answers_may_end_where_the_model_ends_them(refuses: list[str], dialect: Dialect) -> None:
    with ScriptedServer(ANSWER, refuses=refuses) as server:
        assert look(server, ignore_eos=False).dialect == dialect
        assert not any("ignore_eos" in request.body for request in server.requests)


def test_a_server_that_refuses_everything_is_quoted() -> None:
    message = problem(ScriptedServer(ANSWER, refuses=["max_tokens"]))
    assert "refuses even a plain request" in message
    assert "max_tokens" in message


def test_a_missing_server_is_reported_with_its_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BenchmarkError, match=f"there is no server at {url}"):
            probe(Endpoint.parse(url))


class OtherServer(BaseHTTPRequestHandler):
    """Speaks HTTP, but has no models."""

    def do_GET(self) -> None:
        answers: dict[str, bytes] = {"/json/v1/models": b'{"models": []}', "/text/v1/models": b"hi"}
        body = answers.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("path", "reason"), [("/", "status 404"), ("/json", "data"), ("/text", "JSON")]
)
def test_a_server_of_something_else_is_reported(path: str, reason: str) -> None:
    with HTTPServer(("127.0.0.1", 0), OtherServer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        with pytest.raises(BenchmarkError, match=f"not an OpenAI-compatible server.*{reason}"):
            probe(Endpoint.parse(url))
        thread.join()


def test_an_unknown_model_is_reported_with_those_that_are_served() -> None:
    assert "no model 'gpt', only scripted" in problem(ScriptedServer(ANSWER), model="gpt")


@pytest.mark.parametrize(("key", "words"), [(None, "is missing"), ("wrong", "is not accepted")])
def test_a_key_is_asked_for(key: str | None, words: str) -> None:
    message = problem(ScriptedServer(ANSWER, api_key="right"), api_key=key)
    assert words in message
    assert "--api-key" in message


def test_the_right_key_opens() -> None:
    with ScriptedServer(ANSWER, api_key="right") as server:
        assert look(server, api_key="right").model == "scripted"


def test_a_server_that_is_loading_is_waited_for() -> None:
    with ScriptedServer(ANSWER, loading=0.3) as server:
        assert look(server, ready_timeout=3).model == "scripted"


def test_waiting_ends() -> None:
    began = time.perf_counter()
    message = problem(ScriptedServer(ANSWER, loading=60), ready_timeout=0.6)
    assert time.perf_counter() - began < 1.5
    assert "not ready after 0.6 s" in message
    assert "still loading" in message


def test_a_model_that_loads_behind_its_list_is_waited_for_too() -> None:
    busy = Reply(status=503, body=error_body("The model is still loading."))
    with ScriptedServer(in_turn(busy, ANSWER)) as server:
        assert look(server, ready_timeout=3).model == "scripted"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(status=500, body=error_body("out of memory")), "status 500: out of memory"),
        (Reply(ending="hung"), "timeout"),
        (Reply(instead=b"\x00"), "malformed"),
        (Reply(ending="dropped"), "dropped"),
    ],
)
def test_a_server_that_gives_no_stream_cannot_be_measured(reply: Reply, words: str) -> None:
    assert words in problem(ScriptedServer(in_turn(reply)), timeout=0.2)
