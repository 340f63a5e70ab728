"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.grammar import Grammar
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.server.generation_core import Choices, GenerationJob, GenerationReply
from sarathi.server.generation_request import (
    NO_LIMIT,
    GenerationRequest,
    count_of,
    sampling_params,
    scheduling_params,
)
from sarathi.server.openai.generation_reply import Choice, OpenAITranslator, text_and_logprob
from sarathi.server.openai.prompt_logprobs import PromptLogprobs, describe_prompt, top_tokens
from sarathi.server.request_body import Int64, check_token_ids, only, unsupported, value_or
from sarathi.server.responses import invalid, missing, too_long
from sarathi.server.service import RequestContext, Service
from sarathi.server.structured_output import requested_constraint

MAX_CHOICES = 1024  # prompts times n: each is a request to the engine
DEFAULT_MAX_TOKENS = 16  # as OpenAI's

PromptField = str | list[str | Int64 | list[Int64]]  # one prompt or several, text or token ids


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: PromptField | None = None
    echo: bool | None = None
    logprobs: Int64 | bool | None = None
    prompt_logprobs: Int64 | bool | None = None  # as vLLM has it
    best_of: Int64 | None = None  # only what n is
    suffix: Annotated[Any, only("")] = None


class CompletionLogprobs(Struct, frozen=True):
    """Parallel lists, one entry a token."""

    tokens: list[str]
    # None for the first token of a prompt, which nothing predicts
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Choice, frozen=True):
    """A choice of a text."""

    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


async def create_completion(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/completions; raises `ApiError` for a wrong request."""
    info, request = service.read(call, CompletionRequest)
    scheduling = scheduling_params(request, info, call.key_name)
    parts = prompt_parts("prompt", request.prompt, info)
    if len(parts) > 1 and len(parts) * value_or(request.n, 1) > MAX_CHOICES:
        raise invalid(
            f"The request has {len(parts)} prompts, n times each;"
            f" at most {MAX_CHOICES} choices are possible.",
            "prompt",
        )
    prompts = await service.pool.run(
        len(call.body), lambda limit: [_prompt(service, request, part, limit) for part in parts]
    )
    ids, echo = zip(*prompts, strict=True)
    constraint, grammar = requested_constraint(request), None
    if constraint is not None:
        make = constraint.grammar
        grammar = await service.pool.run(
            len(call.body), lambda _: make(service.tokenizer), renders=True
        )
    params = _choice_params(request, list(map(len, ids)), info, grammar, strict=service.strict)
    job = GenerationJob(list(zip(ids, params, strict=True)), scheduling)
    translator = CompletionTranslator(service, request, ids, echo)
    return GenerationReply(service, job, translator, bool(request.stream))


class CompletionTranslator(OpenAITranslator):
    """Makes the choices of completions."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        prompts: Sequence[Sequence[int]],
        echo: Sequence[str],
    ) -> None:
        super().__init__(service, request, "cmpl", "text_completion")
        self._request = request
        self._num_logprobs = count_of("logprobs", request.logprobs)
        self._num_prompt_logprobs = count_of("prompt_logprobs", request.prompt_logprobs)
        self._prompts = prompts
        self._echo = echo
        self._begun = [False] * (len(prompts) * (request.n or 1))  # choices with a chunk

    def choice(self, index: int, output: Delta) -> CompletionChoice:
        request, text = self._request, output.text
        prompt = index // (request.n or 1)
        echo = self._echo[prompt]
        logprobs = None
        if output.logprobs:
            logprobs = _logprobs(self.tokenizer, output, len(echo))
        prompt_logprobs: PromptLogprobs | UnsetType = UNSET
        if not self._begun[index]:
            self._begun[index] = True
            text = echo + text
            ids, found = self._prompts[prompt], output.prompt_logprobs
            if request.echo and self._num_logprobs is not None:
                offsets = _offsets(self.tokenizer, ids, echo, request)
                scored = _echoed_logprobs(self.tokenizer, ids, found, self._num_logprobs, offsets)
                logprobs = scored if logprobs is None else _joined(scored, logprobs)
            if (count := self._num_prompt_logprobs) is not None:
                prompt_logprobs = describe_prompt(self.tokenizer, ids, found, count)
        return CompletionChoice(index, text, logprobs, output.finish_reason, prompt_logprobs)

    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        choice = self.choice(index, delta)
        if not (choice.text or choice.logprobs or choice.finish_reason):
            return b""
        return self.chunk(choice, choices)


