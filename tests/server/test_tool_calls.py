"""Tools in chat completions: what the model is shown, what is parsed, what it is forced to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.server.parsers.format_detection import OutputFormats
from sarathi.server.parsers.reasoning_parser import REASONING_FORMATS
from sarathi.server.parsers.tool_formats import TOOL_FORMATS
from tests.model_info import model_info
from tests.server.fake_engine import (
    MODEL,
    VOCAB,
    ByteTokenizer,
    FakeEngine,
    call,
    error,
    events,
)

INFO = model_info(max_model_len=4000, vocab_size=VOCAB)
HERMES = OutputFormats(TOOL_FORMATS["hermes"])
THINKING = OutputFormats(TOOL_FORMATS["hermes"], REASONING_FORMATS["qwen3"])
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **more}}


def output(*cities: str) -> str:
    return TOOL_FORMATS["hermes"].write([("weather", {"city": city}) for city in cities])


def engine(text: str) -> FakeEngine:
    return FakeEngine(text, info=INFO)


def chat(running: FakeEngine, formats: OutputFormats = HERMES, messages: Any = None, **fields: Any):
    messages = messages or [{"role": "user", "content": "hi"}]
    body = {"model": MODEL, "messages": messages, "tools": [tool()], **fields}
    options = {"formats": formats}
    if "template" in fields:
        options["tokenizer"] = ByteTokenizer(ChatTemplate(body.pop("template")))  # type: ignore[assignment]
    return call(running, "POST", "/v1/chat/completions", body, **options)  # type: ignore[arg-type]


def prompt(running: FakeEngine) -> str:
    [generation] = running.generations
    return bytes(generation.prompt).decode()


def test_a_message_has_calls_and_no_content() -> None:
    [choice] = chat(engine(output("Bern", "Rom"))).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    functions = [one["function"] for one in message["tool_calls"]]
    assert [one["name"] for one in functions] == ["weather"] * 2
    assert [json.loads(one["arguments"])["city"] for one in functions] == ["Bern", "Rom"]
    assert len({one["id"] for one in message["tool_calls"]}) == 2


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("text", ["", "I look. ", "<think>\nHm.\n</think>\n\n"])
def test_a_stream_is_the_whole_message_in_pieces(n: int, text: str) -> None:
    text += output("Bern", "Rom {")
    whole = chat(engine(text), THINKING, n=n).json()["choices"]
    chunks = events(chat(engine(text), THINKING, stream=True, n=n))
    for index in range(n):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0]["role"] == "assistant"
        calls: list[dict[str, Any]] = []
        for delta in deltas:
            for piece in delta.get("tool_calls", []):
                if "id" in piece:
                    assert piece["type"] == "function"
                    calls.append({"name": piece["function"]["name"], "arguments": ""})
                assert piece["index"] == len(calls) - 1
                calls[-1]["arguments"] += piece["function"]["arguments"]
        message = whole[index]["message"]
        assert calls == [one["function"] for one in message["tool_calls"]]
        content = "".join(delta.get("content") or "" for delta in deltas)
        assert content == (message["content"] or "")
        reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
        assert reasoning == message.get("reasoning_content", "")
        reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
        assert reasons == ["tool_calls"] == [whole[index]["finish_reason"]]


def test_a_call_that_is_cut_off_ends_with_length() -> None:
    text = output("Bern, in Switzerland")[:-20]
    [choice] = chat(engine(text), max_tokens=len(text)).json()["choices"]
    assert choice["finish_reason"] == "length"
    [made] = choice["message"]["tool_calls"]
    assert made["function"]["arguments"].startswith('{"city": "Bern')


@pytest.mark.parametrize("stream", [False, True])
def test_no_logprobs_are_lost(stream: bool) -> None:
    text = f"Hm. {output('Bern')}"
    response = chat(engine(text), stream=stream, logprobs=True)
    replies = events(response) if stream else [response.json()]
    logprobs = [c["logprobs"] for r in replies for c in r["choices"] if c["logprobs"]]
    tokens = [at["token"] for one in logprobs for at in one["content"]]
    assert "".join(tokens) == text + "<256>"


def test_without_tools_nothing_is_parsed() -> None:
    cases: list[dict[str, Any]] = [{"tools": None}, {"tools": []}, {"tool_choice": "none"}]
    for fields in cases:
        [choice] = chat(engine(output("Bern")), **fields).json()["choices"]
        assert choice["message"]["content"] == output("Bern")
        assert choice["finish_reason"] == "stop"


def test_tools_are_described_where_the_template_knows_none() -> None:
    running = engine("x")
    chat(running, messages=[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    system, user, rest = prompt(running).split("|")
    assert system.startswith("system:S\n\nYou can call")
    assert '"name": "weather"' in system
    assert (user, rest) == ("user:U", ">")
    running = engine("x")
    chat(running, tool_choice="none")
    assert prompt(running) == "user:hi|>"


def test_tools_reach_a_template_that_knows_them() -> None:
    running = engine("x")
    template = "{% for t in tools %}{{ t.function.name }};{% endfor %}{{ messages[0].content }}"
    chat(running, template=template)
    assert prompt(running) == "weather;hi"


def test_calls_and_results_of_earlier_turns_are_in_the_prompt() -> None:
    running = engine("x")
    made = {"id": "call_1", "type": "function"}
    made["function"] = {"name": "weather", "arguments": '{"city": "Bern"}'}  # type: ignore[assignment]
    messages = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]
    assert chat(running, messages=messages, tools=None).status_code == 200
    result = "user:<tool_response>\nsunny\n</tool_response>"
    assert prompt(running) == f"user:U|assistant:{output('Bern')}|{result}|>"


def test_forced_calls_have_a_grammar() -> None:
    running = engine(output("Bern"))
    assert chat(running, tool_choice="required").status_code == 200
    grammar = running.params.grammar
    assert grammar is not None
    assert '"city"' in grammar.lark
    assert grammar.after == ""
    running = engine(output("Bern"))
    chosen = {"type": "function", "function": {"name": "other"}}
    chat(running, tools=[tool(), tool("other")], tool_choice=chosen)
    assert running.params.grammar is not None
    assert "weather" not in running.params.grammar.lark
    assert "{0,15}" not in running.params.grammar.lark


def test_a_grammar_begins_after_reasoning_that_the_prompt_has_begun() -> None:
    running = engine(f"Hm.</think>{output('Bern')}")
    template = "{{ messages[0].content }}<think>\n"
    reply = chat(running, THINKING, template=template, tool_choice="required").json()
    assert running.params.grammar is not None
    assert running.params.grammar.after == "</think>"
    [choice] = reply["choices"]
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["finish_reason"] == "tool_calls"


def test_calls_are_free_unless_a_tool_is_strict_or_only_one_may_come() -> None:
    for fields, constrained in (
        ({}, False),
        ({"tools": [tool(strict=True)]}, True),
        ({"parallel_tool_calls": False}, True),
        ({"parallel_tool_calls": True}, False),
    ):
        running = engine("x")
        assert chat(running, **fields).status_code == 200  # type: ignore[arg-type]
        assert (running.params.grammar is not None) == constrained


def test_wrong_tools() -> None:
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        response = chat(engine("x"), tools=[tool(), wrong], tool_choice=choice)
        found = error(response, 400, "tools[1].function.parameters")
        assert "objekt" in found["message"]
    error(chat(engine("x"), tools=[tool("a b")]), 400, "tools[0].function.name")
    none = OutputFormats()
    error(chat(engine("x"), none, tool_choice="required"), 400, "tool_choice")
    assert chat(engine("x"), none).status_code == 200


def test_variables_reach_templates_that_name_them() -> None:
    template = "{{ reasoning_effort or '' }}{% if enable_thinking is false %}off{% endif %}"
    template += "{{ messages[0].content }}"
    for effort, expected in (("high", "highhi"), ("none", "noneoffhi")):
        running = engine("x")
        chat(running, template=template, tools=None, reasoning_effort=effort)
        assert prompt(running) == expected
    for fields in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False},
    ):
        running = engine("x")
        chat(running, template=template, tools=None, **fields)  # type: ignore[arg-type]
        assert prompt(running) == "offhi"


def test_roles_that_have_to_alternate_are_joined() -> None:
    template = (
        "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    running = engine("x")
    messages = [{"role": "user", "content": text} for text in "ab"]
    assert chat(running, template=template, messages=messages, tools=None).status_code == 200
    assert prompt(running) == "[user]a\n\nb"


def test_a_call_that_was_cut_can_be_sent_back() -> None:
    text = output("Bern")
    cut = engine(text[: text.index("Bern")])
    message = chat(cut, max_tokens=text.index("Bern")).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "'
    running = engine("x")
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "cut"}
    history = [{"role": "user", "content": "a"}, message, result]
    assert chat(running, messages=history).status_code == 200
    assert r'"arguments": {"arguments": "{\"city\": \""}' in prompt(running)


def test_content_after_a_call_in_one_delta_comes_after_it() -> None:
    text = f"{output('Bern')} And: {output('Rom')}"
    running = FakeEngine(script=lambda prompt, params: [[*text.encode(), 256]], info=INFO)
    deltas = [c["delta"] for chunk in events(chat(running, stream=True)) for c in chunk["choices"]]
    kinds = [[key for key in ("content", "tool_calls") if delta.get(key)] for delta in deltas]
    assert [kind for kind in kinds if kind] == [["tool_calls"], ["content"], ["tool_calls"]]
