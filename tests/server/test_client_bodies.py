"""Bodies as real clients send them, with fields and values that other servers accept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.server.parsers.tool_formats import TOOL_FORMATS
from tests.server.fake_engine import (
    EOS,
    LIMIT,
    MODEL,
    ByteTokenizer,
    FakeEngine,
    call,
    chat,
    complete,
    error,
    events,
)

USER = {"role": "user", "content": "a"}
BOTH = pytest.mark.parametrize("ask", [complete, chat])
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
REASONING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}"
)
IGNORED = "x-sarathi-ignored"


def strict(path: str, **fields: Any) -> httpx.Response:
    return call(FakeEngine(), "POST", path, {"model": MODEL, **fields}, strict=True)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def prompt(messages: list[Any], template: str | None = None, **fields: Any) -> str:
    """The prompt that the engine gets for messages."""
    engine = FakeEngine()
    tokenizer = ByteTokenizer(None if template is None else ChatTemplate(template))
    body = {"messages": messages, **fields}
    response = call(engine, "POST", "/v1/chat/completions", body, tokenizer=tokenizer)
    assert response.status_code == 200, response.text
    return bytes(engine.generations[0].prompt).decode()


class TestMessages:
    """A1, A2, A4, A6, A22."""

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    def test_earlier_reasoning_reaches_templates_that_know_it(self, name):
        message = {"role": "assistant", "content": "b", name: "c", "provider_specific_fields": {}}
        assert prompt([USER, message], REASONING) == "<user>a<assistant>(c)b"
        assert prompt([USER, message], CHATML) == "<user>a<assistant>b"

    @pytest.mark.parametrize(
        "fields",
        [
            {"reasoning_content": None},
            {"reasoning": None, "reasoning_details": [{"type": "reasoning.text", "text": "c"}]},
            {"provider_specific_fields": {"refusal": None}},
            {"thinking_blocks": [{"type": "thinking", "thinking": "c", "signature": "s"}]},
            {"annotations": [{"type": "url_citation"}], "audio": None, "images": []},
            {"function_call": None, "tool_calls": None, "refusal": None},
            {"tool_calls": [], "tool_call_id": None, "name": None},
            {"cache_control": {"type": "ephemeral"}},
        ],
    )
    def test_what_comes_with_an_answer_may_be_sent_back(self, fields):
        message = {"role": "assistant", "content": "b", **fields}
        response = chat(FakeEngine(), [USER, message, USER])
        assert response.status_code == 200, response.text
        assert IGNORED not in response.headers
        assert prompt([USER, message, USER]) == "user:a|assistant:b|user:a|>"

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_servers_own_answer_is_a_message(self, stream):
        response = chat(FakeEngine("b"), stream=stream)
        if stream:
            message: dict[str, Any] = {}
            for event in events(response):
                for name, value in event["choices"][0]["delta"].items():
                    message[name] = message.get(name, "") + value
        else:
            message = response.json()["choices"][0]["message"]
        assert prompt([USER, message, USER]) == "user:a|assistant:b|user:a|>"

    def test_unknown_keys_of_a_message_are_ignored(self):
        messages = [{**USER, "id": "m1", "metadata": {"a": [1]}, "cache_control": {}}]
        response = chat(FakeEngine(), messages)
        assert response.headers[IGNORED] == "messages.id, messages.metadata"
        assert prompt(messages) == prompt([USER])

    def test_cache_marks_of_parts_are_no_text(self):
        part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
        assert prompt([{"role": "user", "content": [part]}]) == prompt([USER])

    @pytest.mark.parametrize(
        ("parts", "text"),
        [
            ([{"type": "input_text", "text": "b"}, {"type": "output_text", "text": "c"}], "b\nc"),
            (["b", {"text": "c"}], "b\nc"),
            ([{"type": "refusal", "refusal": "no"}], "no"),
            ([{"type": "thinking", "thinking": "t", "signature": "s"}, "b"], "(t)b"),
            ([{"type": "redacted_thinking", "data": "x"}, "b"], "b"),
            ([], ""),
        ],
    )
    def test_parts_that_are_text_or_reasoning(self, parts, text):
        messages = [USER, {"role": "assistant", "content": parts}]
        assert prompt(messages, REASONING) == f"<user>a<assistant>{text}"

    @pytest.mark.parametrize("content", [None, [], ""])
    @pytest.mark.parametrize("calls", [None, [], [{"id": "c", "function": {"name": "f"}}]])
    def test_an_assistant_may_have_said_nothing(self, content, calls):
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        written = TOOL_FORMATS["hermes"].write([("f", {})]) if calls else ""
        assert prompt([USER, message]) == f"user:a|assistant:{written}|>"

    @pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "file", "video"])
    def test_other_parts_are_refused_by_name(self, kind):
        response = chat(FakeEngine(), [{"role": "user", "content": [{"type": kind, kind: {}}]}])
        assert kind in error(response, 400, "messages[0].content[0].type")["message"]

    @pytest.mark.parametrize("field", ["audio", "images"])
    def test_media_of_a_message_are_refused_by_name(self, field):
        response = chat(FakeEngine(), [{**USER, field: [{"id": "x"}]}])
        error(response, 400, f"messages[0].{field}")

    def test_developer_is_system_where_the_template_does_not_know_it(self):
        developer, system = (
            [{"role": role, "content": "b"}, USER] for role in ("developer", "system")
        )
        assert prompt(developer, CHATML) == prompt(system, CHATML) == "<system>b<user>a"
        knows = CHATML + "{% if messages[0].role == 'developer' %}!{% endif %}"
        assert prompt(developer, knows) == "<developer>b<user>a!"

    def test_legacy_function_results_and_calls(self):
        template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
            "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.x }}]"
            "{% endfor %}{% endfor %}"
        )
        messages = [
            USER,
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": '{"x": 1}'},
            },
            {"role": "function", "name": "f", "content": "2"},
        ]
        assert prompt(messages, template) == "<user>a<assistant>[f 1]<tool>2"

    @pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
    def test_arguments_of_calls_may_be_objects(self, arguments):
        template = (
            "{% for c in messages[1].tool_calls %}{{ c.function.arguments.x + 1 }}{% endfor %}"
        )
        call = {"id": "1", "type": "function", "index": 0}
        call["function"] = {"name": "f", "arguments": arguments}
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        assert prompt([USER, message], template) == "2"


class TestUnknownFields:
    """A3; `test_unknown_fields.py` has the rest."""

    FIELDS: Mapping[str, Any] = {
        "id": "x",
        "options": {"num_ctx": 2048},
        "session_id": "x",
        "chat_id": "x",
        "num_ctx": 2048,
        "keep_alive": "5m",
        "cache_prompt": True,
        "repeat_penalty": 1.1,
        "n_predict": 5,
    }

    @BOTH
    @pytest.mark.parametrize("name", FIELDS)
    def test_they_are_ignored_and_named(self, ask, name):
        response = ask(FakeEngine("b"), **{name: self.FIELDS[name]})
        assert text_of(response) == "b"
        assert response.headers[IGNORED] == name

    def test_all_at_once_and_in_a_stream(self):
        response = chat(FakeEngine("b"), stream=True, **self.FIELDS)
        assert events(response)
        assert response.headers[IGNORED].split(", ") == list(self.FIELDS)

    @BOTH
    @pytest.mark.parametrize("name", ["prompt_logprobs", "guided_json", "structured_outputs"])
    def test_null_asks_for_nothing(self, ask, name):
        response = ask(FakeEngine("b"), **{name: None})
        assert text_of(response) == "b"
        assert IGNORED not in response.headers

    @pytest.mark.parametrize(
        ("fields", "seen"),
        [
            ({"enable_thinking": False}, "False False"),
            ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "True True"),
            ({"thinking": {"type": "disabled"}}, "False False"),
            ({"thinking": True}, "True True"),
            ({"thinking": "high"}, "- -"),
            ({"thinking": True, "chat_template_kwargs": {"thinking": False}}, "True False"),
        ],
    )
    def test_thinking_reaches_templates_that_know_it(self, fields, seen):
        template = "{{ enable_thinking | default('-') }} {{ thinking | default('-') }}"
        if fields == {"enable_thinking": False}:
            seen = "False -"
        assert prompt([USER], template, **fields) == seen
        assert prompt([USER], CHATML, **fields) == "<user>a"

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
    def test_strict_refuses_them(self, path):
        answer = error(strict(path, temprature=1), 400, "temprature")
        assert answer["code"] == "unknown_parameter"
        assert "temprature" in answer["message"]

    def test_strict_refuses_nested_ones_with_their_path(self):
        response = strict("/v1/chat/completions", messages=[{**USER, "mood": 1}])
        error(response, 400, "messages.mood")
        response = strict("/v1/completions", stream=True, stream_options={"usage": True})
        error(response, 400, "stream_options.usage")


NO_EFFECT: list[dict[str, Any]] = [
    # A5: defaults of vLLM
    {"best_of": 1},
    {"echo": False},
    {"length_penalty": 1.0},
    {"length_penalty": 1},
    {"early_stopping": False},
    {"use_beam_search": False},
    {"spaces_between_special_tokens": True},
    {"return_token_ids": False},
    {"return_tokens_as_token_ids": False},
    {"truncate_prompt_tokens": None},
    {"allowed_token_ids": None},
    {"bad_words": []},
    {"logits_processors": None},
    {"mm_processor_kwargs": None},
    {"vllm_xargs": {}},
    {"kv_transfer_params": None},
    {"request_id": "x"},
    # A9
    {"logprobs": False},
    # A10
    {"response_format": {}},
    {"service_tier": "priority"},
    {"service_tier": "auto"},
    {"store": True},
    {"metadata": {"a": "b"}},
    {"user": {"id": 5}},
    {"stream_options": {"include_usage": True}},
    {"model": ""},  # A13
    {"max_tokens": None},
    {"stop": ""},  # A7
    {"stop": [""]},
    {"stop": []},
    {"stop": None},
]
NO_EFFECT_ON_CHATS: list[dict[str, Any]] = [
    {"logprobs": False, "top_logprobs": 0},
    {"top_logprobs": 0},
    {"verbosity": "medium"},
    {"function_call": "auto"},
    {"functions": []},
    {"modalities": ["text"]},
    {"prediction": None},
    {"web_search_options": None},
    {"include_reasoning": True},
    {"add_generation_prompt": True},
    {"continue_final_message": False},
    {"documents": None},
    {"chat_template": None},
    *({"reasoning_effort": effort} for effort in ("none", "minimal", "low", "medium", "high")),
]


@pytest.mark.parametrize(
    ("ask", "fields"),
    [
        *((ask, fields) for ask in (complete, chat) for fields in NO_EFFECT),
        *((chat, fields) for fields in NO_EFFECT_ON_CHATS),
    ],
)
def test_values_that_ask_for_nothing(ask, fields):
    plain, engine = FakeEngine("b"), FakeEngine("b")
    ask(plain)
    response = ask(engine, **fields)
    assert text_of(response) == "b"
    assert IGNORED not in response.headers
    assert engine.params == plain.params
    assert engine.generations[0].prompt == plain.generations[0].prompt


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 2},
        {"use_beam_search": True},
        {"length_penalty": 0.5},
        {"allowed_token_ids": [1]},
        {"bad_words": ["x"]},
        {"return_token_ids": True},
        {"truncate_prompt_tokens": 5},
        {"cache_salt": "x"},
        {"vllm_xargs": {"a": 1}},
    ],
)
@BOTH
def test_known_fields_that_would_change_the_output_are_refused(ask, fields):
    (name,) = fields
    answer = error(ask(FakeEngine(), **fields), 400, name)
    assert answer["code"] == "unsupported_parameter"


class TestValues:
    """A7, A8, A11, A12, A16, A17, A20."""

    @BOTH
    def test_a_nucleus_of_nothing_is_the_most_likely_token(self, ask):
        engine = FakeEngine()
        ask(engine, top_p=0, temperature=0.8)
        assert engine.params.greedy
        assert engine.params.top_p == 1.0

    @BOTH
    def test_empty_stop_strings_are_left_out(self, ask):
        engine = FakeEngine("abc")
        assert text_of(ask(engine, stop=["", "c"])) == "ab"
        assert engine.params.stop == ("c",)

    @BOTH
    @pytest.mark.parametrize("limit", [LIMIT, 16384, -1])
    def test_an_output_gets_what_fits(self, ask, limit):
        engine = FakeEngine()
        ask(engine, max_tokens=limit)
        assert engine.params.max_tokens == LIMIT - len(engine.generations[0].prompt)

    def test_each_prompt_gets_what_fits(self):
        engine = FakeEngine()
        complete(engine, ["p", "p" * 90], max_tokens=-1, min_tokens=50)
        assert [each.params.max_tokens for each in engine.generations] == [LIMIT - 1, LIMIT - 90]
        assert [each.params.min_tokens for each in engine.generations] == [50, LIMIT - 90]

    def test_the_newer_name_of_the_limit_is_cut_as_well(self):
        engine = FakeEngine()
        chat(engine, max_completion_tokens=16384)
        assert engine.params.max_tokens == LIMIT - len(engine.generations[0].prompt)

    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            ("/v1/completions", {"prompt": "p"}),
            ("/v1/chat/completions", {"messages": [USER]}),
        ],
    )
    def test_strict_refuses_more_than_fits(self, path, fields):
        answer = error(strict(path, **fields, max_tokens=LIMIT), 400)
        assert answer["code"] == "context_length_exceeded"

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": "x" * LIMIT}),
            ("/v1/completions", {"prompt": "x" * (LIMIT + 1)}),
            ("/v1/completions", {"prompt": [1] * (LIMIT + 1)}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * LIMIT}]}),
            ("/tokenize", {"prompt": "x" * (LIMIT + 1)}),
            ("/detokenize", {"tokens": [1] * (LIMIT + 1)}),
        ],
    )
    def test_too_long_prompts_are_refused_in_words_that_clients_know(self, path, body):
        """LiteLLM and LangChain look for them, and try a model with a longer context."""
        answer = error(call(FakeEngine(), "POST", path, body), 400)
        assert answer["code"] == "context_length_exceeded"
        assert f"This model's maximum context length is {LIMIT} tokens" in answer["message"]

    @BOTH
    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("max_tokens", 7.0, 7),
            ("max_tokens", "7", 7),
            ("n", 1.0, 1),
            ("top_k", 40.0, 40),
            ("seed", 5.0, 5),
            ("temperature", "0.5", 0.5),
            ("skip_special_tokens", "false", False),
            ("logit_bias", {"5": "1.5"}, {5: 1.5}),
            ("seed", 2**63, -(2**63)),
            ("seed", -(2**63) - 1, 2**63 - 1),
        ],
    )
    def test_values_of_another_type_with_the_same_meaning(self, ask, field, value, expected):
        engine = FakeEngine("b")
        assert ask(engine, **{field: value}).status_code == 200
        assert getattr(engine.generations[0].params, field) == expected

    @pytest.mark.parametrize(
        ("given", "ids"),
        [([1.0], [[1]]), ([[1.0, 2]], [[1, 2]]), (["1"], [[49]]), ("null", [list(b"null")])],
    )
    def test_token_ids_may_be_written_as_floats_but_texts_stay_texts(self, given, ids):
        engine = FakeEngine()
        assert complete(engine, given).status_code == 200
        assert [generation.prompt for generation in engine.generations] == ids

    @pytest.mark.parametrize(("field", "value"), [("max_tokens", 7.0), ("stream", 1), ("n", "1")])
    def test_strict_wants_the_types_of_the_fields(self, field, value):
        error(strict("/v1/completions", prompt="p", **{field: value}), 400, field)

    @BOTH
    @pytest.mark.parametrize("seed", [None, 3])
    def test_greedy_choices_are_equal(self, ask, seed):
        reply = ask(FakeEngine("b"), n=2, temperature=0, seed=seed).json()
        first, second = reply["choices"]
        assert {**first, "index": 1} == second

    @BOTH
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("include", [False, True])
    def test_a_special_token_that_is_not_shown_stops(self, ask, stream, include):
        script = [[97], [258], [98], [257], [99]]
        engine = FakeEngine(script=lambda prompt, params: [list(step) for step in script])
        response = ask(
            engine,
            stop=["<257>"],
            ignore_eos=True,
            stream=stream,
            include_stop_str_in_output=include,
        )
        if stream:
            choices = [event["choices"][0] for event in events(response)]
            text = "".join(
                c.get("text") or c.get("delta", {}).get("content") or "" for c in choices
            )
            reason = choices[-1]["finish_reason"]
        else:
            text, reason = text_of(response), response.json()["choices"][0]["finish_reason"]
        assert (text, reason) == ("ab<257>" if include else "ab", "stop")
        assert engine.generations[0].stopped

    @BOTH
    def test_it_stops_where_it_is_shown_as_well(self, ask):
        engine = FakeEngine(script=lambda prompt, params: [[97], [257], [98]])
        assert text_of(ask(engine, stop=["<257>"], skip_special_tokens=False)) == "a"

    @BOTH
    def test_it_does_not_stop_before_the_least_number_of_tokens(self, ask):
        engine = FakeEngine(script=lambda prompt, params: [[97], [257], [98], [257], [99]])
        assert text_of(ask(engine, stop=["<257>"], min_tokens=3)) == "ab"


class TestTools:
    """The part of A19 that concerns what is accepted."""

    def test_definitions_of_100_kb_are_accepted(self):
        parameters = {"type": "object", "properties": {"x": {"description": "long " * 50}}}
        tools = [
            {
                "type": "function",
                "function": {"name": f"f{i}", "description": "d", "parameters": parameters},
                "cache_control": {"type": "ephemeral"},
            }
            for i in range(400)
        ]
        assert len(json.dumps(tools)) > 100_000
        response = chat(FakeEngine("b"), tools=tools, tool_choice="none")
        assert text_of(response) == "b"
        assert IGNORED not in response.headers

    def test_too_large_definitions_are_refused(self):
        tool = {"type": "function", "function": {"name": "f", "description": "d" * 2**20}}
        error(chat(FakeEngine(), tools=[tool]), 400, "tools")

    def test_unknown_fields_of_a_tool_are_ignored(self):
        tool = {"type": "function", "x-a": 1, "function": {"name": "f", "x-b": 1}}
        response = chat(FakeEngine("b"), tools=[tool], tool_choice="none")
        assert response.headers[IGNORED] == "tools.x-a, tools.function.x-b"

    @pytest.mark.parametrize("kind", ["web_search_preview", "code_interpreter", "mcp", "custom"])
    def test_tools_of_other_servers_are_refused_by_name(self, kind):
        answer = error(chat(FakeEngine(), tools=[{"type": kind}]), 400, "tools[0].type")
        assert kind in answer["message"]

    def test_a_tool_without_a_name_is_refused(self):
        tool = {"type": "function", "function": {"description": "d"}}
        error(chat(FakeEngine(), tools=[tool]), 400, "tools[0].function.name")


class TestTokenisation:
    """Bodies of vLLM's /tokenize."""

    def test_strings_of_the_tokens(self):
        body = {"model": MODEL, "prompt": "hi", "return_token_strs": True}
        reply = call(FakeEngine(), "POST", "/tokenize", body).json()
        assert reply["token_strs"] == ["h", "i"]

    def test_messages_with_tools(self):
        body = {
            "messages": [USER],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "add_special_tokens": False,
            "return_token_strs": False,
            "continue_final_message": False,
            "chat_template": None,
            "mm_processor_kwargs": None,
        }
        template = (
            "{{ messages[0].content }}{% for t in tools %}[{{ t.function.name }}]{% endfor %}"
        )
        tokenizer = ByteTokenizer(ChatTemplate(template))
        reply = call(FakeEngine(), "POST", "/tokenize", body, tokenizer=tokenizer).json()
        assert bytes(reply["tokens"]) == b"a[f]"
        assert reply["count"] == len(reply["tokens"])


