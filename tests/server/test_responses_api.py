"""POST /v1/responses."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pydantic
import pytest
from hypothesis import given, settings
from openai.types.responses import Response, ResponseStreamEvent

from sarathi.engine.output_processor import Delta
from sarathi.fleet.engine_client import EngineError
from sarathi.server.openai.responses_api import ResponsesTranslator
from sarathi.server.openai.responses_request import ResponsesRequest, read_responses_input
from sarathi.server.request_body import decode
from sarathi.server.responses import ApiError
from tests.model_info import model_info
from tests.server.fake_engine import LIMIT, MODEL, VOCAB, ByteTokenizer, FakeEngine, call, error
from tests.server.parsed_outputs import USAGE, parsed_outputs, read_events, split_outputs, stream_of

__all__ = ["split_outputs"]  # a fixture

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
ADD = {
    "type": "function",
    "name": "add",
    "description": "Add numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}


def respond(engine: FakeEngine, given: Any = "hi", **fields: Any):
    options = {name: fields.pop(name) for name in ("strict",) if name in fields}
    body = {"model": MODEL, "input": given, **fields}
    return call(engine, "POST", "/v1/responses", body, **options)


def whole(response) -> dict[str, Any]:
    """The reply, which the official client's types have to accept."""
    assert response.status_code == 200, response.text
    Response.model_validate_json(response.text, strict=True)
    return response.json()


def stream(response) -> list[dict[str, Any]]:
    """The events, which the official client's types have to accept."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = read_events(response.text)
    check(events)
    return events


def check(events: list[dict[str, Any]]) -> None:
    for number, event in enumerate(events):
        EVENT.validate_json(json.dumps(event), strict=True)
        assert event["sequence_number"] == number


def conversation(**fields: Any):
    request, _ = decode(json.dumps(fields).encode(), ResponsesRequest, strict=False)
    return read_responses_input(request)


def refusal(**fields: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        conversation(**fields)
    assert caught.value.status == 400
    return caught.value.body["error"]


def reassembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that a client puts together from deltas alone, checking the order of events."""
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    items: list[dict[str, Any]] = []
    done: list[dict[str, Any]] = []
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items) == len(done)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            continue
        item = items[-1]
        assert event["output_index"] == len(items) - 1
        if kind == "output_item.done":
            item["status"] = event["item"]["status"]
            assert item == event["item"]
            done.append(item)
            continue
        assert event["item_id"] == item["id"]
        if kind == "content_part.added":
            item["content"].append(event["part"])
        elif kind == "content_part.done":
            assert item["content"] == [event["part"]]
        elif kind.endswith(".delta"):
            assert event["delta"]
            if kind == "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            else:
                item["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == item["arguments"]
        else:
            assert kind in ("output_text.done", "reasoning_text.done")
            assert event["text"] == item["content"][0]["text"]
    assert done == items
    return done


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key != "id"} for item in items]


def translator() -> ResponsesTranslator:
    service = SimpleNamespace(tokenizer=ByteTokenizer(), model=MODEL)
    return ResponsesTranslator(cast("Any", service), ResponsesRequest(input="hi"))


@given(parsed_outputs())
def test_a_stream_reassembles_to_the_whole_response(deltas: list[Delta]) -> None:
    events = stream_of(translator(), deltas)
    body = cast("dict[str, Any]", translator().body([deltas], USAGE))
    items = reassembled(events)
    assert without_ids(items) == without_ids(body["output"])
    last = events[-1]
    assert last["type"] == f"response.{body['status']}"
    assert last["response"]["output"] == items
    assert last["response"]["usage"] == body["usage"]
    assert len({item["id"] for item in items}) == len(items)


@settings(deadline=None)  # the client builds its types with the first example
@given(parsed_outputs())
def test_the_official_types_accept_what_is_sent(deltas: list[Delta]) -> None:
    check(stream_of(translator(), deltas))
    Response.model_validate_json(json.dumps(translator().body([deltas], USAGE)), strict=True)


