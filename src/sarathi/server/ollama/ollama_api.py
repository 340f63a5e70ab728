"""POST /api/chat, /api/generate and /api/show, GET /api/tags and /api/version, as Ollama has them.

Streams are lines of JSON, and the default. A request without a prompt, which asks to load the
model, gets an empty answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from sarathi import __version__
from sarathi.server.conversation_reply import conversation_reply
from sarathi.server.generation_core import TokenUsage
from sarathi.server.generation_request import Stop
from sarathi.server.openai.chat_completions import ChatRequest
from sarathi.server.openai.chat_messages import Message, Tools, read_conversation
from sarathi.server.output_blocks import Block, BlockPiece, BlockTranslator
from sarathi.server.request_body import NOT_GIVEN, Int64, ModelRequest, NoEffect, only, value_or
from sarathi.server.responses import ApiError, json_response, ollama_error
from sarathi.server.service import RequestContext, Service
from sarathi.server.structured_output import format_constraint

_ENCODER = msgspec.json.Encoder()


class OllamaOptions(Struct):
    """The field `options` of a request."""

    num_predict: Int64 | None = None  # below 0: no limit
    temperature: float | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Stop | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


# Those that OpenAI's requests have under the same name.
_SAME_OPTIONS = [
    name for name in OllamaOptions.__struct_fields__ if name in ChatRequest.__struct_fields__
]


class OllamaMessage(Message, kw_only=True):
    """One message, in OpenAI's form but for these fields."""

    thinking: str | None = None
    tool_name: str | None = None


class OllamaRequest(ModelRequest, kw_only=True):
    """Body of POST /api/chat and POST /api/generate."""

    messages: list[OllamaMessage] | None = None  # of a chat
    tools: Tools = None
    prompt: str | None = None  # otherwise
    system: str | None = None
    stream: bool | None = None
    options: OllamaOptions | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: NoEffect = NOT_GIVEN
    raw: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None
    template: Annotated[Any, only("")] = None
    context: Annotated[Any, only([])] = None
    images: Annotated[Any, only([])] = None


async def chat(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /api/chat; raises `ApiError` for a wrong request."""
    _, request = service.read(call, OllamaRequest)
    messages = request.messages or []
    for message in messages:
        message.reasoning_content, message.name = message.thinking, message.tool_name
    return await _reply(service, call, request, messages, is_chat=True)


async def generate(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /api/generate; raises `ApiError` for a wrong request."""
    _, request = service.read(call, OllamaRequest)
    system = [Message(role="system", content=request.system)] if request.system else []
    user = [Message(role="user", content=request.prompt)] if request.prompt else []
    return await _reply(service, call, request, [*system, *user] if user else [], is_chat=False)


async def show(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /api/show; raises `ApiError` for an unknown model."""
    info, _ = service.read(call, ModelRequest)
    template = service.tokenizer.chat_template
    # Clients look for the length of the context under the name of the architecture.
    sizes = {"general.architecture": "llm", "llm.context_length": info.max_model_len}
    described = {
        "template": "" if template is None else template.source,
        "details": {"quantization_level": info.precision},
        "model_info": sizes,
        "capabilities": ["completion", "tools"],
    }
    return json_response(described)


async def list_tags(service: Service, request: Request) -> Response:
    """Answer GET /api/tags."""
    created = datetime.fromtimestamp(service.created, UTC).isoformat()
    model = {"name": service.model, "model": service.model, "modified_at": created, "details": {}}
    return json_response({"models": [model]})


async def ollama_version(service: Service, request: Request) -> Response:
    """Answer GET /api/version."""
    return json_response({"version": __version__})


async def _reply(
    service: Service,
    call: RequestContext,
    request: OllamaRequest,
    messages: Sequence[Message],
    *,
    is_chat: bool,
) -> ASGIApp:
    translator = OllamaTranslator(service, is_chat=is_chat)
    if not messages:
        return json_response(translator.body_of({"done": True, "done_reason": "load"}))
    form, options = request.format, request.options or OllamaOptions()
    limit = options.num_predict
    asked = ChatRequest(
        stream=value_or(request.stream, True),
        messages=list(messages),
        tools=request.tools,
        thinking=None if request.think is None else bool(request.think),
        max_tokens=None if limit is None or limit < 0 else limit,
        repetition_penalty=options.repeat_penalty,
        **{name: getattr(options, name) for name in _SAME_OPTIONS},
    )
    kind = "json_object" if form == "json" else "json_schema" if form else "text"
    schema = form if isinstance(form, dict) else None
    conversation = replace(
        read_conversation(asked),
        constraint=format_constraint("format", kind, schema, lenient=True),
        reasoning_effort=request.think if isinstance(request.think, str) else None,
    )
    names = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
    return await conversation_reply(
        service, call, conversation, asked, translator, field_names=names
    )


class OllamaTranslator(BlockTranslator):
    """Makes lines of JSON of an output; a tool call is sent once it is complete."""

    stream_type = b"application/x-ndjson"

    def __init__(self, service: Service, *, is_chat: bool) -> None:
        super().__init__()
        self._model = service.model
        self._is_chat = is_chat
        self._begun_at = self._first_at = time.monotonic_ns()

    def start_events(self, usage: TokenUsage) -> bytes:
        self._first_at = time.monotonic_ns()
        return b""

    def block_start(self, block: Block) -> bytes:
        return b""

    def block_delta(self, piece: BlockPiece) -> bytes:
        if piece.block.kind == "call":
            return b""
        return self._line({"done": False}, **{_FIELDS[piece.block.kind]: piece.text})

    def block_end(self, block: Block) -> bytes:
        return self._line({"done": False}, calls=[block]) if block.kind == "call" else b""

    def end_events(self, usage: TokenUsage) -> bytes:
        return self._line(self._end(usage))

    def error(self, error: ApiError) -> bytes:
        return _ENCODER.encode(ollama_error(error)) + b"\n"

    def whole(self, usage: TokenUsage) -> dict[str, Any]:
        blocks = self.reader.blocks
        text = {
            name: "".join(block.text for block in blocks if block.kind == kind)
            for kind, name in _FIELDS.items()
        }
        calls = [block for block in blocks if block.kind == "call"]
        return self.body_of(self._end(usage), calls=calls, **text)

    def _end(self, usage: TokenUsage) -> dict[str, Any]:
        now = time.monotonic_ns()
        return {
            "done": True,
            "done_reason": self.finish_reason,
            "total_duration": now - self._begun_at,  # nanoseconds
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": self._first_at - self._begun_at,
            "eval_count": usage.completion_tokens,
            "eval_duration": now - self._first_at,
        }

    def body_of(
        self,
        fields: dict[str, Any],
        *,
        content: str = "",
        thinking: str = "",
        calls: Sequence[Block] = (),
    ) -> dict[str, Any]:
        """Return a reply, or a line of one."""
        message: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self._is_chat:
            message |= {"role": "assistant", "content": content}
            if calls:
                message["tool_calls"] = [_call(block) for block in calls]
            message = {"message": message}
        else:
            message["response"] = content
        created = datetime.now(UTC).isoformat()
        return {"model": self._model, "created_at": created, **message, **fields}

    def _line(self, fields: dict[str, Any], **message: Any) -> bytes:
        return _ENCODER.encode(self.body_of(fields, **message)) + b"\n"


_FIELDS = {"text": "content", "reasoning": "thinking"}


def _call(block: Block) -> dict[str, Any]:
    assert block.call is not None
    return {"function": {"name": block.call.name, "arguments": block.arguments}}