class TestRegressions:
    """What was right before such bodies were accepted."""

    @BOTH
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("include_usage", [False, True])
    @pytest.mark.parametrize(
        ("script", "fields", "text", "reason", "tokens"),
        [
            ([[97], [98]], {"max_tokens": 1}, "a", "length", 1),
            ([[EOS]], {}, "", "stop", 1),
            ([[97], [98]], {"stop": "a"}, "", "stop", 1),
            ([[97], [98], [99]], {"stop": ["bc", "c"]}, "a", "stop", 3),
            ([[0xC3], [98]], {"max_tokens": 1}, "\ufffd", "length", 1),
        ],
    )
    def test_streams_and_whole_replies_agree(
        self, ask, n, include_usage, script, fields, text, reason, tokens
    ):
        def engine() -> FakeEngine:
            return FakeEngine(script=lambda prompt, params: [list(step) for step in script])

        whole = ask(engine(), n=n, **fields).json()
        options = {"include_usage": include_usage}
        chunks = events(ask(engine(), n=n, stream=True, stream_options=options, **fields))
        assert ("usage" in chunks[-1]) == include_usage
        if include_usage:
            assert chunks.pop()["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] == n * tokens
        for choice in whole["choices"]:
            own = [c for e in chunks for c in e["choices"] if c["index"] == choice["index"]]
            streamed = "".join(
                c.get("text") or c.get("delta", {}).get("content") or "" for c in own
            )
            content = choice["text"] if "text" in choice else choice["message"]["content"]
            assert content == streamed == text
            assert choice["finish_reason"] == own[-1]["finish_reason"] == reason
            assert sum(c["finish_reason"] is not None for c in own) == 1

    @BOTH
    @pytest.mark.parametrize("text", ["a\0b", "\u2028", "\U0001f600"])
    def test_unusual_characters_of_a_prompt(self, ask, text):
        engine = FakeEngine()
        ask(engine, text) if ask is complete else ask(engine, [{**USER, "content": text}])
        assert text.encode() in bytes(engine.generations[0].prompt)

    @BOTH
    @pytest.mark.parametrize("bias", [{"5": 100}, {"5": -100}, {"0": 0}, {"259": 1}])
    def test_the_bounds_of_logit_bias_are_included(self, ask, bias):
        assert ask(FakeEngine(), logit_bias=bias).status_code == 200

    def test_twenty_logprobs_of_broken_characters(self):
        engine = FakeEngine(script=lambda prompt, params: [[0xE2], [0x82], [EOS]])
        reply = chat(engine, logprobs=True, top_logprobs=20).json()
        content = reply["choices"][0]["logprobs"]["content"]
        assert [at["token"] for at in content[:2]] == ["bytes:\\xe2", "bytes:\\x82"]
        assert [at["bytes"] for at in content[:2]] == [[0xE2], [0x82]]

    def test_arguments_of_the_template(self):
        arguments = {"suffix": "/no_think", "unknown": [1]}
        assert prompt([USER], chat_template_kwargs=arguments) == "user:a|/no_think>"


@pytest.mark.parametrize("arguments", [b'"\xff"', b'{"x": "\xff"}', b'"\\ud800"', b'"\\x"', b"01"])
@pytest.mark.parametrize(
    "message",
    [
        b'{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": %s}}]}',
        b'{"role": "assistant", "function_call": {"name": "f", "arguments": %s}}',
    ],
)
def test_malformed_arguments_of_calls_are_refused(message, arguments):
    content = b'{"messages": [{"role": "user", "content": "a"}, %s]}' % (message % arguments)
    response = call(FakeEngine(), "POST", "/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert "not valid" in response.json()["error"]["message"]


@pytest.mark.parametrize("user", [b'"\xff"', b"5", b"null", b'{"a": [1]}', b'"%s"' % (b"x" * 9999)])
def test_a_user_of_any_kind_is_a_tenant(user):
    engine = FakeEngine()
    content = b'{"prompt": "a", "user": %s}' % user
    assert call(engine, "POST", "/v1/completions", content=content).status_code == 200
    assert len(engine.scheduling.tenant) < 100
    assert bool(engine.scheduling.tenant) == (user != b"null")
