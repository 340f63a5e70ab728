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
from sarathi.server.openai.generation_reply import Choice, OpenAITranslator, text_and_logprob
from sarathi.server.openai.generation_request import (
    NO_LIMIT,
    GenerationRequest,
    sampling_params,
    scheduling_params,
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
    logprobs: Int64 | bool | None = None
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
    params = _choice_params(request, list(map(len, ids)), info, strict=service.strict)
    job = GenerationJob(list(zip(ids, params, strict=True)), scheduling)
    translator = CompletionTranslator(service, request, echo)
    return GenerationReply(service, job, translator, bool(request.stream))


class CompletionTranslator(OpenAITranslator):
    """Makes the choices of completions."""

    def __init__(self, service: Service, request: CompletionRequest, echo: Sequence[str]) -> None:
        super().__init__(service, request, "cmpl", "text_completion")
        # What each choice has yet to begin with.
        self._echo = [text for text in echo for _ in range(request.n or 1)]

    def choice(self, index: int, output: Delta) -> CompletionChoice:
        text, self._echo[index] = self._echo[index] + output.text, ""
        logprobs = _logprobs(self.tokenizer, output) if output.logprobs else None
        return CompletionChoice(index, text, logprobs, output.finish_reason)

    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        choice = self.choice(index, delta)
        if not (choice.text or choice.logprobs or choice.finish_reason):
            return b""
        return self.chunk(choice, choices)


def _logprobs(tokenizer: Tokenizer, delta: Delta) -> CompletionLogprobs:
    found = CompletionLogprobs([], [], [], delta.offsets)
    for token, at in zip(delta.token_ids, delta.logprobs, strict=True):
        text, logprob = text_and_logprob(tokenizer, token, at.logprob)
        found.tokens.append(text)
        found.token_logprobs.append(logprob)
        top = dict(zip(at.top_ids, at.top_logprobs, strict=True))
        top.setdefault(token, at.logprob)  # the sampled token may not be among the most probable
        found.top_logprobs.append(dict(text_and_logprob(tokenizer, *each) for each in top.items()))
    return found


def _choice_params(
    request: CompletionRequest, lengths: Sequence[int], info: ModelInfo, *, strict: bool
) -> list[list[SamplingParams]]:
    """Return the params of the n outputs of each prompt, given the prompts' lengths in tokens.

    A prompt limits only its own outputs. Prompts that leave the same number of tokens share their
    params: a thousand prompts are not checked a thousand times.
    """
    if request.best_of is not None and request.best_of != value_or(request.n, 1):
        raise unsupported("best_of")
    if request.logprobs is True:
        raise invalid("logprobs is true, expected a number.", "logprobs", code="invalid_type")
    logprobs = None if request.logprobs is False else request.logprobs
    if request.echo and logprobs is not None:
        raise invalid(
            "echo and logprobs cannot be combined: logprobs of the prompt are not computed.", "echo"
        )
    longest_output = value_or(request.max_tokens, DEFAULT_MAX_TOKENS)
    if longest_output == NO_LIMIT:
        longest_output = info.max_model_len
    shared: dict[int, list[SamplingParams]] = {}

    def choices(length: int) -> list[SamplingParams]:
        max_tokens = min(longest_output, info.max_model_len - length)
        if max_tokens not in shared:
            shared[max_tokens] = sampling_params(
                request,
                info,
                length,
                logprobs=logprobs,
                strict=strict,
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
