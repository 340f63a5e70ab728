"""POST /v1/messages and POST /v1/messages/count_tokens."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.types import ASGIApp

from sarathi.server.anthropic.messages_request import (
    MessagesRequest,
    RequestMetadata,
    read_messages,
)
from sarathi.server.conversation import encode_conversation
from sarathi.server.conversation_reply import conversation_reply
from sarathi.server.generation_core import TokenUsage
from sarathi.server.generation_request import generation_request
from sarathi.server.output_blocks import Block, BlockPiece, BlockTranslator
from sarathi.server.responses import ApiError, anthropic_error, json_response
from sarathi.server.service import RequestContext, Service

_ENCODER = msgspec.json.Encoder()


async def create_message(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/messages; raises `ApiError` for a wrong request."""
    _, request = service.read(call, MessagesRequest)
    generation = generation_request(
        request,
        max_tokens=request.max_tokens,
        top_k=request.top_k,
        stop=request.stop_sequences,
        user=(request.metadata or RequestMetadata()).user_id,
    )
    conversation, translator = read_messages(request), MessagesTranslator(service)
    return await conversation_reply(
        service, call, conversation, generation, translator, field_names={"stop": "stop_sequences"}
    )


async def count_tokens(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/messages/count_tokens; raises `ApiError` for a wrong request."""
    _, request = service.read(call, MessagesRequest)
    encoded = await encode_conversation(service, call, read_messages(request))
    return json_response({"input_tokens": len(encoded.prompt_ids)})


class MessagesTranslator(BlockTranslator):
    """Makes a message of an output."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._delta_start = b""  # of each delta of the block, which then has the text
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": service.model,
        }

    def start_events(self, usage: TokenUsage) -> bytes:
        end: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**self._head, **end, "usage": _usage(usage)}
        return _event("message_start", message=message)

    def block_start(self, block: Block) -> bytes:
        delta = _event("content_block_delta", index=block.index, delta=_DELTAS[block.kind])
        self._delta_start = delta.removesuffix(b'""}}\n\n')
        return _event(
            "content_block_start", index=block.index, content_block=_block(block, empty=True)
        )

    def block_delta(self, piece: BlockPiece) -> bytes:
        return self._delta_start + _ENCODER.encode(piece.text) + b"}}\n\n"

    def block_end(self, block: Block) -> bytes:
        events = b""
        if block.kind == "reasoning":
            signature = {"type": "signature_delta", "signature": _SIGNATURE}
            events = _event("content_block_delta", index=block.index, delta=signature)
        return events + _event("content_block_stop", index=block.index)

    def end_events(self, usage: TokenUsage) -> bytes:
        end = _event("message_delta", delta=self._stop(), usage=_usage(usage))
        return end + _event("message_stop")

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: %s\n\n" % _ENCODER.encode(anthropic_error(error))

    def whole(self, usage: TokenUsage) -> object:
        content = [_block(block) for block in self.reader.blocks]
        return {**self._head, "content": content, **self._stop(), "usage": _usage(usage)}

    def _stop(self) -> dict[str, str | None]:
        reason = "max_tokens" if self.finish_reason == "length" else "end_turn"
        if self.stop_string is not None:
            reason = "stop_sequence"
        elif reason == "end_turn" and self.reader.has_calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": self.stop_string}


_SIGNATURE = ""  # of thinking; clients expect one, and send it back to nobody who would check it
_DELTAS = {
    "reasoning": {"type": "thinking_delta", "thinking": ""},
    "text": {"type": "text_delta", "text": ""},
    "call": {"type": "input_json_delta", "partial_json": ""},
}


def _block(block: Block, *, empty: bool = False) -> dict[str, Any]:
    """Return a block of a message, or how it begins."""
    text = "" if empty else block.text
    if block.call is not None:
        arguments = {} if empty else block.arguments
        call = block.call
        return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": _SIGNATURE}
    return {"type": "text", "text": text, "citations": None}


def _usage(usage: TokenUsage) -> dict[str, int]:
    """Return the tokens as Anthropic counts them: cached ones are not among the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    data = _ENCODER.encode({"type": kind, **fields})
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)