@given(parsed_outputs())
def test_the_text_of_an_output_is_in_its_items(deltas: list[Delta]) -> None:
    body = cast("dict[str, Any]", translator().body([deltas], USAGE))
    text = "".join(
        part["text"]
        for item in body["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
    assert text == "".join(delta.text for delta in deltas)


def test_a_response_has_a_message_and_usage() -> None:
    engine = FakeEngine("Hello", cached=lambda prompt: 2)
    reply = whole(respond(engine))
    assert reply["id"].startswith("resp_")
    assert reply["status"] == "completed"
    assert reply["store"] is False
    [item] = reply["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert [part["text"] for part in item["content"]] == ["Hello"]
    prompt = len("user:hi|>")
    assert reply["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + 6,
    }


def test_a_stream_has_openais_events_in_their_order() -> None:
    events = stream(respond(FakeEngine("Hé"), stream=True))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("streamed", [False, True])
def test_the_limit_of_output_tokens_makes_a_response_incomplete(streamed: bool) -> None:
    response = respond(FakeEngine("Hello"), max_output_tokens=2, stream=streamed)
    reply = stream(response)[-1]["response"] if streamed else whole(response)
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["output"][0]["status"] == "incomplete"
    assert reply["output"][0]["content"][0]["text"] == "He"


@pytest.mark.usefixtures("split_outputs")
@pytest.mark.parametrize("streamed", [False, True])
def test_reasoning_text_and_calls_are_items(streamed: bool) -> None:
    response = respond(FakeEngine('hm|Hello!{"a": 1}'), stream=streamed)
    reply = stream(response)[-1]["response"] if streamed else whole(response)
    reasoning, message, called = reply["output"]
    assert reasoning["type"] == "reasoning"
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Hello"
    assert called["type"] == "function_call"
    assert (called["call_id"], called["name"]) == ("call_0", "add")
    assert json.loads(called["arguments"]) == {"a": 1}
    assert reply["status"] == called["status"] == "completed"
    assert reply["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.usefixtures("split_outputs")
def test_a_call_that_the_limit_has_cut_is_incomplete() -> None:
    reply = whole(respond(FakeEngine('|!{"a": 1}'), max_output_tokens=4))
    [called] = reply["output"]
    assert (called["arguments"], called["status"]) == ('{"', "incomplete")
    assert reply["status"] == "incomplete"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_output_without_text_is_an_empty_message(streamed: bool) -> None:
    response = respond(FakeEngine(""), stream=streamed)
    reply = stream(response)[-1]["response"] if streamed else whole(response)
    assert [item["content"][0]["text"] for item in reply["output"]] == [""]


@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_if_included(streamed: bool) -> None:
    include = ["message.output_text.logprobs"]
    response = respond(FakeEngine("Hé"), stream=streamed, include=include, top_logprobs=2)
    reply = stream(response)[-1]["response"] if streamed else whole(response)
    logprobs = reply["output"][0]["content"][0]["logprobs"]
    assert [bytes(one["bytes"]) for one in logprobs] == [b"H", b"\xc3", b"\xa9"]
    assert [len(one["top_logprobs"]) for one in logprobs] == [2, 2, 2]
    if streamed:
        sent = [event for event in stream(response) if event["type"].endswith("text.delta")]
        assert [one for event in sent for one in event["logprobs"]] == logprobs


def test_a_stream_that_fails_ends_with_the_failed_response() -> None:
    engine = FakeEngine(script=lambda prompt, params: [[72], [105]])
    engine.on_silence = "the engine has died"
    events = stream(respond(engine, stream=True))
    assert events[-1]["type"] == "response.failed"
    reply = events[-1]["response"]
    assert reply["status"] == "failed"
    assert reply["error"]["code"] == "server_error"
    assert reply["output"][0]["content"][0]["text"] == "Hi"
    assert reply["output"][0]["status"] == "incomplete"


def test_an_error_before_the_first_token_has_a_status() -> None:
    engine = FakeEngine()
    engine.lost = EngineError("the prompt is cursed")
    error(respond(engine, stream=True), 400)


def test_sampling_and_scheduling_fields_reach_the_engine() -> None:
    engine = FakeEngine()
    fields = {"temperature": 0.5, "top_p": 0.25, "max_output_tokens": 9, "user": "me"}
    whole(respond(engine, **fields))
    assert engine.params.temperature == 0.5
    assert engine.params.top_p == 0.25
    assert engine.params.max_tokens == 9
    assert engine.scheduling.tenant == "me"


def test_the_rest_of_the_models_length_is_the_default_limit() -> None:
    engine = FakeEngine()
    whole(respond(engine))
    assert engine.params.max_tokens == LIMIT - len("user:hi|>")


def test_errors_name_the_fields_of_this_api() -> None:
    error(respond(FakeEngine(), max_output_tokens=0), 400, "max_output_tokens")
    error(respond(FakeEngine(), include=[], top_logprobs=21), 400, "top_logprobs")
    error(respond(FakeEngine(), temperature=-1), 400, "temperature")


def test_what_was_asked_for_is_part_of_the_reply() -> None:
    asked = {
        "instructions": "be brief",
        "tools": [ADD],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.5,
        "user": "me",
        "reasoning": {"effort": "low", "summary": "auto"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
    }
    reply = whole(respond(FakeEngine(), **asked))
    assert {name: reply[name] for name in asked} == asked


@pytest.mark.parametrize("strict", [False, True])
def test_what_has_no_effect_is_accepted(strict: bool) -> None:
    sent_back = whole(respond(FakeEngine()))["output"]
    response = respond(
        FakeEngine(),
        [{"role": "user", "content": "hi"}, *sent_back],
        strict=strict,
        store=True,
        truncation="auto",
        service_tier="auto",
        include=["reasoning.encrypted_content"],
        stream_options={"include_obfuscation": False},
        prompt_cache_retention="24h",
        background=False,
        previous_response_id=None,
        text={"verbosity": "low"},
    )
    whole(response)
    assert "x-sarathi-ignored" not in response.headers


def test_unknown_fields_are_ignored_and_named() -> None:
    response = respond(FakeEngine(), field_of_tomorrow=1)
    whole(response)
    assert response.headers["x-sarathi-ignored"] == "field_of_tomorrow"
    error(respond(FakeEngine(), field_of_tomorrow=1, strict=True), 400, "field_of_tomorrow")


def test_a_limit_beyond_the_models_length_is_cut() -> None:
    engine = FakeEngine()
    whole(respond(engine, max_output_tokens=32_000))
    assert engine.params.max_tokens == LIMIT - len("user:hi|>")


@pytest.mark.parametrize(
    ("name", "value"),
    [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("prompt", {"id": "p"})],
)
def test_what_needs_a_storage_is_refused(name: str, value: Any) -> None:
    refused = error(respond(FakeEngine(), **{name: value}), 400, name)
    assert refused["code"] == "unsupported_parameter"
    assert "Send the whole input" in refused["message"]


def test_background_is_refused() -> None:
    refused = error(respond(FakeEngine(), background=True), 400, "background")
    assert refused["code"] == "unsupported_parameter"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_no_response_is_stored(method: str) -> None:
    refused = error(call(FakeEngine(), method, "/v1/responses/resp_1"), 404)
    assert refused["code"] == "response_not_found"
    assert "nothing is stored" in refused["message"]


class TestInput:
    def test_a_text_is_the_users(self) -> None:
        [turn] = conversation(input="hi").turns
        assert (turn.role, turn.content) == ("user", "hi")

    def test_instructions_come_first(self) -> None:
        system, user = conversation(instructions="be brief", input="hi").turns
        assert (system.role, system.content) == ("system", "be brief")
        assert user.content == "hi"

    def test_messages_with_and_without_a_type_or_parts(self) -> None:
        parts = [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]
        items = [
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": parts},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
        ]
        turns = conversation(input=items).turns
        assert [(turn.role, turn.content) for turn in turns] == [
            ("developer", "d"),
            ("user", "one\ntwo"),
            ("assistant", "a\nno"),
        ]

    def test_items_of_the_assistant_are_one_turn(self) -> None:
        items = [
            {"role": "user", "content": "hi"},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {"role": "assistant", "content": "let me see"},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'},
            {"type": "function_call", "call_id": "c2", "name": "add", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "2"}],
            },
        ]
        _, assistant, *results = conversation(input=items).turns
        assert (assistant.content, assistant.reasoning) == ("let me see", "hm")
        assert [(c.id, c.name, c.arguments) for c in assistant.tool_calls] == [
            ("c1", "add", '{"a":1}'),
            ("c2", "add", ""),
        ]
        assert [(t.role, t.tool_call_id, t.content) for t in results] == [
            ("tool", "c1", "1"),
            ("tool", "c2", "2"),
        ]

    def test_each_answer_of_the_assistant_is_a_turn(self) -> None:
        items = [
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "thanks"},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        ]
        turns = conversation(input=items).turns
        assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant", "user"]
        assert [turn.reasoning for turn in turns] == ["", "", "", "so", ""]

    def test_the_output_of_a_response_can_be_its_next_input(self) -> None:
        reply = whole(respond(FakeEngine("Hello")))
        again = [
            {"role": "user", "content": "hi"},
            *reply["output"],
            {"role": "user", "content": "?"},
        ]
        engine = FakeEngine("Hello")
        whole(respond(engine, again))
        [generation] = engine.generations
        assert bytes(generation.prompt) == b"user:hi|assistant:Hello|user:?|>"

    @pytest.mark.parametrize(
        ("item", "field"),
        [
            ({"type": "item_reference", "id": "msg_1"}, "type"),
            ({"type": "web_search_call", "id": "ws_1"}, "type"),
            ({"role": "king", "content": "x"}, "role"),
            ({"role": "user"}, "content"),
            ({"role": "user", "content": [{"type": "input_image"}]}, "content[0].type"),
            ({"role": "user", "content": [{"type": "input_text"}]}, "content[0].text"),
            ({"type": "function_call", "name": "add"}, "call_id"),
            ({"type": "function_call", "call_id": "c"}, "name"),
            ({"type": "function_call_output", "output": "x"}, "call_id"),
            ({"type": "function_call_output", "call_id": "x"}, "output"),
        ],
    )
    def test_items_that_are_refused(self, item: dict[str, Any], field: str) -> None:
        path = f"input[1].{field}"
        refused = refusal(input=[{"role": "user", "content": "hi"}, item])
        assert refused["param"] == path
        assert path in refused["message"]

    @pytest.mark.parametrize("given", [None, "", []])
    def test_an_input_is_required(self, given: Any) -> None:
        assert refusal(input=given)["param"] == "input"


class TestTools:
    def test_tools_and_choices(self) -> None:
        found = conversation(input="hi", tools=[ADD], parallel_tool_calls=False)
        [tool] = found.tools
        assert (tool.name, tool.description, tool.strict) == ("add", "Add numbers.", True)
        assert tool.parameters == ADD["parameters"]
        assert found.tool_choice.mode == "auto"
        assert not found.parallel_tool_calls
        named = conversation(
            input="hi", tools=[ADD], tool_choice={"type": "function", "name": "add"}
        )
        assert (named.tool_choice.mode, named.tool_choice.name) == ("required", "add")
        assert conversation(input="hi", tool_choice="none").tool_choice.mode == "none"

    @pytest.mark.parametrize("kind", ["web_search", "file_search", "mcp", "custom"])
    def test_tools_that_a_server_would_run_are_refused_by_name(self, kind: str) -> None:
        refused = refusal(input="hi", tools=[ADD, {"type": kind}])
        assert refused["param"] == "tools[1].type"
        assert kind in refused["message"]

    @pytest.mark.parametrize(
        "choice", ["required", {"type": "function", "name": "sub"}, {"type": "allowed_tools"}]
    )
    def test_choices_that_no_tool_can_meet_are_refused(self, choice: Any) -> None:
        tools = [] if choice == "required" else [ADD]
        refused = refusal(input="hi", tools=tools, tool_choice=choice)
        assert refused["param"].startswith("tool_choice")

    @pytest.mark.parametrize(
        ("wrong", "field"), [({"parameters": {"type": 1}}, "parameters"), ({"name": "?"}, "name")]
    )
    def test_wrong_tools_are_named_as_this_api_has_them(self, wrong: Any, field: str) -> None:
        engine = FakeEngine(info=model_info(max_model_len=2048, vocab_size=VOCAB))
        tools = [ADD, ADD | {"name": "f"} | wrong]
        response = respond(engine, tools=tools, tool_choice="required")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == f"tools[1].{field}"


class TestTextFormat:
    @pytest.mark.parametrize("text", [None, {}, {"format": None}, {"format": {"type": "text"}}])
    def test_plain_text_has_no_grammar(self, text: Any) -> None:
        engine = FakeEngine()
        whole(respond(engine, text=text))
        assert engine.params.grammar is None

    def test_json_has_a_grammar(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
        engine = FakeEngine("{}")
        reply = whole(respond(engine, text={"format": form}))
        assert engine.params.grammar is not None
        assert "integer" in engine.params.grammar.lark
        assert reply["text"]["format"] == form | {"description": None}
        engine = FakeEngine("{}")
        reply = whole(respond(engine, text={"format": {"type": "json_object"}}))
        assert engine.params.grammar is not None
        assert reply["text"]["format"] == {"type": "json_object"}

    @pytest.mark.parametrize("form", [{"type": "json_schema", "name": "n"}, {"type": "xml"}])
    def test_formats_that_are_refused(self, form: Any) -> None:
        response = respond(FakeEngine(), text={"format": form})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("text.format.")
