"""POST /v1/messages and POST /v1/messages/count_tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given

from sarathi.engine.output_processor import Delta
from sarathi.fleet.engine_client import EngineError
from sarathi.server.anthropic.messages_api import MessagesTranslator
from sarathi.server.anthropic.messages_request import MessagesRequest, read_messages
from sarathi.server.parsers.output_parser import ParsedDelta, ToolCallDelta
from sarathi.server.request_body import decode
from sarathi.server.responses import ApiError
from tests.server.fake_engine import LIMIT, MODEL, ByteTokenizer, FakeEngine, TaggedTemplate, call
from tests.server.parsed_outputs import USAGE, parsed_outputs, read_events, split_outputs, stream_of

__all__ = ["split_outputs"]  # a fixture

USER = {"role": "user", "content": "hi"}
ADD = {
    "name": "add",
    "description": "Add numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


def message(engine: FakeEngine, messages: Any = None, **fields: Any):
    names = ("api_keys", "headers", "max_body", "strict")
    options = {name: fields.pop(name) for name in names if name in fields}
    path = fields.pop("path", "")  # after that of messages
    body = {"model": MODEL, "max_tokens": 50, "messages": messages or [USER], **fields}
    return call(engine, "POST", f"/v1/messages{path}", body, **options)


def whole(response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    reply = response.json()
    assert (reply["type"], reply["role"]) == ("message", "assistant")
    assert reply["id"].startswith("msg_")
    return reply


def reassembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together from the events, checking their order."""
    first, *blocks, last, stop = events
    assert (first["type"], last["type"], stop["type"]) == (
        "message_start",
        "message_delta",
        "message_stop",
    )
    reply = first["message"]
    assert reply["content"] == []
    assert reply["stop_reason"] is None
    begun = ended = 0
    inputs: dict[int, str] = {}
    for event in blocks:
        if event["type"] == "content_block_start":
            assert event["index"] == begun == ended
            begun += 1
            reply["content"].append(event["content_block"])
            continue
        assert event["index"] == begun - 1 == ended
        block = reply["content"][-1]
        if event["type"] == "content_block_stop":
            ended += 1
            if block["type"] == "tool_use":
                assert block["input"] == {}
                block["input"] = json.loads(inputs[event["index"]])
            continue
        assert event["type"] == "content_block_delta"
        delta = event["delta"]
        if delta["type"] == "input_json_delta":
            assert block["type"] == "tool_use"
            inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
        else:
            name = {"text_delta": "text", "thinking_delta": "thinking"}.get(
                delta["type"], "signature"
            )
            block[name] += delta[name]
    assert begun == ended
    return reply | last["delta"] | {"usage": last["usage"]}


def translator() -> MessagesTranslator:
    return MessagesTranslator(cast("Any", SimpleNamespace(model=MODEL)))


def conversation(**fields: Any):
    body = json.dumps({"messages": [USER], **fields}).encode()
    request, _ = decode(body, MessagesRequest, strict=False)
    return read_messages(request)


def refusal(**fields: Any) -> str:
    with pytest.raises(ApiError) as caught:
        conversation(**fields)
    assert caught.value.status == 400
    return str(caught.value)


