"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.choices import GenerationJob
from sarathi.server.collect import CollectedReply
from sarathi.server.openai.conversation import encode_messages
from sarathi.server.openai.logprob_formats import chat_logprobs
from sarathi.server.openai.request_bodies import ChatRequest, decode
from sarathi.server.openai.response_bodies import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChunkHead,
    Usage,
)
from sarathi.server.openai.sampling_fields import chat_params, first
from sarathi.server.openai.scheduling_fields import request_terms
from sarathi.server.service import RequestContext, Service, new_id
from sarathi.server.stream import ChunkEncoder, StreamReply


async def create_chat_completion(service: Service, call: RequestContext) -> ASGIApp:
    """
    Raises:
        ApiError: the request is wrong, or the engine takes none.
    """
    info = service.ready()
    request = decode(call.body, ChatRequest)
    service.check_model(request.model)
    terms = request_terms(request, info, call.key)
    ids = await encode_messages(
        service,
        call,
        request.messages,
        add_generation_prompt=first(request.add_generation_prompt, True),
        # Templates write the special tokens themselves.
        add_special_tokens=first(request.add_special_tokens, False),
        template_arguments=request.chat_template_kwargs,
    )
    params = chat_params(request, len(ids), info)
    job = GenerationJob([(ids, params.choices())], terms)
    head = ChunkHead(
        id=new_id("chatcmpl"),
        object="chat.completion.chunk" if request.stream else "chat.completion",
        created=int(time.time()),
        model=service.model,
    )
    if request.stream:
        return StreamReply(
            service, job, ChatEvents(service.tokenizer, ChunkEncoder(head, request.stream_options))
        )
    with_logprobs = params.logprobs is not None
    return CollectedReply(service, job, ChatBody(service.tokenizer, head, with_logprobs))


@dataclass(frozen=True)
class ChatEvents:
    tokenizer: Tokenizer
    encoder: ChunkEncoder
    _begun: set[int] = field(default_factory=set)

    def event(self, index: int, delta: Delta) -> bytes:
        beginning = b""
        if index not in self._begun:
            self._begun.add(index)
            role = ChatDelta(role="assistant", content="")
            beginning = self.encoder.chunk(ChatChunkChoice(index, role, None, None))
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return beginning
        logprobs = chat_logprobs(self.tokenizer, delta) if delta.logprobs else None
        text = ChatDelta(content=delta.text or None)
        choice = ChatChunkChoice(index, text, logprobs, delta.finish_reason)
        return beginning + self.encoder.chunk(choice)


@dataclass(frozen=True)
class ChatBody:
    tokenizer: Tokenizer
    head: ChunkHead
    with_logprobs: bool

    def body(self, outputs: Sequence[Delta], usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=[
                ChatChoice(
                    index,
                    ChatMessage(content=output.text),
                    chat_logprobs(self.tokenizer, output) if self.with_logprobs else None,
                    output.finish_reason,
                )
                for index, output in enumerate(outputs)
            ],
            usage=usage,
        )
