"""What the replies of OpenAI's generating endpoints have in common: bodies and chunks."""

from __future__ import annotations

import secrets
import time
from abc import abstractmethod
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.generation_core import Choices, TokenUsage, Translator, join_deltas
from sarathi.server.generation_request import GenerationRequest, StreamOptions
from sarathi.server.parsers.output_parser import ParsedDelta
from sarathi.server.responses import ApiError
from sarathi.server.service import Service


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    # absent while a stream goes on
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class Choice(Struct, frozen=True):
    """One output, or what a chunk adds to it."""

    index: int


class ResponseBody(Struct, frozen=True, kw_only=True):
    """A response, or the fields that begin every chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: Sequence[Choice] | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET


_ENCODER = msgspec.json.Encoder()
_DONE = b"data: [DONE]\n\n"


class OpenAITranslator(Translator):
    """Puts outputs into the form of a generating endpoint; subclasses make the choices.

    A stream costs time per token on cores that the model needs too, so a chunk is a constant
    beginning, one choice, and an end that is constant unless each chunk has the usage so far.
    """

    def __init__(
        self, service: Service, request: GenerationRequest, id_prefix: str, object_name: str
    ) -> None:
        self.tokenizer = service.tokenizer
        self._head = ResponseBody(
            id=f"{id_prefix}-{secrets.token_hex(12)}",
            object=object_name,
            created=int(time.time()),
            model=service.model,
        )
        options = request.stream_options or StreamOptions()
        self._include_usage = bool(options.include_usage)
        self._continuous_usage = bool(options.continuous_usage_stats)
        self._chunk_start = b"data: " + _ENCODER.encode(self._head)[:-1] + b',"choices":['
        self._chunk_end = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"

    @abstractmethod
    def choice(self, index: int, output: ParsedDelta) -> Choice:
        """Return the choice of a whole output."""

    def body(self, outputs: Sequence[Sequence[Delta]], usage: TokenUsage) -> Struct:
        choices = [self.choice(index, join_deltas(deltas)) for index, deltas in enumerate(outputs)]
        return msgspec.structs.replace(self._head, choices=choices, usage=_whole_usage(usage))

    def chunk(self, choice: Choice, choices: Choices) -> bytes:
        """Return the event of a chunk with one choice; `events` is made of them."""
        if self._continuous_usage:
            prompt, completion = choices.token_counts(choice.index)
            self._chunk_end = _usage_end(Usage(prompt, completion, prompt + completion))
        return self._chunk_start + _ENCODER.encode(choice) + self._chunk_end

    def end(self, usage: TokenUsage) -> bytes:
        if not self._include_usage:
            return _DONE
        return self._chunk_start + _usage_end(_whole_usage(usage)) + _DONE

    def error(self, error: ApiError) -> bytes:
        return b"data: " + _ENCODER.encode(error.body) + b"\n\n"


def _whole_usage(usage: TokenUsage) -> Usage:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    details = {"cached_tokens": usage.cached_tokens}  # found in the prefix cache
    reasoning = {"reasoning_tokens": usage.reasoning_tokens} if usage.reasoning_tokens else None
    return Usage(prompt, completion, prompt + completion, details, reasoning)


def _usage_end(usage: Usage) -> bytes:
    return b'],"usage":' + _ENCODER.encode(usage) + b"}\n\n"


def text_and_logprob(tokenizer: Tokenizer, token: int, logprob: float) -> tuple[str, float]:
    """Return a token's own text, that of a part of a character as OpenAI writes it, and a logprob.

    JSON has no minus infinity; OpenAI writes -9999 for what cannot be sampled.
    """
    data = tokenizer.token_bytes(token)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    return text, max(logprob, -9999.0)
