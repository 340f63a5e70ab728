"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.choices import GenerationJob
from sarathi.server.collect import CollectedReply
from sarathi.server.openai.api_errors import invalid, too_long
from sarathi.server.openai.logprob_formats import completion_logprobs
from sarathi.server.openai.request_bodies import CompletionRequest, decode
from sarathi.server.openai.response_bodies import (
    ChunkHead,
    Completion,
    CompletionChoice,
    Usage,
)
from sarathi.server.openai.sampling_fields import check_token_ids, completion_choices, first
from sarathi.server.openai.scheduling_fields import request_terms
from sarathi.server.service import RequestContext, Service, new_id
from sarathi.server.stream import ChunkEncoder, StreamReply

# Prompts times n: each is a request to the engine.
MAX_CHOICES = 1024


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    echo: str  # its text as it goes before each output; empty unless asked for


async def create_completion(service: Service, call: RequestContext) -> ASGIApp:
    """
    Raises:
        ApiError: the request is wrong, or the engine takes none.
    """
    info = service.ready()
    request = decode(call.body, CompletionRequest)
    service.check_model(request.model)
    terms = request_terms(request, info, call.key)
    parts = _parts(request, info)
    prompts = await service.pool.run(
        len(call.body), lambda limit: [_prompt(service, request, part, limit) for part in parts]
    )
    choices = completion_choices(request, [len(prompt.ids) for prompt in prompts], info)
    job = GenerationJob(
        [(prompt.ids, of_one) for prompt, of_one in zip(prompts, choices, strict=True)], terms
    )
    echo = [prompt.echo for prompt, of_one in zip(prompts, choices, strict=True) for _ in of_one]
    head = ChunkHead(
        id=new_id("cmpl"),
        object="text_completion",
        created=int(time.time()),
        model=service.model,
    )
    if request.stream:
        encoder = ChunkEncoder(head, request.stream_options)
        return StreamReply(service, job, CompletionEvents(service.tokenizer, encoder, echo))
    return CollectedReply(service, job, CompletionBody(service.tokenizer, head, echo))


@dataclass(frozen=True)
class CompletionEvents:
    tokenizer: Tokenizer
    encoder: ChunkEncoder
    echo: Sequence[str]
    _begun: set[int] = field(default_factory=set)

    def event(self, index: int, delta: Delta) -> bytes:
        text = delta.text
        if index not in self._begun:
            self._begun.add(index)
            text = self.echo[index] + text
        if not (text or delta.logprobs or delta.finish_reason):
            return b""
        return self.encoder.chunk(completion_choice(self.tokenizer, index, delta, text))


@dataclass(frozen=True)
class CompletionBody:
    tokenizer: Tokenizer
    head: ChunkHead
    echo: Sequence[str]

    def body(self, outputs: Sequence[Delta], usage: Usage) -> Completion:
        return Completion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=[
                completion_choice(self.tokenizer, index, output, self.echo[index] + output.text)
                for index, output in enumerate(outputs)
            ],
            usage=usage,
        )


def completion_choice(
    tokenizer: Tokenizer, index: int, delta: Delta, text: str
) -> CompletionChoice:
    logprobs = completion_logprobs(tokenizer, delta) if delta.logprobs else None
    return CompletionChoice(index, text, logprobs, delta.finish_reason)


def _parts(request: CompletionRequest, info: ModelInfo) -> list[str | list[int]]:
    """The prompts, each a text or token ids."""
    prompt = request.prompt
    if prompt is None:
        raise invalid("prompt is required.", "prompt", code="missing_required_parameter")
    if isinstance(prompt, str):
        prompt = [prompt]
    count = sum(not isinstance(part, int) for part in prompt)
    if count > 1 and count * first(request.n, 1) > MAX_CHOICES:
        raise invalid(
            f"The request has {count} prompts, n times each;"
            f" at most {MAX_CHOICES} choices are possible.",
            "prompt",
        )
    kinds = {type(part) for part in prompt}
    if len(kinds) > 1:
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
            check_token_ids(part, info, "prompt")
    return parts


def _prompt(
    service: Service, request: CompletionRequest, part: str | list[int], limit: WorkLimit
) -> Prompt:
    limit.check_cancelled()
    if not isinstance(part, str):
        if not request.echo:
            return Prompt(part, "")
        skip = first(request.skip_special_tokens, True)
        return Prompt(part, service.tokenizer.decode(part, skip_special_tokens=skip))
    ids = service.encode(part, first(request.add_special_tokens, True), limit)
    if not ids:
        raise invalid("prompt has no tokens.", "prompt")
    return Prompt(ids, part if request.echo else "")