def _logprobs(tokenizer: Tokenizer, delta: Delta, begin: int) -> CompletionLogprobs:
    """Return the log probabilities of an output, whose text begins at character `begin`."""
    found = CompletionLogprobs([], [], [], [begin + offset for offset in delta.offsets])
    for token, at in zip(delta.token_ids, delta.logprobs, strict=True):
        _append(found, tokenizer, token, at, len(at.top_ids))
    return found


def _append(
    found: CompletionLogprobs, tokenizer: Tokenizer, token: int, at: TokenLogprobs, count: int
) -> None:
    """Append a token with up to `count` alternatives."""
    text, logprob = text_and_logprob(tokenizer, token, at.logprob)
    found.tokens.append(text)
    found.token_logprobs.append(logprob)
    top = dict(text_and_logprob(tokenizer, *each) for each in top_tokens(token, at, count).items())
    found.top_logprobs.append(top)


def _echoed_logprobs(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    entries: Sequence[TokenLogprobs],
    count: int,
    offsets: list[int],
) -> CompletionLogprobs:
    """Return the log probabilities of a prompt, with up to `count` alternatives."""
    first, _ = text_and_logprob(tokenizer, ids[0], 0.0)
    found = CompletionLogprobs([first], [None], [None], offsets)
    for token, at in zip(ids[1:], entries, strict=True):
        _append(found, tokenizer, token, at, count)
    return found


def _joined(prompt: CompletionLogprobs, output: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        prompt.tokens + output.tokens,
        prompt.token_logprobs + output.token_logprobs,
        prompt.top_logprobs + output.top_logprobs,
        prompt.text_offset + output.text_offset,
    )


def _offsets(
    tokenizer: Tokenizer, ids: Sequence[int], echo: str, request: CompletionRequest
) -> list[int]:
    """Return where the text of each token of a prompt begins in its echo."""
    given_as_ids = not isinstance(request.prompt, str) and not (
        request.prompt and isinstance(request.prompt[0], str)
    )
    skip = given_as_ids and value_or(request.skip_special_tokens, True)
    stream = tokenizer.stream(skip_special_tokens=skip)
    offsets, length = [], 0
    for token in ids:
        offsets.append(length)
        length += len(stream.push([token]))
    length += len(stream.flush())
    # A text does not have the special tokens that are put before it.
    before = max(0, length - len(echo))
    return [max(0, offset - before) for offset in offsets]


def _choice_params(
    request: CompletionRequest,
    lengths: Sequence[int],
    info: ModelInfo,
    grammar: Grammar | None,
    *,
    strict: bool,
) -> list[list[SamplingParams]]:
    """Return the params of the n outputs of each prompt, given the prompts' lengths in tokens.

    A prompt limits only its own outputs. Prompts that leave the same number of tokens share their
    params: a thousand prompts are not checked a thousand times.
    """
    if request.best_of is not None and request.best_of != value_or(request.n, 1):
        raise unsupported("best_of")
    logprobs = count_of("logprobs", request.logprobs)
    of_prompt = [
        count_of("prompt_logprobs", request.prompt_logprobs),
        logprobs if request.echo else None,
    ]
    prompt_logprobs = max((count for count in of_prompt if count is not None), default=None)
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
                prompt_logprobs=prompt_logprobs,
                strict=strict,
                least_tokens=0,
                grammar=grammar,
                default_max_tokens=DEFAULT_MAX_TOKENS,
            ).choices()
        return shared[max_tokens]

    choices(max(lengths))  # the first to be refused, if any is
    return [choices(length) for length in lengths]


def prompt_parts(
    field: str, prompt: PromptField | None, info: ModelInfo
) -> Sequence[str | list[int]]:
    """Return the prompts that a field holds, each a text or token ids."""
    if prompt is None:
        raise missing(field)
    if isinstance(prompt, str):
        prompt = [prompt]
    token_ids = [part for part in prompt if isinstance(part, int)]
    parts = [part for part in prompt if not isinstance(part, int)]
    if len({type(part) for part in prompt}) > 1:
        raise invalid(f"{field} mixes texts, token ids and lists of token ids.", field)
    if token_ids:
        parts = [token_ids]
    if not parts or not all(parts):
        raise invalid(f"{field} is empty.", field)
    for part in parts:
        if not isinstance(part, str):
            if len(part) > info.max_model_len:
                raise too_long(info.max_model_len, f"the prompt has {len(part)}")
            check_token_ids(field, part, info.vocab_size)
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
