"""POST /v1/responses, without storage: every request has the whole input."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from sarathi.engine.output_processor import Delta
from sarathi.server.conversation_reply import conversation_reply
from sarathi.server.generation_core import TokenUsage
from sarathi.server.generation_request import generation_request
from sarathi.server.openai.chat_completions import TokenLogprob, chat_logprobs
from sarathi.server.openai.responses_request import (
    ResponsesRequest,
    TextFormat,
    read_responses_input,
)
from sarathi.server.output_blocks import Block, BlockPiece, BlockTranslator
from sarathi.server.request_body import is_given, value_or
from sarathi.server.responses import ApiError
from sarathi.server.service import RequestContext, Service

_LOGPROBS = "message.output_text.logprobs"  # what `include` has to ask for
_ENCODER = msgspec.json.Encoder()


async def create_response(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/responses; raises `ApiError` for a wrong request."""
    _, request = service.read(call, ResponsesRequest)
    generation = generation_request(
        request, max_tokens=request.max_output_tokens, user=request.user
    )
    with_logprobs = _LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    return await conversation_reply(
        service,
        call,
        read_responses_input(request),
        generation,
        ResponsesTranslator(service, request),
        logprobs=value_or(request.top_logprobs, 0) if with_logprobs else None,
        field_names={"max_tokens": "max_output_tokens", "logprobs": "top_logprobs"},
    )


async def find_response(service: Service, request: Request) -> Response:
    """Answer requests for a response of earlier: there is none."""
    raise ApiError(
        404,
        f"There is no response {request.path_params['id']!r:.100}: nothing is stored here.",
        code="response_not_found",
    )


