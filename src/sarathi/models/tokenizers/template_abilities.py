"""What a chat template can show, found by rendering and reading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from jinja2 import meta, nodes

from sarathi.models.tokenizers.chat_template import ChatTemplate, WorkLimit, parse_template

# Of rendering all probes of a template, which takes a few milliseconds. What is found counts for as
# long as the process lives, so that a busy machine must not cut it.
_SECONDS = 2.0
_TOOL_NAME, _CALLED_NAME = "probed_tool", "called_tool"
_KEY, _RESULT, _SYSTEM = "probed_key", "probed-result", "probed-system"
_IDS = ("call_0123456789abcdef", "abcDEF123")


@dataclass(frozen=True)
class CallForm:
    """How a template wants the calls of earlier turns."""

    arguments_as_text: bool  # JSON text, not an object
    short_ids: bool  # of nine letters and digits
    null_content: bool  # of the message with the calls


@dataclass(frozen=True)
class TemplateAbilities:
    """What a template shows of what it is given."""

    tools: bool
    system: bool  # messages of this role
    results: bool  # messages of the role tool
    calls: CallForm | None  # None: it does not show earlier calls
    variables: frozenset[str]  # that the template reads, besides messages and tools
    names: frozenset[str]  # of attributes and keys that it looks for, and other texts in it


def template_abilities(template: ChatTemplate, with_tools: bool) -> TemplateAbilities:
    """Return what a template shows in requests with or without tools."""
    user = {"role": "user", "content": "probe"}
    tools = [_tool()] if with_tools else None
    limit = WorkLimit(_SECONDS)

    def rendered(*messages: Mapping[str, Any]) -> str:
        try:
            return template.render_within(limit, messages, True, tools)
        except ValueError:  # refused
            return ""

    system = {"role": "system", "content": _SYSTEM}
    calls, results = None, False
    for null_content, call_id, as_text in product((False, True), _IDS, (False, True)):
        text = rendered(user, _call(call_id, as_text, null_content), _result(call_id))
        results = results or _RESULT in text
        # An object that is written as Python would is no JSON.
        if _CALLED_NAME in text and _KEY in text and f"'{_KEY}'" not in text:
            calls = CallForm(as_text, call_id == _IDS[1], null_content)
            results = _RESULT in text
            break
    trees = [parse_template(source) for source in (template.source, template.tool_source) if source]
    # Before the variables: finding these folds constants of the trees.
    names = frozenset().union(*map(_names, trees))
    if calls is None and "tool_calls" in names:
        calls = CallForm(False, False, False)  # it shows them in a way of its own
    return TemplateAbilities(
        tools=_TOOL_NAME in rendered(user) or _TOOL_NAME in rendered(system, user),
        system=_SYSTEM in rendered(system, user),
        results=results,
        calls=calls,
        variables=frozenset().union(*map(meta.find_undeclared_variables, trees)),
        names=names,
    )


def _tool() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}}
    function = {"name": _TOOL_NAME, "description": "a", "parameters": parameters}
    return {"type": "function", "function": function}


def _call(call_id: str, as_text: bool, null_content: bool) -> dict[str, Any]:
    arguments = f'{{"{_KEY}": "a"}}' if as_text else {_KEY: "a"}
    function = {"name": _CALLED_NAME, "arguments": arguments}
    calls = [{"id": call_id, "type": "function", "function": function}]
    content = None if null_content else ""
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "content": _RESULT, "tool_call_id": call_id, "name": _CALLED_NAME}


def _names(tree: nodes.Template) -> frozenset[str]:
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return frozenset(attributes | constants)
