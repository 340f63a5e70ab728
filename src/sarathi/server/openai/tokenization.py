"""POST /tokenize and POST /detokenize, as vLLM has them."""

from __future__ import annotations

from starlette.types import ASGIApp

from sarathi.server.openai.api_errors import invalid, too_long
from sarathi.server.openai.conversation import encode_messages
from sarathi.server.openai.request_bodies import DetokenizeRequest, TokenizeRequest, decode
from sarathi.server.openai.response_bodies import Detokenized, Tokenized
from sarathi.server.openai.sampling_fields import first
from sarathi.server.reply import json_response
from sarathi.server.service import RequestContext, Service


async def tokenize(service: Service, call: RequestContext) -> ASGIApp:
    info = service.ready()
    request = decode(call.body, TokenizeRequest)
    service.check_model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("One of prompt and messages is required.", "prompt")
    prompt = request.prompt
    if prompt is None:
        ids = await encode_messages(
            service,
            call,
            request.messages,
            add_generation_prompt=first(request.add_generation_prompt, True),
            add_special_tokens=first(request.add_special_tokens, False),
            template_arguments=request.chat_template_kwargs,
        )
    else:
        for name in ("add_generation_prompt", "chat_template_kwargs"):
            if getattr(request, name) is not None:
                raise invalid(f"{name} needs messages.", name)
        text, special = prompt, first(request.add_special_tokens, True)
        ids = await service.pool.run(
            len(call.body), lambda limit: service.encode(text, special, limit)
        )
    return json_response(Tokenized(ids, len(ids), info.max_model_len))


async def detokenize(service: Service, call: RequestContext) -> ASGIApp:
    info = service.ready()
    request = decode(call.body, DetokenizeRequest)
    service.check_model(request.model)
    ids = request.tokens
    if ids is None:
        raise invalid("tokens is required.", "tokens", code="missing_required_parameter")
    if len(ids) > info.max_model_len:
        raise too_long(info.max_model_len, f"tokens has {len(ids)}")
    size = service.tokenizer.vocab_size
    if ids and not (min(ids) >= 0 and max(ids) < size):
        raise invalid(f"tokens has an id out of the vocabulary, 0 to {size - 1}.", "tokens")
    text = await service.pool.run(
        len(call.body), lambda limit: service.tokenizer.decode(ids, skip_special_tokens=False)
    )
    return json_response(Detokenized(text))