class ResponsesTranslator(BlockTranslator):
    """Makes a response of an output: its blocks are the items."""

    def __init__(self, service: Service, request: ResponsesRequest) -> None:
        super().__init__()
        self._tokenizer = service.tokenizer
        self._token = secrets.token_hex(16)  # of all ids of this response
        self._sequence_number = 0  # of the next event
        self._delta_start = b""  # of each delta of the block, which then has the text
        self._head = {
            "id": f"resp_{self._token}",
            "created_at": int(time.time()),
            "model": service.model,
            **_head(request),
        }

    def start_events(self, usage: TokenUsage) -> bytes:
        response = self._response("in_progress", None)
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def block_start(self, block: Block) -> bytes:
        kind = f"response.{_TEXT_EVENTS[block.kind]}.delta"
        start = _ENCODER.encode({"type": kind, **self._place(block)})[:-1]
        self._delta_start = b"event: %s\ndata: %s," % (kind.encode(), start)
        item = self._item(block, "in_progress") | _EMPTY[block.kind]
        events = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "call":
            part = _part(block, []) | {"text": ""}
            events += self._part_event(block, "response.content_part.added", part=part)
        return events

    def block_delta(self, piece: BlockPiece) -> bytes:
        end = b"}\n\n"
        if piece.block.kind == "text":
            logprobs = _ENCODER.encode(self._logprobs(piece.scored)) if piece.scored else b"[]"
            end = b',"logprobs":%s}\n\n' % logprobs
        text = _ENCODER.encode(piece.text)
        number, self._sequence_number = self._sequence_number, self._sequence_number + 1
        return b'%s"sequence_number":%d,"delta":%s%s' % (self._delta_start, number, text, end)

    def block_end(self, block: Block) -> bytes:
        item = self._item(block, self._status_of(block))
        done = f"response.{_TEXT_EVENTS[block.kind]}.done"
        if block.kind == "call":
            events = self._part_event(block, done, name=item["name"], arguments=item["arguments"])
        else:
            (part,) = item["content"]
            fields = {"logprobs": part["logprobs"]} if block.kind == "text" else {}
            events = self._part_event(block, done, text=part["text"], **fields)
            events += self._part_event(block, "response.content_part.done", part=part)
        return events + self._event(
            "response.output_item.done", output_index=block.index, item=item
        )

    def end_events(self, usage: TokenUsage) -> bytes:
        response = self.whole(usage)
        return self._event(f"response.{response['status']}", response=response)

    def error(self, error: ApiError) -> bytes:
        reason = {"code": "server_error", "message": str(error)}
        response = self._response("failed", None) | {"error": reason}
        return self._event("response.failed", response=response)

    def whole(self, usage: TokenUsage) -> dict[str, Any]:
        if self.finish_reason == "length":
            details = {"reason": "max_output_tokens"}
            return self._response("incomplete", usage) | {"incomplete_details": details}
        return self._response("completed", usage) | {"completed_at": int(time.time())}

    def _response(self, status: str, usage: TokenUsage | None) -> dict[str, Any]:
        """Return the response with the items so far, which are in it once it has ended."""
        blocks = [] if status == "in_progress" else self.reader.blocks
        return self._head | {
            "status": status,
            "output": [self._item(block, self._status_of(block)) for block in blocks],
            "usage": None if usage is None else _usage(usage),
        }

    def _status_of(self, block: Block) -> str:
        """Return the status of an item when the next one or the end has come."""
        cut = self.finish_reason != "stop" and block is self.reader.blocks[-1]
        return "incomplete" if cut else "completed"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        if block.call is not None:
            return item | {
                "type": "function_call",
                "call_id": block.call.id,
                "name": block.call.name,
                "arguments": block.text,
            }
        part = _part(block, self._logprobs(block.scored))
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": [part]}
        return item | {"type": "message", "role": "assistant", "content": [part]}

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._token}{block.index:04x}"

    def _logprobs(self, scored: Sequence[Delta]) -> list[TokenLogprob]:
        return [one for delta in scored for one in chat_logprobs(self._tokenizer, delta).content]

    def _part_event(self, block: Block, kind: str, **fields: Any) -> bytes:
        """Return an event about the content of an item, or the arguments of a call."""
        return self._event(kind, **self._place(block), **fields)

    def _place(self, block: Block) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        return place if block.kind == "call" else place | {"content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), _ENCODER.encode(event))


# What differs in an item that begins.
_EMPTY: dict[str, dict[str, Any]] = {
    "reasoning": {"content": []},
    "text": {"content": []},
    "call": {"arguments": ""},
}
_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_TEXT_EVENTS = {
    "reasoning": "reasoning_text",
    "text": "output_text",
    "call": "function_call_arguments",
}


def _part(block: Block, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the only part of a message or of reasoning."""
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {
        "type": "output_text",
        "text": block.text,
        "annotations": [],
        "logprobs": logprobs,
    }


def _head(request: ResponsesRequest) -> dict[str, Any]:
    """Return the fields of a response that the request determines."""
    form, reasoning = request.text_format, request.reasoning
    verbosity = None if request.text is None else request.text.verbosity
    return {
        "object": "response",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": value_or(request.parallel_tool_calls, True),
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": None if reasoning is None else reasoning.effort,
            "summary": None if reasoning is None else reasoning.summary,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": value_or(request.temperature, 1.0),
        "text": {"format": _format(form), "verbosity": verbosity or "medium"},
        "tool_choice": value_or(request.tool_choice, "auto"),
        "tools": request.tools or [],
        "top_logprobs": value_or(request.top_logprobs, 0),
        "top_p": value_or(request.top_p, 1.0),
        "truncation": "disabled",
        "user": request.user if is_given(request.user) else None,
    }


def _format(form: TextFormat) -> dict[str, Any]:
    """Return the format of the text as a response has it."""
    if form.type != "json_schema":
        return {"type": form.type}
    return {
        "type": form.type,
        "name": form.name or "response",
        "description": form.description,
        "schema": form.schema,
        "strict": value_or(form.strict, False),
    }


def _usage(usage: TokenUsage) -> dict[str, Any]:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": prompt + completion,
    }
