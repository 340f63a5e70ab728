from __future__ import annotations

import pytest

from tests.server.fake_engine import (
    LIMIT,
    MODEL,
    ByteTokenizer,
    FakeEngine,
    call,
    chat,
    error,
    events,
)

USER = {"role": "user", "content": "hi"}


def prompt_text(engine: FakeEngine) -> str:
    (generation,) = engine.generations
    return bytes(generation.prompt).decode()


def test_a_reply_has_a_message_usage_and_a_finish_reason():
    reply = chat(FakeEngine("Hello")).json()
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == MODEL
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello"
    assert choice["finish_reason"] == "stop"
    prompt = len("user:hi|>")
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 6,
        "total_tokens": prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_the_rest_of_the_models_length_is_the_default_limit():
    engine = FakeEngine()
    chat(engine)
    assert engine.params.max_tokens == LIMIT - len("user:hi|>")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit(field):
    reply = chat(FakeEngine("Hello"), **{field: 2}).json()
    assert reply["choices"][0]["message"]["content"] == "He"
    assert reply["choices"][0]["finish_reason"] == "length"


def test_of_different_limits_under_both_names_the_newer_name_counts():
    engine = FakeEngine()
    chat(engine, max_tokens=2, max_completion_tokens=3)
    assert engine.params.max_tokens == 3


def test_roles_that_the_template_does_not_know_become_others():
    engine = FakeEngine()
    roles = ["system", "developer", "user", "assistant", "tool"]
    chat(engine, [{"role": role, "content": role[0]} for role in roles])
    result = "user:<tool_response>\nt\n</tool_response>|"
    assert prompt_text(engine) == f"system:s|system:d|user:u|assistant:a|{result}>"


def test_text_parts_are_joined_by_line_breaks():
    engine = FakeEngine()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat(engine, [{"role": "user", "content": parts}])
    assert prompt_text(engine) == "user:one\ntwo|>"


def test_generation_prompt_and_template_arguments():
    engine = FakeEngine()
    chat(engine, add_generation_prompt=False, chat_template_kwargs={"suffix": "/think"})
    assert prompt_text(engine) == "user:hi|/think"


def test_the_templates_refusal_is_the_answer():
    message = error(chat(FakeEngine(), [{"role": "assistant", "content": "x"}]), 400, "messages")
    assert "the user speaks first" in message["message"]


def test_a_model_without_a_template_points_to_completions():
    class Bare(ByteTokenizer):
        def __init__(self):
            self.chat_template = None

    body = {"model": MODEL, "messages": [USER]}
    response = call(FakeEngine(), "POST", "/v1/chat/completions", body, tokenizer=Bare())
    assert "/v1/completions" in error(response, 400, "messages")["message"]


def test_the_first_chunk_of_a_stream_carries_the_role():
    first, *rest = events(chat(FakeEngine("Hé"), stream=True))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [reply["choices"][0]["delta"] for reply in rest] == [
        {"content": "H"},
        {"content": "é"},
        {},
    ]
    assert [reply["choices"][0]["finish_reason"] for reply in rest] == [None, None, "stop"]


def test_each_choice_of_a_stream_has_its_own_role_and_end():
    replies = events(chat(FakeEngine("Hi"), stream=True, n=3))
    for index in range(3):
        own = [c for reply in replies for c in reply["choices"] if c["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == "Hi"
        assert [c["finish_reason"] for c in own].count("stop") == 1


def test_a_stream_ends_with_the_usage_if_asked_for():
    *replies, last = events(
        chat(FakeEngine("Hi"), stream=True, stream_options={"include_usage": True})
    )
    assert all(reply["usage"] is None for reply in replies)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_tokens_bytes_and_alternatives(stream):
    response = chat(FakeEngine("Hé"), logprobs=True, top_logprobs=2, stream=stream)
    replies = events(response)[1:] if stream else [response.json()]
    content = [at for r in replies for at in r["choices"][0]["logprobs"]["content"]]
    assert [at["token"] for at in content] == ["H", "bytes:\\xc3", "bytes:\\xa9", "<256>"]
    assert content[1]["bytes"] == [0xC3]
    assert content[0]["logprob"] == -0.5
    assert content[0]["top_logprobs"] == [
        {"token": "H", "logprob": -0.5, "bytes": [72]},
        {"token": "A", "logprob": -9999.0, "bytes": [65]},
    ]


def test_logprobs_false_gives_none():
    assert chat(FakeEngine(), logprobs=False).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("fields", [{"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 21}])
def test_top_logprobs_without_logprobs_or_out_of_range(fields):
    error(chat(FakeEngine(), **fields), 400, "top_logprobs")


def test_null_means_absent_for_every_field():
    from sarathi.server.openai.chat_completions import ChatRequest

    nulls = {name: None for name in ChatRequest.__struct_fields__ if name != "messages"}
    reply = chat(FakeEngine("Hi"), **{**nulls, "model": None})
    assert reply.json()["choices"][0]["message"]["content"] == "Hi"


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "someone"},
        {"metadata": {"team": "a"}},
        {"safety_identifier": "x"},
        {"prompt_cache_key": "x"},
        {"parallel_tool_calls": True},
        {"store": False},
        {"store": True},
        {"service_tier": "flex"},
        {"verbosity": "low"},
        {"function_call": "auto"},
        {"prediction": {"type": "content", "content": "x"}},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"tools": []},
        {"tool_choice": "none"},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_values_without_an_effect_are_accepted(fields):
    assert chat(FakeEngine(), **fields).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("allowed_token_ids", [1]),
        ("continue_final_message", True),
        ("documents", [{"text": "x"}]),
    ],
)
def test_fields_that_would_change_the_output_are_refused_by_name(field, value):
    answer = error(chat(FakeEngine(), **{field: value}), 400, field)
    assert answer["message"].startswith(f"{field} is not supported")
    assert answer["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([1], "messages[0]"),
        ([USER, {"role": "king", "content": "x"}], "messages[1].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0].function"),
    ],
)
def test_wrong_messages_are_refused_with_their_path(messages, param):
    error(chat(FakeEngine(), messages), 400, param)


def test_template_arguments_may_not_replace_the_messages():
    response = chat(FakeEngine(), chat_template_kwargs={"messages": []})
    error(response, 400, "chat_template_kwargs")
