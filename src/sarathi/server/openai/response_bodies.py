"""Response bodies: the OpenAI API's, and this server's own."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from sarathi.fleet.engine_api import ReplicaState, ReplicaStatus


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int  # found in the prefix cache


class Usage(Struct, frozen=True, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None  # absent while a stream goes on


class CompletionLogprobs(Struct, frozen=True):
    """The completions API's parallel lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None = None


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Struct, frozen=True, kw_only=True):
    role: str = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChunkHead(Struct, frozen=True, kw_only=True):
    """What all chunks of a stream have in common."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None = None


class ModelCard(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "sarathi"
    max_model_len: int | None = None  # tokens; null until the model is loaded
    warning: str | UnsetType = UNSET


class ModelList(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[ModelCard]


class Health(Struct, frozen=True, omit_defaults=True):
    status: str  # "ok", "loading", "restarting" or "failed"
    reason: str | None = None
    replicas: dict[ReplicaState, int] | None = None  # how many are in each state


class Scaled(Struct, frozen=True):
    """POST /scale."""

    replicas: list[ReplicaStatus]


class Version(Struct, frozen=True):
    version: str


class Tokenized(Struct, frozen=True):
    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(Struct, frozen=True):
    prompt: str
