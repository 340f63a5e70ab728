"""From a conversation to its reply, for any API."""

from __future__ import annotations

from collections.abc import Mapping

from sarathi.server.conversation import Conversation, encode_conversation
from sarathi.server.generation_core import GenerationJob, GenerationReply, Translator
from sarathi.server.generation_request import (
    GenerationRequest,
    sampling_params,
    scheduling_params,
)
from sarathi.server.service import RequestContext, Service


async def conversation_reply(
    service: Service,
    call: RequestContext,
    conversation: Conversation,
    request: GenerationRequest,
    translator: Translator,
    *,
    logprobs: int | None = None,
    field_names: Mapping[str, str] | None = None,
) -> GenerationReply:
    """Return the reply that continues a conversation; raise `ApiError` for a wrong request.

    Args:
        request: what an API's request says about sampling, scheduling and streaming.
        logprobs: alternatives beside each token; None for no logprobs.
        field_names: the API's names of fields that differ from those of `request`.
    """
    info = service.ready()
    scheduling = scheduling_params(request, info, call.key_name)
    encoded = await encode_conversation(service, call, conversation)
    params = sampling_params(
        request,
        info,
        len(encoded.prompt_ids),
        logprobs=logprobs,
        strict=service.strict,
        grammar=encoded.grammar,
        field_names=field_names,
    )
    job = GenerationJob([(encoded.prompt_ids, params.choices())], scheduling, encoded.parser)
    return GenerationReply(service, job, translator, bool(request.stream))
