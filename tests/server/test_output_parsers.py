"""Output parsers between generated text and the replies, with the format `<think>...</think>`."""

from __future__ import annotations

from typing import Any

import pytest

from sarathi.server import conversation
from sarathi.server.parsers.format_detection import OutputFormats
from sarathi.server.parsers.reasoning_parser import REASONING_FORMATS, ReasoningParser
from tests.server.fake_engine import MODEL, FakeEngine, call, events

OUTPUT = "<think>hm, no</think>Hello"
MESSAGES = [{"role": "user", "content": "hi"}]
FORMATS = OutputFormats(reasoning=REASONING_FORMATS["qwen3"])


def chat(engine: FakeEngine, **fields: object):
    body = {"model": MODEL, "messages": MESSAGES, **fields}
    return call(engine, "POST", "/v1/chat/completions", body, formats=FORMATS)


def test_a_whole_message_has_content_and_reasoning() -> None:
    reply = chat(FakeEngine(OUTPUT)).json()
    [choice] = reply["choices"]
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["reasoning_content"] == "hm, no"
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == len(OUTPUT) + 1


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_has_a_parser_for_each_choice(n: int) -> None:
    replies = events(chat(FakeEngine(OUTPUT), stream=True, n=n))
    for index in range(n):
        choices = [c for reply in replies for c in reply["choices"] if c["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "Hello"
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm, no"
        assert [choice["finish_reason"] for choice in choices][-1] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_parser_keeps_back_comes_at_the_end(stream: bool) -> None:
    response = chat(FakeEngine("<think>hm</thi"), stream=stream)
    replies = events(response) if stream else [response.json()]
    messages = [c["delta" if stream else "message"] for r in replies for c in r["choices"]]
    assert "".join(one.get("reasoning_content") or "" for one in messages) == "hm</thi"
    assert not any(one.get("content") for one in messages)


@pytest.mark.parametrize("stream", [False, True])
def test_no_logprobs_are_lost_where_text_is_kept_back(stream: bool) -> None:
    response = chat(FakeEngine(OUTPUT), stream=stream, logprobs=True)
    replies = events(response) if stream else [response.json()]
    logprobs = [c["logprobs"] for r in replies for c in r["choices"] if c["logprobs"]]
    tokens = [at["token"] for one in logprobs for at in one["content"]]
    assert "".join(tokens) == OUTPUT + "<256>"


def test_completions_are_not_parsed() -> None:
    body = {"prompt": "p", "max_tokens": 50}
    engine = FakeEngine(OUTPUT)
    reply = call(engine, "POST", "/v1/completions", body, formats=FORMATS).json()
    assert reply["choices"][0]["text"] == OUTPUT


def test_without_a_parser_all_text_is_content() -> None:
    body = {"model": MODEL, "messages": MESSAGES}
    reply = call(FakeEngine(OUTPUT), "POST", "/v1/chat/completions", body).json()
    message = reply["choices"][0]["message"]
    assert message["content"] == OUTPUT
    assert "reasoning_content" not in message


@pytest.mark.parametrize("n", [1, 3])
def test_a_parser_that_fails_leaves_nothing_running(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ReasoningParser] = []

    def fail_at_last(*args: Any) -> ReasoningParser:
        made.append(ReasoningParser(*args))
        if len(made) == n:
            raise RuntimeError("a bug")
        return made[-1]

    monkeypatch.setattr(conversation, "ReasoningParser", fail_at_last)
    engine = FakeEngine(OUTPUT)
    assert chat(engine, n=n).status_code == 500
    assert all(generation.cancelled for generation in engine.generations)


def test_reasoning_tokens_are_counted() -> None:
    usage = chat(FakeEngine(OUTPUT)).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("hm, no</think>")}


def test_reasoning_that_the_prompt_has_begun_needs_no_marker() -> None:
    kwargs = {"suffix": "<think>\n"}
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "chat_template_kwargs": kwargs, "add_generation_prompt": False}
    engine = FakeEngine("hm, no\n</think>\n\nHello")
    reply = call(engine, "POST", "/v1/chat/completions", body, formats=FORMATS).json()
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm, no", "Hello")
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 15}


def test_a_prompt_that_has_ended_the_reasoning_leaves_the_output_as_it_is() -> None:
    kwargs = {"suffix": "<think>\n\n</think>\n\n"}
    body = {"messages": MESSAGES, "chat_template_kwargs": kwargs, "add_generation_prompt": False}
    engine = FakeEngine("a <think>b")
    reply = call(engine, "POST", "/v1/chat/completions", body, formats=FORMATS).json()
    assert reply["choices"][0]["message"]["content"] == "a <think>b"
