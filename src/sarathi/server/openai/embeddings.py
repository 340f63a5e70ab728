"""POST /v1/embeddings: the hidden states of texts, pooled to one vector each.

An embedding is a request that samples nothing: its chunks are computed beside everything else.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec import Raw, Struct
from starlette.responses import Response
from starlette.types import ASGIApp

from sarathi.fleet.engine_client import EngineError, Generation
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.sampling.params import Pooling, SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.server.generation_request import tenant_of
from sarathi.server.openai.completions import PromptField, prompt_parts
from sarathi.server.request_body import NOT_GIVEN, Int64, ModelRequest, value_or
from sarathi.server.responses import (
    ApiError,
    generation_failed,
    invalid,
    json_response,
    too_long,
)
from sarathi.server.service import RequestContext, Service

MAX_INPUTS = 2048  # as OpenAI's: each is a request to the engine
_SUBMITTED_AT_ONCE = 32  # inputs, between two pauses of the event loop


class EmbeddingRequest(ModelRequest, kw_only=True):
    """Body of POST /v1/embeddings."""

    input: PromptField | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int64 | None = None  # only those of the model
    user: Raw = NOT_GIVEN
    pooling: Pooling | None = None
    add_special_tokens: bool | None = None


class Embedding(Struct, frozen=True):
    """The vector of one input."""

    index: int
    embedding: Sequence[float] | str  # in base64: of little-endian float32
    object: str = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(Struct, frozen=True):
    """Body of the response."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


async def create_embeddings(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/embeddings; raises `ApiError` for a wrong request."""
    info, request = service.read(call, EmbeddingRequest)
    parts = prompt_parts("input", request.input, info)
    if len(parts) > MAX_INPUTS:
        raise invalid(f"input has {len(parts)} texts, expected at most {MAX_INPUTS}.", "input")
    if request.dimensions not in (None, info.hidden_size):
        raise invalid(
            f"dimensions is {request.dimensions}, expected {info.hidden_size}, as the model has.",
            "dimensions",
        )

    def encode(part: str | list[int], limit: WorkLimit) -> list[int]:
        limit.check_cancelled()
        special = value_or(request.add_special_tokens, True)
        ids = service.encode(part, special, limit) if isinstance(part, str) else part
        if not ids:
            raise invalid("input has a text without tokens.", "input")
        if len(ids) > info.max_model_len:
            raise too_long(info.max_model_len, f"a text of input has {len(ids)}")
        return ids

    prompts = await service.pool.run(
        len(call.body), lambda limit: [encode(part, limit) for part in parts]
    )
    params = SamplingParams(max_tokens=0, pooling=value_or(request.pooling, "last"))
    scheduling = SchedulingParams(tenant=value_or(call.key_name, tenant_of(request.user)))
    try:
        vectors = await _embed(service, prompts, params, scheduling)
    except EngineError as error:
        raise generation_failed(error, service.fleet.error) from error
    as_text = request.encoding_format == "base64"
    num_tokens = sum(map(len, prompts))
    usage = EmbeddingUsage(num_tokens, num_tokens)

    def reply() -> Response:
        found = [
            Embedding(index, _encoded(vector, as_text)) for index, vector in enumerate(vectors)
        ]
        return json_response(EmbeddingReply(found, service.model, usage))

    return await asyncio.to_thread(reply)  # there may be millions of numbers


async def _embed(
    service: Service,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    scheduling: SchedulingParams,
) -> list[bytes]:
    """Return the embedding of each prompt; raises `EngineError`."""
    generations: list[Generation] = []
    try:
        for number, prompt in enumerate(prompts, 1):
            generations.append(service.fleet.submit(prompt, params, scheduling))
            if number % _SUBMITTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return [await _result(generation) for generation in generations]
    finally:
        for generation in generations:
            generation.cancel()


async def _result(generation: Generation) -> bytes:
    while (last := (await generation.next())[-1]).finish_reason is None:
        pass
    embedding = last.embedding
    assert embedding is not None, "the engine has computed something else"
    if not np.isfinite(np.frombuffer(embedding, "<f4")).all():
        raise ApiError(500, "The model gave no finite hidden states.")
    return embedding


def _encoded(vector: bytes, as_text: bool) -> Sequence[float] | str:
    if as_text:
        return base64.b64encode(vector).decode()
    values: list[float] = np.frombuffer(vector, "<f4").tolist()
    return values