def error(response, status: int, kind: str) -> str:
    """The message of an error in Anthropic's form, after checking that it is one."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["error"]["type"] == kind
    return body["error"]["message"]


@given(parsed_outputs())
def test_a_stream_reassembles_to_the_whole_message(deltas: list[Delta]) -> None:
    events = stream_of(translator(), deltas)
    body = cast("dict[str, Any]", translator().body([deltas], USAGE))
    assert reassembled(events) | {"id": ""} == body | {"id": ""}


@given(parsed_outputs())
def test_the_text_of_an_output_is_in_its_blocks(deltas: list[Delta]) -> None:
    body = cast("dict[str, Any]", translator().body([deltas], USAGE))
    texts = [block["text"] for block in body["content"] if block["type"] == "text"]
    assert "".join(texts) == "".join(delta.text for delta in deltas)


def test_a_message_has_text_usage_and_a_stop_reason() -> None:
    reply = whole(message(FakeEngine("Hello", cached=lambda prompt: 2)))
    assert reply["content"] == [{"type": "text", "text": "Hello", "citations": None}]
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("end_turn", None)
    assert reply["usage"] == {
        "input_tokens": len("user:hi|>") - 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 6,
    }


def test_a_stream_has_anthropics_events_in_their_order() -> None:
    events = read_events(message(FakeEngine("Hé"), stream=True).text)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    reply = reassembled(events)
    assert reply["content"][0]["text"] == "Hé"
    assert reply["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "reason", "sequence"),
    [
        ({}, "Hello, world", "end_turn", None),
        ({"max_tokens": 2}, "He", "max_tokens", None),
        ({"stop_sequences": ["xx", "lo", ","]}, "Hel", "stop_sequence", "lo"),
        ({"stop_sequences": [""]}, "Hello, world", "end_turn", None),
    ],
)
def test_stop_reasons(
    stream: bool, fields: dict[str, Any], text: str, reason: str, sequence: str | None
) -> None:
    response = message(FakeEngine(), stream=stream, **fields)
    reply = reassembled(read_events(response.text)) if stream else whole(response)
    assert reply["content"][0]["text"] == text
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)


@pytest.mark.usefixtures("split_outputs")
@pytest.mark.parametrize("stream", [False, True])
def test_thinking_text_and_calls_are_blocks(stream: bool) -> None:
    response = message(FakeEngine('hm|Hello!{"a": 1}'), stream=stream)
    reply = reassembled(read_events(response.text)) if stream else whole(response)
    assert reply["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Hello", "citations": None},
        {"type": "tool_use", "id": "call_0", "name": "add", "input": {"a": 1}},
    ]
    assert reply["stop_reason"] == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
def test_an_output_without_text_is_an_empty_text(stream: bool) -> None:
    response = message(FakeEngine(""), stream=stream)
    reply = reassembled(read_events(response.text)) if stream else whole(response)
    assert [block["text"] for block in reply["content"]] == [""]


def test_arguments_that_the_limit_has_cut_are_empty_in_a_whole_message() -> None:
    cut = ParsedDelta("", [1], [], [], "length", tool_calls=(ToolCallDelta(0, "c", "add", '{"a'),))
    body = cast("dict[str, Any]", translator().body([[cut]], USAGE))
    assert body["content"] == [{"type": "tool_use", "id": "c", "name": "add", "input": {}}]
    assert body["stop_reason"] == "max_tokens"


def test_a_stream_that_fails_ends_with_an_error() -> None:
    engine = FakeEngine(script=lambda prompt, params: [[72]])
    engine.on_silence = "the engine has died"
    last = read_events(message(engine, stream=True).text)[-1]
    assert last["type"] == "error"
    assert last["error"].keys() == {"type", "message"}


def test_sampling_and_scheduling_fields_reach_the_engine() -> None:
    engine = FakeEngine()
    fields = {"temperature": 0.5, "top_p": 0.25, "top_k": 5, "max_tokens": 9}
    whole(message(engine, metadata={"user_id": "x" * 300}, **fields))
    for name, value in fields.items():
        assert getattr(engine.params, name) == value
    assert engine.scheduling.tenant == "x" * 300


def test_max_tokens_may_be_absent() -> None:
    whole(message(FakeEngine(), max_tokens=None))


@pytest.mark.parametrize("strict", [False, True])
def test_what_has_no_effect_is_accepted(strict: bool) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    response = message(
        FakeEngine(),
        [{"role": "user", "content": [{"type": "text", "text": "hi", "citations": None, **mark}]}],
        strict=strict,
        headers={"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2024-04-04"},
        service_tier="auto",
        metadata={"user_id": None},
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[ADD | mark],
        tool_choice={"type": "none"},
        mcp_servers=[],
        **mark,
    )
    whole(response)
    assert "x-sarathi-ignored" not in response.headers


def test_unknown_fields_are_ignored_and_named() -> None:
    response = message(FakeEngine(), context_management={"edits": []})
    whole(response)
    assert response.headers["x-sarathi-ignored"] == "context_management"
    refused = message(FakeEngine(), context_management={"edits": []}, strict=True)
    error(refused, 400, "invalid_request_error")


def test_a_limit_beyond_the_models_length_is_cut() -> None:
    engine = FakeEngine()
    whole(message(engine, max_tokens=32_000))
    assert engine.params.max_tokens == LIMIT - len("user:hi|>")
    refused = message(FakeEngine(), max_tokens=32_000, strict=True)
    error(refused, 400, "invalid_request_error")


def test_tokens_are_counted_as_a_message_counts_them() -> None:
    fields = {"system": "be brief", "max_tokens": 5}
    used = whole(message(FakeEngine(), **fields))["usage"]["input_tokens"]
    counted = message(FakeEngine(), path="/count_tokens", **fields)
    assert counted.json() == {"input_tokens": used}


class TestErrors:
    def test_a_wrong_request(self) -> None:
        text = error(message(FakeEngine(), temperature=-1), 400, "invalid_request_error")
        assert text.startswith("temperature")

    def test_no_json(self) -> None:
        response = call(FakeEngine(), "POST", "/v1/messages", content=b"{")
        error(response, 400, "invalid_request_error")

    def test_an_unknown_model_or_path(self) -> None:
        error(message(FakeEngine(), model="other"), 404, "not_found_error")
        error(message(FakeEngine(), path="/batches"), 404, "not_found_error")
        without_version = call(FakeEngine(), "POST", "/messages", {"messages": [], "model": "x"})
        error(without_version, 404, "not_found_error")

    def test_keys(self) -> None:
        error(message(FakeEngine(), api_keys=["one"]), 401, "authentication_error")
        wrong = message(FakeEngine(), api_keys=["one"], headers={"x-api-key": "two"})
        error(wrong, 401, "authentication_error")
        whole(message(FakeEngine(), api_keys=["one"], headers={"x-api-key": "one"}))

    def test_a_body_that_is_too_large(self) -> None:
        error(message(FakeEngine(), max_body=10), 413, "request_too_large")

    def test_a_server_that_loads_or_has_failed(self) -> None:
        error(message(FakeEngine(info=None)), 503, "overloaded_error")
        engine = FakeEngine()
        engine.lost = EngineError("the request is cursed")
        error(message(engine, stream=True), 400, "invalid_request_error")


class TestMessages:
    def test_the_system_text_comes_first(self) -> None:
        blocks = [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
        for system in ("be\nbrief", blocks):
            first, user = conversation(system=system).turns
            assert (first.role, first.content) == ("system", "be\nbrief")
            assert (user.role, user.content) == ("user", "hi")

    def test_tool_use_and_results(self) -> None:
        mark = {"cache_control": {"type": "ephemeral"}}
        messages = [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "let me see", "citations": None},
                    {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}, **mark},
                    {"type": "tool_use", "id": "c2", "name": "add", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "1", **mark},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "content": [{"type": "text", "text": "bad"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "and?"},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c3"}]},
        ]
        _, assistant, *rest = conversation(messages=messages).turns
        assert (assistant.role, assistant.content) == ("assistant", "let me see")
        assert assistant.reasoning == "hm"
        assert [(c.id, c.name, json.loads(c.arguments)) for c in assistant.tool_calls] == [
            ("c1", "add", {"a": 1}),
            ("c2", "add", {}),
        ]
        assert [(t.role, t.tool_call_id, t.content) for t in rest] == [
            ("tool", "c1", "1"),
            ("tool", "c2", "bad"),
            ("user", None, "and?"),
            ("tool", "c3", ""),
        ]

    def test_a_message_can_be_sent_back(self) -> None:
        reply = whole(message(FakeEngine("Hello")))
        answer = {"role": reply["role"], "content": reply["content"]}
        engine = FakeEngine()
        whole(message(engine, [USER, answer, USER]))
        [generation] = engine.generations
        assert bytes(generation.prompt) == b"user:hi|assistant:Hello|user:hi|>"

    def test_a_last_message_of_the_assistant_is_continued(self) -> None:
        engine = FakeEngine("b")
        reply = whole(message(engine, [USER, {"role": "assistant", "content": "user a "}]))
        assert reply["content"][0]["text"] == "b"
        [generation] = engine.generations
        assert bytes(generation.prompt) == b"user:hi|assistant:user a"
        empty: Any
        for empty in ("", " ", []):
            assert not conversation(
                messages=[USER, {"role": "assistant", "content": empty}]
            ).continues_answer

    def test_an_answer_that_the_template_does_not_show_cannot_be_continued(self) -> None:
        class Silent(TaggedTemplate):
            def render_within(self, *args: Any, **extra: Any) -> str:
                return "hi"

        body = {"messages": [USER, {"role": "assistant", "content": "x"}]}
        tokenizer = ByteTokenizer(Silent())
        response = call(FakeEngine(), "POST", "/v1/messages", body, tokenizer=tokenizer)
        assert "continued" in error(response, 400, "invalid_request_error")

    @pytest.mark.parametrize(
        ("block", "field"),
        [
            ({"type": "image", "source": {}}, "type"),
            ({"type": "document", "source": {}}, "type"),
            ({"type": "server_tool_use", "id": "x"}, "type"),
            ({"type": "text"}, "text"),
            ({"type": "tool_use", "name": "add"}, "id"),
            ({"type": "tool_use", "id": "c"}, "name"),
            ({"type": "tool_result", "content": "x"}, "tool_use_id"),
            ({"type": "tool_result", "tool_use_id": "c", "content": 1}, "content"),
            (
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]},
                "content[0].type",
            ),
        ],
    )
    def test_blocks_that_are_refused(self, block: dict[str, Any], field: str) -> None:
        path = f"messages[1].content[0].{field}"
        assert refusal(messages=[USER, {"role": "user", "content": [block]}]).startswith(path)

    def test_thinking_reaches_the_template(self) -> None:
        for thinking, expected in [
            (None, False),
            ({"type": "disabled"}, False),
            ({"type": "adaptive"}, True),
            ({"type": "enabled", "budget_tokens": 2000}, True),
        ]:
            found = conversation(thinking=thinking).template_arguments
            assert found == {"enable_thinking": expected, "thinking": expected}

    @pytest.mark.parametrize("field", ["output_format", "output_config"])
    def test_structured_text_has_a_grammar(self, field: str) -> None:
        form = {"type": "json_schema", "schema": {"type": "object"}}
        value = form if field == "output_format" else {"format": form, "effort": "low"}
        engine = FakeEngine("{}")
        whole(message(engine, **{field: value}))
        assert engine.params.grammar is not None
        engine = FakeEngine()
        whole(message(engine))
        assert engine.params.grammar is None

    def test_a_format_without_a_schema_is_refused(self) -> None:
        response = message(FakeEngine(), output_config={"format": {"type": "json_schema"}})
        assert "output_config.format.schema" in error(response, 400, "invalid_request_error")


class TestTools:
    def test_tools_and_choices(self) -> None:
        found = conversation(tools=[ADD, ADD | {"type": "custom", "name": "sub"}])
        add, sub = found.tools
        assert (add.name, add.description, sub.name) == ("add", "Add numbers.", "sub")
        assert add.parameters == ADD["input_schema"]
        assert found.parallel_tool_calls
        for kind, mode in [("auto", "auto"), ("none", "none"), ("any", "required")]:
            choice = {"type": kind, "disable_parallel_tool_use": kind == "any"}
            chosen = conversation(tools=[ADD], tool_choice=choice)
            assert (chosen.tool_choice.mode, chosen.tool_choice.name) == (mode, None)
            assert chosen.parallel_tool_calls == (kind != "any")
        named = conversation(tools=[ADD], tool_choice={"type": "tool", "name": "add"})
        assert (named.tool_choice.mode, named.tool_choice.name) == ("required", "add")

    def test_tools_of_anthropics_servers_are_refused_by_name(self) -> None:
        text = refusal(tools=[ADD, {"type": "web_search_20250305", "name": "web_search"}])
        assert text.startswith("tools[1].type 'web_search_20250305'")

    @pytest.mark.parametrize(
        ("tools", "choice"), [([], {"type": "any"}), ([ADD], {"type": "tool", "name": "sub"})]
    )
    def test_choices_that_no_tool_can_meet_are_refused(self, tools: Any, choice: Any) -> None:
        assert "tool" in refusal(tools=tools, tool_choice=choice)
