from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sarathi.errors import ModelError
from sarathi.models.tokenizers.chat_template import ChatTemplate

_MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind"},
    {"role": "user", "content": "  hé  "},
    {"role": "assistant", "content": "ok"},
]
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "<é>", "parameters": {"type": "object"}},
    }
]
_TEMPLATES = {
    "loop": (
        "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}] {{ m.content | trim }}"
        "{{ eos_token }}\n{% endfor %}"
    ),
    "whitespace": (
        "{% for m in messages %}\n    {% if loop.first %}\n  {{ m['content'] }}\n"
        "    {% endif %}\n{% endfor %}"
    ),
    "prompt": "{% if add_generation_prompt %}go{% else %}stop{% endif %}",
    "tools": "{% if tools %}{{ tools | tojson }}|{{ tools | tojson(indent=2) }}{% endif %}",
    "loop controls": (
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}"
        "{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}"
        "{% endgeneration %}{{ x }}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}"
    ),
    "undefined": "{% if unheard_of is defined %}yes{% endif %}{{ unheard_of }}{{ documents }}",
}


@pytest.mark.parametrize("source", _TEMPLATES.values(), ids=_TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("tools", [None, _TOOLS])
def test_rendering_is_that_of_transformers(source: str, prompt: bool, tools: Any) -> None:
    rendered: Any = render_jinja_template(
        [_MESSAGES],
        tools=tools,
        chat_template=source,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    [expected], _ = rendered
    template = ChatTemplate(source, "<s>", "</s>")
    assert template.render(_MESSAGES, prompt, tools) == expected


def test_further_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ thinking }} {{ unk_token }}", special_tokens={"unk_token": "U"})
    assert template.render([], thinking=False) == "False U"


def test_dates() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]) == str(datetime.now().year)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 3 }}", "can only concatenate"),
        ("{{ unheard_of.field }}", "unheard_of"),
        ("{{ messages.append(1) }}", "unsafe|not safe|append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    ],
)
def test_failures_become_value_errors_with_the_message(source: str, message: str) -> None:
    template = ChatTemplate(source)
    with pytest.raises(ValueError, match=message):
        template.render(_MESSAGES)


def test_invalid_template() -> None:
    with pytest.raises(ModelError, match="chat template is invalid"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize("name", ["self", "context", "loop", "bos_token"])
def test_an_argument_may_have_any_name(name: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    extra: dict[str, Any] = {name: 1}
    assert template.render([{"role": "user", "content": "x"}], **extra) == "x"
