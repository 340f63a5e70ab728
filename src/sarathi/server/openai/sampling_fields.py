"""From the fields of a request to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sarathi.engine.messages import ModelInfo
from sarathi.sampling.params import MAX_LOGPROBS, SamplingError, SamplingParams
from sarathi.server.openai.api_errors import ApiError, invalid, too_long
from sarathi.server.openai.request_bodies import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    unsupported,
)

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters
DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI's

_SAME_NAME = (
    "n",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
)

Value = TypeVar("Value")


def completion_choices(
    request: CompletionRequest, lengths: Sequence[int], info: ModelInfo
) -> list[list[SamplingParams]]:
    """The params of the n outputs of each prompt, given the prompts' lengths in tokens.

    A prompt bounds its own outputs alone. Prompts that leave room for as much share their params:
    a thousand prompts are not checked a thousand times.

    Raises:
        ApiError: status 400, naming the field that is out of range.
    """
    most = first(request.max_tokens, DEFAULT_COMPLETION_TOKENS)
    shared: dict[int, list[SamplingParams]] = {}

    def choices(length: int) -> list[SamplingParams]:
        room = min(most, info.max_model_len - length)
        if room not in shared:
            shared[room] = _completion_params(request, length, info).choices()
        return shared[room]

    choices(max(lengths))  # the first to be refused, if any is
    return [choices(length) for length in lengths]


def _completion_params(
    request: CompletionRequest, prompt_tokens: int, info: ModelInfo
) -> SamplingParams:
    n = first(request.n, 1)
    if request.best_of is not None and request.best_of != n:
        raise unsupported("best_of")
    if request.echo and request.logprobs is not None:
        raise invalid(
            "echo and logprobs cannot be combined: logprobs of the prompt are not computed.", "echo"
        )
    return _params(
        request,
        info,
        prompt_tokens,
        max_tokens=request.max_tokens,
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        max_tokens_field="max_tokens",
        logprobs=request.logprobs,
    )


def chat_params(request: ChatRequest, prompt_tokens: int, info: ModelInfo) -> SamplingParams:
    """
    Raises:
        ApiError: status 400, naming the field that is out of range.
    """
    if request.top_logprobs is not None:
        if not request.logprobs:
            raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
        if not 0 <= request.top_logprobs <= MAX_LOGPROBS:
            raise invalid(
                f"top_logprobs is {request.top_logprobs}, expected 0 to {MAX_LOGPROBS}.",
                "top_logprobs",
            )
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid(
            "max_tokens and max_completion_tokens differ; give one of them.",
            "max_completion_tokens",
        )
    return _params(
        request,
        info,
        prompt_tokens,
        max_tokens=old if new is None else new,
        default_max_tokens=None,
        max_tokens_field="max_tokens" if new is None else "max_completion_tokens",
        logprobs=first(request.top_logprobs, 0) if request.logprobs else None,
    )


def check_token_ids(ids: list[int], info: ModelInfo, field: str) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < info.vocab_size):
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise invalid(
            f"{field} has the token id {wrong}, expected 0 to {info.vocab_size - 1}.", field
        )


def first(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _params(
    request: GenerationRequest,
    info: ModelInfo,
    prompt_tokens: int,
    *,
    max_tokens: int | None,
    default_max_tokens: int | None,
    max_tokens_field: str,
    logprobs: int | None,
) -> SamplingParams:
    options = request.stream_options
    if options is not None and not request.stream:
        raise invalid("stream_options needs stream to be true.", "stream_options")
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise invalid(
            "continuous_usage_stats needs include_usage to be true.",
            "stream_options.continuous_usage_stats",
        )
    if max_tokens is not None and max_tokens < 1:
        raise invalid(f"{max_tokens_field} is {max_tokens}, expected at least 1.", max_tokens_field)
    given: dict[str, Any] = {
        name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None
    }
    check_token_ids(list(request.logit_bias or ()), info, "logit_bias")
    check_token_ids(request.stop_token_ids or [], info, "stop_token_ids")
    room = info.max_model_len - prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        raise _too_long(prompt_tokens, max_tokens, info.max_model_len)
    if max_tokens is None:
        max_tokens = room if default_max_tokens is None else min(room, default_max_tokens)
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            stop=_stop(request.stop),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            logprobs=logprobs,
            **given,
        )
    except SamplingError as error:
        raise invalid(f"{error}.", error.field) from None


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid(
            f"stop has {len(strings)} strings, expected at most {MAX_STOP_STRINGS}.", "stop"
        )
    if any(len(text) > MAX_STOP_LENGTH for text in strings):
        raise invalid(f"stop has a string of more than {MAX_STOP_LENGTH} characters.", "stop")
    return strings


def _too_long(prompt_tokens: int, max_tokens: int | None, limit: int) -> ApiError:
    asked = f"{prompt_tokens} tokens of prompt"
    if max_tokens is not None:
        asked += f" and {max_tokens} of max_tokens"
    elif prompt_tokens == limit:
        asked += " and at least one of output"
    what = f"the request has {asked}. Shorten the prompt or lower max_tokens"
    return too_long(limit, what)
