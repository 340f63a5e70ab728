"""The messages of a conversation, and their prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.request_body import unsupported, value_or
from sarathi.server.responses import invalid, missing
from sarathi.server.service import RequestContext, Service

# Arguments of the template that have a request field or a meaning of their own.
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_UNSUPPORTED = ("audio", "function_call", "tool_calls", "annotations")


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation; the chat template decides which roles make sense."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None


async def encode_messages(
    service: Service,
    call: RequestContext,
    messages: Sequence[Message] | None,
    *,
    add_generation_prompt: bool | None,
    add_special_tokens: bool | None,
    template_arguments: Mapping[str, Any] | None,
) -> list[int]:
    """Render the chat template and return its prompt tokens; the last arguments are a request's.

    Raises:
        ApiError: the messages are wrong, or not what the model's template allows.
    """
    template = service.tokenizer.chat_template
    if template is None:
        raise invalid("The model has no chat template; use /v1/completions.", "messages")
    if messages is None:
        raise missing("messages")
    if not messages:
        raise invalid("messages is empty.", "messages")
    extra = dict(template_arguments or {})
    if reserved := sorted(_RESERVED & extra.keys()):
        raise invalid(
            f"chat_template_kwargs may not have {', '.join(reserved)}.", "chat_template_kwargs"
        )
    generation_prompt = value_or(add_generation_prompt, True)
    # Templates write the special tokens themselves.
    special_tokens = value_or(add_special_tokens, False)

    def work(limit: WorkLimit) -> list[int]:
        plain = [_template_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        try:
            text = template.render_within(limit, plain, generation_prompt, **extra)
        except ValueError as error:
            raise invalid(f"The chat template refuses the messages: {error}", "messages") from None
        return service.encode(text, special_tokens, limit)

    ids = await service.pool.run(len(call.body), work, renders=True)
    if not ids:
        raise invalid("messages has no tokens.", "messages")
    return ids


def _template_message(message: Message, path: str) -> dict[str, str]:
    for name in _UNSUPPORTED:
        if getattr(message, name):
            raise unsupported(f"{path}.{name}")
    plain = {"role": message.role, "content": _content(message, path)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _content(message: Message, path: str) -> str:
    """Return the text; the parts of a list are separated by a line break."""
    content = message.content
    if content is None:
        content = message.refusal
    if content is None:
        raise invalid(f"{path}.content is required.", f"{path}.content")
    if isinstance(content, str):
        return content
    if not content:
        raise invalid(f"{path}.content is empty.", f"{path}.content")
    return "\n".join(
        _part_text(part, f"{path}.content[{number}]") for number, part in enumerate(content)
    )


def _part_text(part: Mapping[str, Any], path: str) -> str:
    if part.get("type") != "text":
        raise invalid(
            f"{path}.type is {part.get('type')!r:.50}; only text is supported.", f"{path}.type"
        )
    if unknown := sorted(part.keys() - {"type", "text"}):
        raise invalid(f"Unknown field {unknown[0]!r:.50} in {path}.", f"{path}.{unknown[0]:.50}")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{path}.text is not a string.", f"{path}.text")
    return text
