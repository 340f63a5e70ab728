"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Struct
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.params import SamplingParams
from sarathi.server.generation_core import CollectedReply, GenerationJob, StreamReply, TokenUsage
from sarathi.server.openai.generation_request import (
    MIN_LOGPROB,
    ChunkEncoder,
    GenerationRequest,
    WholeResponse,
    new_head,
    sampling_params,
    scheduling_params,
    token_text,
    whole_response,
)
from sarathi.server.request_body import (
    Int64,
    check_token_ids,
    decode,
    only,
    unsupported,
    value_or,
)
from sarathi.server.responses import invalid, missing, too_long
from sarathi.server.service import RequestContext, Service

MAX_CHOICES = 1024  # prompts times n: each is a request to the engine
DEFAULT_MAX_TOKENS = 16  # as OpenAI's


class CompletionRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | Int64 | list[Int64]] | None = None
    echo: bool | None = None
    logprobs: Int64 | None = None
    best_of: Int64 | None = None  # only what n is
    suffix: Annotated[Any, only("")] = None


class CompletionLogprobs(Struct, frozen=True):
    """Parallel lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True):
    """One output, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt."""

    ids: list[int]
    echo: str  # its text as it goes before each output; empty unless asked for


async def create_completion(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/completions.

    Raises:
        ApiError: the request is wrong, or the engine takes none.
    """
    info = service.ready()
    request = decode(call.body, CompletionRequest)
    service.check_model(request.model)
    scheduling = scheduling_params(request, info, call.key_name)
    parts = _prompt_parts(request, info)
    prompts = await service.pool.run(
        len(call.body), lambda limit: [_prompt(service, request, part, limit) for part in parts]
    )
    params = _choice_params(request, [len(prompt.ids) for prompt in prompts], info)
    job = GenerationJob(
        [(prompt.ids, of_one) for prompt, of_one in zip(prompts, params, strict=True)], scheduling
    )
    echo = [prompt.echo for prompt, of_one in zip(prompts, params, strict=True) for _ in of_one]
    head = new_head(service, "cmpl", "text_completion")
    if request.stream:
        chunks = ChunkEncoder(head, request.stream_options)
        encode = CompletionChunks(service.tokenizer, chunks, echo).encode
        return StreamReply(service, job, encode, chunks)

    def body(outputs: Sequence[Delta], usage: TokenUsage) -> WholeResponse:
        choices = [
            _choice(service.tokenizer, index, output, echo[index] + output.text)
            for index, output in enumerate(outputs)
        ]
        return whole_response(head, choices, usage)

    return CollectedReply(service, job, body)


@dataclass(frozen=True)
class CompletionChunks:
    """Encodes the chunks of one stream."""

    tokenizer: Tokenizer
    chunks: ChunkEncoder
    echo: Sequence[str]  # of each choice
    _started: set[int] = field(default_factory=set)  # choices that have had a chunk

    def encode(self, index: int, delta: Delta) -> bytes:
        """Return the chunk for what a choice has generated; empty when there is nothing to send."""
        text = delta.text
        if index not in self._started:
            self._started.add(index)
            text = self.echo[index] + text
        if not (text or delta.logprobs or delta.finish_reason):
            return b""
        return self.chunks.chunk(_choice(self.tokenizer, index, delta, text))


def _choice(tokenizer: Tokenizer, index: int, delta: Delta, text: str) -> CompletionChoice:
    logprobs = _logprobs(tokenizer, delta) if delta.logprobs else None
    return CompletionChoice(index, text, logprobs, delta.finish_reason)


def _logprobs(tokenizer: Tokenizer, delta: Delta) -> CompletionLogprobs:
    top_logprobs = []
    for token, at in zip(delta.token_ids, delta.logprobs, strict=True):
        top = dict(zip(at.top_ids, at.top_logprobs, strict=True))
        top.setdefault(token, at.logprob)  # the sampled token may not be among the most probable
        top_logprobs.append(
            {
                token_text(tokenizer, other): max(logprob, MIN_LOGPROB)
                for other, logprob in top.items()
            }
        )
    return CompletionLogprobs(
        tokens=[token_text(tokenizer, token) for token in delta.token_ids],
        token_logprobs=[max(at.logprob, MIN_LOGPROB) for at in delta.logprobs],
        top_logprobs=top_logprobs,
        text_offset=delta.offsets,
    )


def _choice_params(
    request: CompletionRequest, lengths: Sequence[int], info: ModelInfo
) -> list[list[SamplingParams]]:
    """Return the params of the n outputs of each prompt, given the prompts' lengths in tokens.

    A prompt limits only its own outputs. Prompts that leave the same number of tokens share their
    params: a thousand prompts are not checked a thousand times.

    Raises:
        ApiError: status 400, naming the field that is out of range.
    """
    n = value_or(request.n, 1)
    if request.best_of is not None and request.best_of != n:
        raise unsupported("best_of")
    if request.echo and request.logprobs is not None:
        raise invalid(
            "echo and logprobs cannot be combined: logprobs of the prompt are not computed.", "echo"
        )
    longest_output = value_or(request.max_tokens, DEFAULT_MAX_TOKENS)
    shared: dict[int, list[SamplingParams]] = {}

    def choices(length: int) -> list[SamplingParams]:
        max_tokens = min(longest_output, info.max_model_len - length)
        if max_tokens not in shared:
            shared[max_tokens] = sampling_params(
                request,
                info,
                length,
                max_tokens=request.max_tokens,
                default_max_tokens=DEFAULT_MAX_TOKENS,
                logprobs=request.logprobs,
            ).choices()
        return shared[max_tokens]

    choices(max(lengths))  # the first to be refused, if any is
    return [choices(length) for length in lengths]


def _prompt_parts(request: CompletionRequest, info: ModelInfo) -> list[str | list[int]]:
    """Return the prompts, each a text or token ids."""
    prompt = request.prompt
    if prompt is None:
        raise missing("prompt")
    if isinstance(prompt, str):
        prompt = [prompt]
    count = sum(not isinstance(part, int) for part in prompt)
    if count > 1 and count * value_or(request.n, 1) > MAX_CHOICES:
        raise invalid(
            f"The request has {count} prompts, n times each;"
            f" at most {MAX_CHOICES} choices are possible.",
            "prompt",
        )
    if len({type(part) for part in prompt}) > 1:
        raise invalid("prompt mixes texts, token ids and lists of token ids.", "prompt")
    flat = [part for part in prompt if isinstance(part, int)]
    parts: list[str | list[int]] = (
        [flat] if flat else [part for part in prompt if not isinstance(part, int)]
    )
    if not parts or not all(parts):
        raise invalid("prompt is empty.", "prompt")
    for part in parts:
        if not isinstance(part, str):
            if len(part) > info.max_model_len:
                raise too_long(info.max_model_len, f"the prompt has {len(part)}")
            check_token_ids("prompt", part, info.vocab_size)
    return parts


def _prompt(
    service: Service, request: CompletionRequest, part: str | list[int], limit: WorkLimit
) -> Prompt:
    limit.check_cancelled()
    if not isinstance(part, str):
        if not request.echo:
            return Prompt(part, "")
        skip = value_or(request.skip_special_tokens, True)
        return Prompt(part, service.tokenizer.decode(part, skip_special_tokens=skip))
    ids = service.encode(part, value_or(request.add_special_tokens, True), limit)
    if not ids:
        raise invalid("prompt has no tokens.", "prompt")
    return Prompt(ids, part if request.echo else "")
