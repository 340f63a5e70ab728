"""Conversations with tools as prompts, of templates that know tools and of those that do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.template_abilities import template_abilities
from sarathi.server.parsers.tool_formats import TOOL_FORMATS
from sarathi.server.prompt_messages import (
    Tool,
    ToolCall,
    Turn,
    merged_messages,
    template_messages,
)

WEATHER = Tool("get_weather", "Weather of a city", {"type": "object", "properties": {"city": {}}})
CALL = ToolCall("call_0123456789", "get_weather", '{"city": "Bern"}')
HISTORY = [
    Turn("user", "Weather?"),
    Turn("assistant", "I look.", reasoning="Hm.", tool_calls=[CALL]),
    Turn("tool", "sunny", tool_call_id=CALL.id),
]
ALL = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


def messages(
    source: str, turns: Sequence[Turn], tools: Sequence[Tool] = (), tool_format: str = "hermes"
) -> list[dict[str, Any]]:
    abilities = template_abilities(ChatTemplate(source), bool(tools))
    return template_messages(turns, tools, abilities, TOOL_FORMATS[tool_format])


def test_the_template_of_smollm2_shows_tools_calls_and_results() -> None:
    template = open_tokenizer(locate("smollm2-135m").path).chat_template
    assert template is not None
    abilities = template_abilities(template, True)
    turns = [Turn("system", "Be brief."), *HISTORY]
    shown = template_messages(turns, [WEATHER], abilities, TOOL_FORMATS["smollm"])
    prompt = template.render(shown)
    system, user, assistant, result, last = prompt.split("<|im_start|>")[1:]
    assert system.startswith("system\nBe brief.\n\n")
    described = {"name": "get_weather", "description": "Weather of a city"}
    described["parameters"] = WEATHER.parameters  # type: ignore[assignment]
    assert json.dumps({"type": "function", "function": described}) in system
    assert '<tool_call>[{"name": "function_name", "arguments": {' in system
    assert user == "user\nWeather?<|im_end|>\n"
    call = '<tool_call>[{"name": "get_weather", "arguments": {"city": "Bern"}}]</tool_call>'
    assert assistant == f"assistant\nI look.\n{call}<|im_end|>\n"
    assert result == "user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    assert last == "assistant\n"


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    shown = messages(ALL, HISTORY, [WEATHER])
    assert [message["role"] for message in shown] == ["user", "assistant", "tool"]
    assert shown[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert shown[1]["reasoning_content"] == "Hm."
    assert shown[2]["tool_call_id"] == CALL.id


def test_reasoning_is_left_out_where_the_template_does_not_name_it() -> None:
    assert "reasoning_content" not in messages("{{ messages[0].content }}", HISTORY)[1]


def test_ids_are_shortened_alike_for_calls_and_results() -> None:
    check = "{% for m in messages %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    check += "{{ raise_exception('id') }}{% endif %}{% endfor %}{% endfor %}"
    shown = messages(check + ALL, HISTORY, [WEATHER])
    short = shown[1]["tool_calls"][0]["id"]
    assert len(short) == 9
    assert short.isalnum()
    assert shown[2]["tool_call_id"] == short


def test_calls_that_need_a_message_without_content_get_one() -> None:
    source = (
        "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    shown = messages(source, HISTORY)
    assert [message["content"] for message in shown] == ["Weather?", "I look.", None, "sunny"]
    assert shown[2]["tool_calls"][0]["function"]["arguments"] == CALL.arguments


def test_system_messages_go_into_the_users_where_they_are_refused() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    shown = messages(source, [Turn("developer", "Be brief."), Turn("user", "Hi")])
    assert shown == [{"role": "user", "content": "Be brief.\n\nHi"}]
    assert messages(source, [Turn("system", "a")]) == [{"role": "user", "content": "a"}]


def test_messages_of_one_role_are_joined() -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": []}
    plain = [{"role": "user", "content": text} for text in "ab"]
    assert merged_messages([*plain, calls, calls]) == [
        {"role": "user", "content": "a\n\nb"},
        calls,
        calls,
    ]


@pytest.mark.parametrize("arguments", ["{", '{"city": "Be', "[1]", "5", '"{}"', "[" * 10**5])
def test_arguments_that_are_no_object_are_shown_as_a_text(arguments: str) -> None:
    turn = Turn("assistant", "", tool_calls=[ToolCall("a", "f", arguments)], path="messages[1]")
    [_, shown] = messages(ALL, [Turn("user", ""), turn], [WEATHER])
    assert shown["tool_calls"][0]["function"]["arguments"] == {"arguments": arguments}
