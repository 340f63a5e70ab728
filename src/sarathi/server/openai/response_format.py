"""What the responses of OpenAI's generating endpoints have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.generation_core import TokenUsage
from sarathi.server.responses import ApiError
from sarathi.server.service import Service, new_id

# JSON has no minus infinity; OpenAI writes this for what cannot be sampled.
MIN_LOGPROB = -9999.0

_ENCODER = msgspec.json.Encoder()
_DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(Struct, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int  # found in the prefix cache


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None  # absent while a stream goes on


class StreamOptions(Struct, forbid_unknown_fields=True):
    """The field `stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # no effect: padding is never sent


class ResponseHead(Struct, frozen=True, kw_only=True):
    """The fields that begin a response, and every chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None = None


class WholeResponse(ResponseHead, frozen=True, kw_only=True):
    """A response that is not streamed."""

    choices: Sequence[Struct]
    usage: Usage


def new_head(service: Service, id_prefix: str, object_name: str) -> ResponseHead:
    """Return the head of a response that begins now."""
    return ResponseHead(
        id=new_id(id_prefix), object=object_name, created=int(time.time()), model=service.model
    )


def whole_response(
    head: ResponseHead, choices: Sequence[Struct], usage: TokenUsage
) -> WholeResponse:
    """Return the body of a response with all choices."""
    return WholeResponse(**msgspec.structs.asdict(head), choices=choices, usage=usage_body(usage))


def usage_body(usage: TokenUsage) -> Usage:
    """Return the field `usage` of a complete response."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(usage.cached_tokens))


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's own text; that of a part of a character as OpenAI writes it."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChunkEncoder:
    """Encodes the chunks of one stream: a constant beginning, the choice, a constant end.

    Implements `StreamFraming`.
    """

    def __init__(self, head: ResponseHead, options: StreamOptions | None) -> None:
        include_usage = options is not None and bool(options.include_usage)
        continuous = options is not None and bool(options.continuous_usage_stats)
        self.report_usage: Callable[[int, int], None] | None = (
            self._set_usage if continuous else None
        )
        self._include_usage = include_usage
        self._head = b"data: " + _ENCODER.encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def chunk(self, choice: Struct) -> bytes:
        """Return the event of a chunk with one choice."""
        return self._head + _ENCODER.encode(choice) + self._tail

    def end(self, usage: TokenUsage) -> bytes:
        return self._head + _usage_tail(usage_body(usage)) + _DONE if self._include_usage else _DONE

    def error(self, error: ApiError) -> bytes:
        return b"data: " + _ENCODER.encode(error.body) + b"\n\n"

    def _set_usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        total = prompt_tokens + completion_tokens
        self._tail = _usage_tail(Usage(prompt_tokens, completion_tokens, total))


def _usage_tail(usage: Usage) -> bytes:
    return b'],"usage":' + _ENCODER.encode(usage) + b"}\n\n"
