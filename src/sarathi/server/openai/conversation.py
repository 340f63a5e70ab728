"""From the messages of a chat to prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.openai.api_errors import ApiError, invalid
from sarathi.server.openai.request_bodies import Message
from sarathi.server.service import RequestContext, Service

# Arguments of the template that have a field, or a meaning, of their own.
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_UNSUPPORTED = ("audio", "function_call", "tool_calls", "annotations")


async def encode_messages(
    service: Service,
    call: RequestContext,
    messages: Sequence[Message] | None,
    *,
    add_generation_prompt: bool,
    add_special_tokens: bool,
    template_arguments: Mapping[str, Any] | None,
) -> list[int]:
    """
    Raises:
        ApiError: the messages are wrong, or not what the model's template allows.
    """
    template = service.tokenizer.chat_template
    if template is None:
        raise invalid("The model has no chat template; use /v1/completions.", "messages")
    if messages is None:
        raise invalid("messages is required.", "messages", code="missing_required_parameter")
    if not messages:
        raise invalid("messages is empty.", "messages")
    extra = dict(template_arguments or {})
    if taken := sorted(_RESERVED & extra.keys()):
        raise invalid(
            f"chat_template_kwargs may not have {', '.join(taken)}.", "chat_template_kwargs"
        )

    def work(limit: WorkLimit) -> list[int]:
        plain = [_plain(message, index) for index, message in enumerate(messages)]
        try:
            text = template.render_within(limit, plain, add_generation_prompt, **extra)
        except ValueError as error:
            raise invalid(f"The chat template refuses the messages: {error}", "messages") from None
        return service.encode(text, add_special_tokens, limit)

    ids = await service.pool.run(len(call.body), work, renders=True)
    if not ids:
        raise invalid("messages has no tokens.", "messages")
    return ids


def _plain(message: Message, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    for name in _UNSUPPORTED:
        if getattr(message, name):
            raise _unsupported(f"{where}.{name}")
    plain = {"role": message.role, "content": _content(message, where)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _content(message: Message, where: str) -> str:
    """The text; the parts of a list are separated by a line break."""
    content = message.content
    if content is None:
        content = message.refusal
    if content is None:
        raise invalid(f"{where}.content is required.", f"{where}.content")
    if isinstance(content, str):
        return content
    if not content:
        raise invalid(f"{where}.content is empty.", f"{where}.content")
    return "\n".join(
        _text(part, f"{where}.content[{number}]") for number, part in enumerate(content)
    )


def _text(part: Mapping[str, Any], where: str) -> str:
    if part.get("type") != "text":
        raise invalid(
            f"{where}.type is {part.get('type')!r:.50}; only text is supported.", f"{where}.type"
        )
    if unknown := sorted(part.keys() - {"type", "text"}):
        raise invalid(f"Unknown field {unknown[0]!r:.50} in {where}.", f"{where}.{unknown[0]:.50}")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text is not a string.", f"{where}.text")
    return text


def _unsupported(field: str) -> ApiError:
    return invalid(f"{field} is not supported.", field, code="unsupported_parameter")
