"""Ollama's /api/chat, /api/generate, /api/show, /api/tags and /api/version."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given

from sarathi import __version__
from sarathi.engine.output_processor import Delta
from sarathi.server.generation_core import Choices
from sarathi.server.ollama.ollama_api import OllamaTranslator
from tests.model_info import model_info
from tests.server.fake_engine import LIMIT, MODEL, VOCAB, FakeEngine, call
from tests.server.parsed_outputs import USAGE, parsed_outputs, split_outputs

__all__ = ["split_outputs"]  # a fixture

USER = {"role": "user", "content": "hi"}
TIMES = ("created_at", "total_duration", "prompt_eval_duration", "eval_duration")


def ask(engine: FakeEngine, path: str = "chat", **fields: Any):
    given = {"messages": [USER]} if path == "chat" else {"prompt": "hi"}
    return call(engine, "POST", f"/api/{path}", {"model": MODEL, **given, **fields})


def lines(response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return read_lines(response.text)


def read_lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    return found


def reassembled(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """The reply that a client puts together from lines."""
    whole = dict(replies[-1])
    if "message" in whole:
        parts = [reply["message"] for reply in replies]
        content = "".join(part["content"] for part in parts)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls := [call for part in parts for call in part.get("tool_calls", ())]:
            message["tool_calls"] = calls
        whole["message"] = message
    else:
        parts, message = replies, whole
        whole["response"] = "".join(part["response"] for part in parts)
    if thinking := "".join(part.get("thinking", "") for part in parts):
        message["thinking"] = thinking
    return whole


def without_times(reply: dict[str, Any]) -> dict[str, Any]:
    assert all(reply[name] for name in TIMES if name != "prompt_eval_duration")
    return {name: value for name, value in reply.items() if name not in TIMES}


def refusal(response, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    return body["error"]


@pytest.mark.parametrize("is_chat", [False, True])
@given(deltas=parsed_outputs())
def test_a_stream_reassembles_to_the_whole_reply(is_chat: bool, deltas: list[Delta]) -> None:
    def translator() -> OllamaTranslator:
        return OllamaTranslator(cast("Any", SimpleNamespace(model=MODEL)), is_chat=is_chat)

    streaming, choices = translator(), cast("Choices", SimpleNamespace(usage=USAGE))
    sent = b"".join(streaming.events(0, delta, choices) for delta in deltas)
    replies = read_lines((sent + streaming.end(USAGE)).decode())
    whole = cast("dict[str, Any]", translator().body([deltas], USAGE))
    assert without_times(reassembled(replies)) == without_times(whole)


def test_a_chat_streams_unless_told_otherwise() -> None:
    replies = lines(ask(FakeEngine("Hé")))
    assert [reply["message"]["content"] for reply in replies] == ["H", "é", ""]
    assert without_times(replies[-1]) == {
        "model": MODEL,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": len("user:hi|>"),
        "eval_count": 4,
    }
    whole = ask(FakeEngine("Hé"), stream=False).json()
    assert without_times(whole) == without_times(reassembled(replies))


def test_the_stream_of_an_empty_output_has_its_last_line() -> None:
    response = ask(FakeEngine(""))
    [reply] = lines(response)
    assert (reply["message"]["content"], reply["done_reason"]) == ("", "stop")
    assert response.headers["server-timing"].startswith("queue;dur=")


def test_a_prompt_is_a_message_of_the_user() -> None:
    engine = FakeEngine("Hello")
    replies = lines(ask(engine, "generate", system="be brief"))
    assert reassembled(replies)["response"] == "Hello"
    [generation] = engine.generations
    assert bytes(generation.prompt) == b"system:be brief|user:hi|>"
    assert ask(FakeEngine("Hello"), "generate", stream=False).json()["response"] == "Hello"


@pytest.mark.parametrize(
    ("path", "fields"), [("chat", {"messages": []}), ("generate", {"prompt": ""})]
)
def test_a_request_without_a_prompt_loads_the_model(path: str, fields: dict[str, Any]) -> None:
    engine = FakeEngine()
    reply = ask(engine, path, keep_alive="5m", **fields).json()
    assert (reply["done"], reply["done_reason"]) == (True, "load")
    assert engine.generations == []


def test_options_reach_the_engine() -> None:
    engine = FakeEngine()
    options = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 7}
    others = {"num_predict": 4, "stop": ["x"], "repeat_penalty": 1.5, "num_ctx": 2048}
    response = ask(engine, options={**options, **others})
    assert response.headers["x-sarathi-ignored"] == "options.num_ctx"
    assert {name: getattr(engine.params, name) for name in options} == options
    params = engine.params
    assert (params.max_tokens, params.stop, params.repetition_penalty) == (4, ("x",), 1.5)
    engine = FakeEngine()
    ask(engine, options={"num_predict": -1})
    assert engine.params.max_tokens == LIMIT - len("user:hi|>")
    assert refusal(ask(FakeEngine(), options={"num_predict": 0}), 400).startswith("num_predict")
    assert refusal(ask(FakeEngine(), options={"repeat_penalty": -1}), 400).startswith("repeat_")


def test_a_conversation_with_tools() -> None:
    engine = FakeEngine(info=model_info(max_model_len=2000, vocab_size=VOCAB))
    called = [{"function": {"name": "add", "arguments": {"a": 1}}}]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": called},
        {"role": "tool", "content": "1", "tool_name": "add"},
    ]
    response = ask(engine, messages=messages, tools=[tool], think=True)
    lines(response)
    assert "x-sarathi-ignored" not in response.headers
    [generation] = engine.generations
    assert b"1" in bytes(generation.prompt)


@pytest.mark.usefixtures("split_outputs")
@pytest.mark.parametrize("stream", [False, True])
def test_thinking_text_and_calls_are_a_message(stream: bool) -> None:
    response = ask(FakeEngine('hm|Hello!{"a": 1}'), stream=stream)
    reply = reassembled(lines(response)) if stream else response.json()
    assert reply["message"] == {
        "role": "assistant",
        "content": "Hello",
        "thinking": "hm",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
    }


@pytest.mark.parametrize("form", ["json", {"type": "object"}])
def test_structured_text_has_a_grammar(form: Any) -> None:
    engine = FakeEngine("{}")
    lines(ask(engine, format=form))
    assert engine.params.grammar is not None
    engine = FakeEngine()
    lines(ask(engine, format=""))
    assert engine.params.grammar is None


def test_errors_have_ollamas_form() -> None:
    assert "does not exist" in refusal(ask(FakeEngine(), model="other"), 404)
    assert "images" in refusal(ask(FakeEngine(), messages=[USER | {"images": ["aGk="]}]), 400)
    assert "raw" in refusal(ask(FakeEngine(), "generate", raw=True), 400)
    assert "/api/pull" in refusal(call(FakeEngine(), "POST", "/api/pull", {}), 404)
    engine = FakeEngine(script=lambda prompt, params: [[72]])
    engine.on_silence = "the engine has died"
    *_, last = ask(engine).text.splitlines()
    assert json.loads(last).keys() == {"error"}


def test_what_clients_ask_about_the_model() -> None:
    [model] = call(FakeEngine(), "GET", "/api/tags").json()["models"]
    assert model["name"] == model["model"] == MODEL
    assert call(FakeEngine(), "GET", "/api/version").json() == {"version": __version__}
    shown = call(FakeEngine(), "POST", "/api/show", {"model": MODEL}).json()
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == LIMIT
