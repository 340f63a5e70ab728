"""What small templates, written as those of model families are, show of what they are given."""

from __future__ import annotations

import pytest

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.template_abilities import (
    CallForm,
    TemplateAbilities,
    template_abilities,
)

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
CALLS = "{% for c in m.tool_calls %}{{ c.function.name }}"
ENDS = "{% endfor %}{% endfor %}"
TOOLS = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"


def abilities(
    source: str, with_tools: bool = True, tool_source: str | None = None
) -> TemplateAbilities:
    return template_abilities(ChatTemplate(source, tool_source=tool_source), with_tools)


def test_a_template_that_knows_no_tools() -> None:
    found = abilities(TURNS + "{% endfor %}")
    assert not found.tools
    assert found.system
    assert found.results
    assert found.calls is None


def test_a_template_that_shows_all() -> None:
    found = abilities(TOOLS + TURNS + CALLS + "{{ c.function.arguments | tojson }}" + ENDS)
    assert found.tools
    assert found.calls == CallForm(False, False, False)
    assert not abilities(TOOLS + TURNS + "{% endfor %}", False).tools


@pytest.mark.parametrize(
    ("arguments", "as_text"),
    [
        ("{{ c.function.arguments }}", True),
        ("{{ '<' + c.function.arguments + '>' }}", True),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", False),
        (
            "{{ c.function.arguments if c.function.arguments is string "
            "else c.function.arguments | tojson }}",
            False,
        ),
    ],
)
def test_arguments_as_text_or_as_an_object(arguments: str, as_text: bool) -> None:
    found = abilities(TURNS + CALLS + arguments + ENDS)
    assert found.calls == CallForm(as_text, False, False)


def test_a_template_that_wants_short_ids() -> None:
    check = "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
    arguments = "{{ c.function.arguments | tojson }}"
    assert abilities(TURNS + CALLS + check + arguments + ENDS).calls == CallForm(False, True, False)


def test_a_template_that_shows_calls_only_of_messages_without_content() -> None:
    source = (
        "{% for m in messages %}{% if m.content is none %}"
        + CALLS
        + "{{ c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert abilities(source).calls == CallForm(True, False, True)


def test_a_template_that_refuses_system_messages() -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert not abilities(refusal + TURNS + "{% endfor %}").system


def test_variables_and_names() -> None:
    source = (
        "{% if enable_thinking is defined and not enable_thinking %}a{% endif %}"
        "{{ messages[0]['reasoning_content'] }}{{ messages[0].thinking }}"
    )
    found = abilities(source)
    assert found.variables == {"enable_thinking", "messages"}
    assert {"reasoning_content", "thinking"} <= found.names
    assert "enable_thinking" not in found.names


def test_of_two_templates_the_one_for_tools_counts_with_tools() -> None:
    plain, with_tools = TURNS + "{% endfor %}", TOOLS + TURNS + "{% endfor %}"
    assert abilities(plain, tool_source=with_tools).tools
    assert not abilities(plain, False, tool_source=with_tools).tools


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if m.role == 'developer' %}x{% endif %}", True),
        ('{% if m.role in ["system", "developer"] %}x{% endif %}', True),
        ("<|im_start|>{{ messages[0].role }}", False),
        ("You are a developer. {{ messages }}", False),
    ],
)
def test_whether_a_template_knows_the_role_developer(source: str, expected: bool) -> None:
    assert ("developer" in abilities(source).names) is expected
    assert ("developer" in abilities("x", tool_source=source).names) is expected
