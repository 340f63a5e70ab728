"""POST /tokenize, POST /detokenize and GET /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from sarathi.server.conversation import encode_conversation
from sarathi.server.openai.chat_messages import Message, Tools, read_conversation
from sarathi.server.request_body import (
    NOT_GIVEN,
    Int64,
    ModelRequest,
    NoEffect,
    check_token_ids,
    only,
    value_or,
)
from sarathi.server.responses import invalid, json_response, missing, too_long
from sarathi.server.service import RequestContext, Service


class TokenizeRequest(ModelRequest, kw_only=True):
    """Body of POST /tokenize: one of `prompt` and `messages`."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking: Any = None
    tools: Tools = None
    return_token_strs: bool | None = None
    continue_final_message: Annotated[Any, only(False)] = None
    chat_template: Annotated[Any, only()] = None
    mm_processor_kwargs: NoEffect = NOT_GIVEN


class DetokenizeRequest(ModelRequest, kw_only=True):
    """Body of POST /detokenize."""

    tokens: list[Int64] | None = None


async def tokenize(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /tokenize; raises `ApiError` for a wrong request."""
    info, request = service.read(call, TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("One of prompt and messages is required.", "prompt")
    prompt = request.prompt
    if prompt is None:
        conversation = read_conversation(request)
        ids = (await encode_conversation(service, call, conversation)).prompt_ids
    else:
        text, special_tokens = prompt, value_or(request.add_special_tokens, True)
        ids = await service.pool.run(
            len(call.body), lambda limit: service.encode(text, special_tokens, limit)
        )
    strings = (
        [service.tokenizer.token(token) for token in ids] if request.return_token_strs else None
    )
    reply = {
        "tokens": ids,
        "count": len(ids),
        "max_model_len": info.max_model_len,
        "token_strs": strings,
    }
    return json_response(reply)


async def detokenize(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /detokenize; raises `ApiError` for a wrong request."""
    info, request = service.read(call, DetokenizeRequest)
    ids = request.tokens
    if ids is None:
        raise missing("tokens")
    if len(ids) > info.max_model_len:
        raise too_long(info.max_model_len, f"tokens has {len(ids)}")
    check_token_ids("tokens", ids, service.tokenizer.vocab_size)
    text = await service.pool.run(
        len(call.body), lambda limit: service.tokenizer.decode(ids, skip_special_tokens=False)
    )
    return json_response({"prompt": text})


async def tokenizer_info(service: Service, request: Request) -> Response:
    """Answer GET /tokenizer_info, from which evaluation harnesses learn the special tokens."""
    service.ready()
    tokenizer, template = service.tokenizer, service.tokenizer.chat_template
    eos = tokenizer.token(tokenizer.eos_ids[0]) if tokenizer.eos_ids else None
    info = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size,
        "bos_token": None,
        "eos_token": eos,
        "pad_token": eos,
        "chat_template": None,
    }
    if template is not None:
        info["bos_token"] = template.bos_token or None
        info["eos_token"] = template.eos_token or eos
        info["chat_template"] = template.source
    return json_response(info)
