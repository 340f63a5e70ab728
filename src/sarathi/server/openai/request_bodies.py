"""Request bodies: OpenAI's fields, vLLM's for sampling and priority, and latency targets.

Null means absent everywhere. A field is in one of four groups:

- it has an effect;
- it has none on the output and is accepted: `NO_EFFECT`;
- it would have one but is not supported, so that only values that ask for nothing are accepted:
  `UNSUPPORTED`;
- it is unknown, and refused.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sarathi.server.openai.api_errors import ApiError, invalid

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

# Who asks, and how the answer is billed, cached or filed. `logprobs: false` and the like are
# handled where the field itself is.
NO_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
    }
)

# Field -> values that ask for nothing beyond what the server does anyway.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


# Fields that hold anything, or many numbers. None needs more than this, while millions of objects
# in them, or numbers of many digits, would take seconds to read.
_MAX_FIELD = 64 * 2**10  # bytes of JSON
_SmallFields = msgspec.defstruct(
    "_SmallFields",
    [
        (name, msgspec.Raw, msgspec.Raw(b""))
        for name in sorted({*NO_EFFECT, *UNSUPPORTED, "logit_bias", "chat_template_kwargs"})
    ],
)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # no effect: padding is never sent


class GenerationRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields that completions and chat completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int64 | None = None
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[Int64, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int64] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None

    # What the scheduler is asked; see `request_terms`.
    priority: Int32 | None = None
    ttft_target: float | str | None = None
    tbt_target: float | str | None = None
    user: str | None = None

    # NO_EFFECT
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # UNSUPPORTED
    service_tier: Any = None
    store: Any = None
    response_format: Any = None


class CompletionRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | Int64 | list[Int64]] | None = None
    echo: bool | None = None
    logprobs: Int64 | None = None
    best_of: Int64 | None = None

    suffix: Any = None  # UNSUPPORTED


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation; which roles make sense is the chat template's affair."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None


class ChatRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message] | None = None
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    parallel_tool_calls: bool | None = None  # NO_EFFECT

    # UNSUPPORTED
    audio: Any = None
    continue_final_message: Any = None
    documents: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /tokenize: one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Int64] | None = None


class ScaleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /scale."""

    replicas: Int64
    drain_timeout: float | str | None = None


Request = TypeVar("Request", bound=msgspec.Struct)


def decode(body: bytes, kind: type[Request]) -> Request:
    """Read a request body.

    Raises:
        ApiError: status 400, naming the field at fault.
    """
    # Millions of new objects make Python's collector look at all of them again and again, which
    # takes four times as long as reading them, and others wait meanwhile. None is garbage.
    gc.disable()
    try:
        if len(body) > _MAX_FIELD:
            _check_small_fields(body)
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"The body is not valid JSON: {reason}", code="invalid_json") from None
    finally:
        gc.enable()
    for name in kind.__struct_fields__:
        value = getattr(request, name)
        if name in UNSUPPORTED and value is not None and not _asks_nothing(name, value):
            raise unsupported(name)
    return request


def _check_small_fields(body: bytes) -> None:
    """
    Raises:
        ApiError: status 400, naming a field that is too large.
        msgspec.MsgspecError: the body is not JSON.
    """
    fields = msgspec.json.decode(body, type=_SmallFields)
    for name in _SmallFields.__struct_fields__:
        size = len(bytes(getattr(fields, name)))
        if size > _MAX_FIELD:
            raise invalid(f"{name} has {size} bytes, expected at most {_MAX_FIELD}.", name)


def _asks_nothing(name: str, value: object) -> bool:
    return any(
        type(value) is type(harmless) and value == harmless for harmless in UNSUPPORTED[name]
    )


def unsupported(name: str) -> ApiError:
    accepted = " or ".join(
        msgspec.json.encode(value).decode() for value in UNSUPPORTED.get(name, ())
    )
    hint = f"; the only value accepted is {accepted}" if accepted else ""
    return invalid(f"{name} is not supported{hint}.", name, code="unsupported_parameter")


_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*)`$")
_FIELD = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$")


def _misfit(message: str) -> ApiError:
    """msgspec's words for a body of the wrong form, with the field as OpenAI's `param`."""
    path = ""
    at = _PATH.search(message)
    if at:
        path = at["path"].replace("[...]", "")
        message = message[: at.start()]
    if unknown := _FIELD.match(message):
        field = f"{path}.{unknown['name']}".lstrip(".")[:100]
        return invalid(f"Unknown field {field!r}.", field, code="unknown_parameter")
    if missing := _MISSING.match(message):
        field = f"{path}.{missing['name']}".lstrip(".")
        return invalid(f"{field} is required.", field, code="missing_required_parameter")
    message = message.replace("`", "").replace(" | null", "")
    return invalid(f"{path or 'The body'}: {message}.", path or None, code="invalid_type")
