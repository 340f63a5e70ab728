"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Struct
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.params import SamplingParams
from sarathi.server.generation_core import Choices, GenerationJob, GenerationReply
from sarathi.server.openai.generation_request import (
    MIN_LOGPROB,
    Choice,
    GenerationRequest,
    OpenAITranslator,
    sampling_params,
    scheduling_params,
    token_text,
)
from sarathi.server.request_body import Int64, check_token_ids, only, unsupported, value_or
from sarathi.server.responses import invalid, missing, too_long
from sarathi.server.service import RequestContext, Service

MAX_CHOICES = 1024  # prompts times n: each is a request to the engine
DEFAULT_MAX_TOKENS = 16  # as OpenAI's


class CompletionRequest(GenerationRequest, kw_only=True):
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


class CompletionChoice(Choice, frozen=True):
    """A choice of a text."""

    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


async def create_completion(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/completions; raises `ApiError` for a wrong request."""
    info, request = service.read(call, CompletionRequest)
    scheduling = scheduling_params(request, info, call.key_name)
    parts = _prompt_parts(request, info)
    prompts = await service.pool.run(
        len(call.body), lambda limit: [_prompt(service, request, part, limit) for part in parts]
    )
    ids, echo = zip(*prompts, strict=True)
    params = _choice_params(request, list(map(len, ids)), info)
    job = GenerationJob(list(zip(ids, params, strict=True)), scheduling)
    translator = CompletionTranslator(service, request, echo)
    return GenerationReply(service, job, translator, bool(request.stream))


class CompletionTranslator(OpenAITranslator):
    """Makes the choices of completions."""

    def __init__(self, service: Service, request: CompletionRequest, echo: Sequence[str]) -> None:
        super().__init__(service, request, "cmpl", "text_completion")
        self._echo = [text for text in echo for _ in range(request.n or 1)]  # before each choice
        self._started: set[int] = set()  # choices that have had a chunk

    def choice(self, index: int, output: Delta) -> CompletionChoice:
        return self._choice(index, output, self._echo[index] + output.text)

    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        text = delta.text
        if index not in self._started:
            self._started.add(index)
            text = self._echo[index] + text
        if not (text or delta.logprobs or delta.finish_reason):
            return b""
        return self.chunk(self._choice(index, delta, text), choices)

    def _choice(self, index: int, delta: Delta, text: str) -> CompletionChoice:
        logprobs = _logprobs(self.tokenizer, delta) if delta.logprobs else None
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
    """
    if request.best_of is not None and request.best_of != value_or(request.n, 1):
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
                logprobs=request.logprobs,
                default_max_tokens=DEFAULT_MAX_TOKENS,
            ).choices()
        return shared[max_tokens]

    choices(max(lengths))  # the first to be refused, if any is
    return [choices(length) for length in lengths]


def _prompt_parts(request: CompletionRequest, info: ModelInfo) -> Sequence[str | list[int]]:
    """Return the prompts, each a text or token ids."""
    prompt = request.prompt
    if prompt is None:
        raise missing("prompt")
    if isinstance(prompt, str):
        prompt = [prompt]
    token_ids = [part for part in prompt if isinstance(part, int)]
    parts = [part for part in prompt if not isinstance(part, int)]
    if len(parts) > 1 and len(parts) * value_or(request.n, 1) > MAX_CHOICES:
        raise invalid(
            f"The request has {len(parts)} prompts, n times each;"
            f" at most {MAX_CHOICES} choices are possible.",
            "prompt",
        )
    if len({type(part) for part in prompt}) > 1:
        raise invalid("prompt mixes texts, token ids and lists of token ids.", "prompt")
    if token_ids:
        parts = [token_ids]
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
) -> tuple[list[int], str]:
    """Return a prompt's token ids, and its text if the outputs are to begin with it."""
    limit.check_cancelled()
    if isinstance(part, str):
        ids = service.encode(part, value_or(request.add_special_tokens, True), limit)
        if not ids:
            raise invalid("prompt has no tokens.", "prompt")
        return ids, part if request.echo else ""
    if not request.echo:
        return part, ""
    skip = value_or(request.skip_special_tokens, True)
    return part, service.tokenizer.decode(part, skip_special_tokens=skip)
