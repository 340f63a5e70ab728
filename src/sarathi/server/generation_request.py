"""What a request says about sampling and scheduling, in the form that all APIs translate to.

Fields are OpenAI's, vLLM's for sampling and priority, and latency targets. Null means absent. A
field has an effect; or none on the output, and is of type `NoEffect`; or is not supported, which
its type declares with `only`. An unknown field is ignored, and named in a header of the reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from sarathi.engine.messages import ModelInfo
from sarathi.sampling.grammar import Grammar
from sarathi.sampling.params import SamplingError, SamplingParams
from sarathi.scheduler import POLICIES, SchedulingParams
from sarathi.server.request_body import (
    NOT_GIVEN,
    Int64,
    NoEffect,
    SharedFields,
    check_token_ids,
    is_given,
    only,
    seconds,
    value_or,
)
from sarathi.server.responses import ApiError, invalid, too_long
from sarathi.server.structured_output import StructuredOutputFields

NO_LIMIT = -1  # of max_tokens, as llama.cpp has it
_MAX_TENANT = 1024  # bytes; longer names are hashed
StopString = Annotated[str, Meta(max_length=1024)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=16)]


class StreamOptions(Struct):
    """The field `stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: NoEffect = NOT_GIVEN  # padding is never sent


class GenerationRequest(StructuredOutputFields, kw_only=True):
    """The fields that completions and chat completions share, and others are translated to."""

    stream_options: StreamOptions | None = None

    # Those of `SamplingParams`, which checks their values, have the same names.
    n: Int64 | None = None
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[Int64, float] | None = None
    stop: Stop | None = None
    stop_token_ids: list[Int64] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None

    user: Raw = NOT_GIVEN  # for the scheduler, as those of `SharedFields`

    # They concern billing, caching or filing.
    metadata: NoEffect = NOT_GIVEN
    prompt_cache_key: NoEffect = NOT_GIVEN
    prompt_cache_options: NoEffect = NOT_GIVEN
    prompt_cache_retention: NoEffect = NOT_GIVEN
    request_id: NoEffect = NOT_GIVEN
    safety_identifier: NoEffect = NOT_GIVEN
    service_tier: NoEffect = NOT_GIVEN
    store: NoEffect = NOT_GIVEN
    # They concern images, other tokenizers, or how vLLM is deployed.
    guided_decoding_backend: NoEffect = NOT_GIVEN
    kv_transfer_params: NoEffect = NOT_GIVEN
    media_io_kwargs: NoEffect = NOT_GIVEN
    mm_processor_kwargs: NoEffect = NOT_GIVEN
    spaces_between_special_tokens: NoEffect = NOT_GIVEN

    allowed_token_ids: Annotated[Any, only()] = None
    bad_words: Annotated[Any, only([])] = None
    cache_salt: Annotated[Any, only("")] = None
    early_stopping: Annotated[Any, only(False)] = None
    guided_whitespace_pattern: Annotated[Any, only()] = None
    length_penalty: Annotated[Any, only(1.0)] = None
    logits_processors: Annotated[Any, only([])] = None
    prompt_logprobs: Annotated[Any, only(False)] = None
    return_token_ids: Annotated[Any, only(False)] = None
    return_tokens_as_token_ids: Annotated[Any, only(False)] = None
    truncate_prompt_tokens: Annotated[Any, only()] = None
    use_beam_search: Annotated[Any, only(False)] = None
    vllm_xargs: Annotated[Any, only({})] = None


def generation_request(request: SharedFields, **fields: Any) -> GenerationRequest:
    """Return what another API's request says about generation; `fields` have other names there."""
    shared = {name: getattr(request, name) for name in SharedFields.__struct_fields__}
    return GenerationRequest(**shared, **fields)


# Fields of a request that become the parameter of the same name as they are.
_SAMPLING_FIELDS = tuple(
    name
    for name in GenerationRequest.__struct_fields__
    if name in SamplingParams.__struct_fields__
    and name not in ("max_tokens", "seed", "stop", "stop_token_ids", "prompt_logprobs")
)


def sampling_params(
    request: GenerationRequest,
    info: ModelInfo,
    prompt_tokens: int,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    strict: bool = False,
    grammar: Grammar | None = None,
    least_tokens: int = 1,
    default_max_tokens: int | None = None,
    field_names: Mapping[str, str] | None = None,
) -> SamplingParams:
    """Return the sampling parameters; raise `ApiError` naming a field that is out of range.

    Args:
        logprobs: alternatives beside each token; None for no logprobs.
        prompt_logprobs: likewise of the prompt.
        strict: refuse `max_tokens` beyond the model's length, instead of generating what fits.
        grammar: that the output has to follow.
        least_tokens: the smallest `max_tokens`; 0 if the output may be empty.
        default_max_tokens: without `max_tokens`; None: all that the model's length leaves.
        field_names: those of request fields that differ from their parameter's.
    """
    options = request.stream_options
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise invalid(
            "continuous_usage_stats needs include_usage to be true.",
            "stream_options.continuous_usage_stats",
        )
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    check_token_ids("logit_bias", list(request.logit_bias or ()), info.vocab_size)
    check_token_ids("stop_token_ids", request.stop_token_ids or (), info.vocab_size)
    max_tokens, remaining = request.max_tokens, info.max_model_len - prompt_tokens
    if max_tokens is not None and max_tokens < least_tokens and max_tokens != NO_LIMIT:
        name = (field_names or {}).get("max_tokens", "max_tokens")
        raise invalid(f"{name} is {max_tokens}, expected an integer at least {least_tokens}.", name)
    if remaining < (0 if max_tokens == 0 else 1):
        what = f"the prompt has {prompt_tokens}, which leaves none for output. Shorten it"
        raise too_long(info.max_model_len, what)
    if strict and max_tokens is not None and max_tokens > remaining:
        asked = f"{prompt_tokens} tokens of prompt and {max_tokens} of max_tokens"
        what = f"the request has {asked}. Shorten the prompt or lower max_tokens"
        raise too_long(info.max_model_len, what)
    if max_tokens is None:
        max_tokens = value_or(default_max_tokens, remaining)
    given = {name: getattr(request, name) for name in _SAMPLING_FIELDS}
    given |= {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    if max_tokens > remaining or max_tokens == NO_LIMIT:
        max_tokens = remaining
        given["min_tokens"] = min(value_or(request.min_tokens, 0), remaining)
    if request.seed is not None:
        given["seed"] = (request.seed + 2**63) % 2**64 - 2**63
    if request.top_p == 0:  # the smallest nucleus is the most likely token
        given |= {"temperature": 0.0, "top_p": 1.0}
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            stop=tuple(text for text in stop or () if text),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            grammar=grammar,
            **{name: value for name, value in given.items() if value is not None},
        )
    except SamplingError as error:
        field = (field_names or {}).get(error.field, error.field)
        raise invalid(f"{field}{str(error).removeprefix(error.field)}.", field) from None


def count_of(field: str, value: int | bool | None) -> int | None:
    """Return the value of a field that is a number, or false for none; raise `ApiError` if it is
    true."""
    if value is True:
        raise invalid(f"{field} is true, expected a number.", field, code="invalid_type")
    return None if value is False else value


def scheduling_params(
    request: GenerationRequest, info: ModelInfo, key_name: str | None
) -> SchedulingParams:
    """Return what a request asks of the scheduler; raise `ApiError` naming a field that is wrong.

    So is a field that has no effect with the server's options, because its caller relies on it.
    `key_name` names the tenant where API keys distinguish them; otherwise `user` does.
    """
    ttft_target = seconds("ttft_target", request.ttft_target)
    tbt_target = seconds("tbt_target", request.tbt_target)
    if request.priority and info.order != "priority":
        raise _no_effect("priority", f"the order here is {info.order}", "with --order priority")
    if ttft_target is not None and info.order != "slack":
        raise _no_effect("ttft_target", f"the order here is {info.order}", "with --order slack")
    if tbt_target is not None and info.tbt_target is None:
        if POLICIES[info.policy].stall_free:
            why, remedy = "the token budget is fixed", "without --token-budget"
        else:
            why, remedy = f"the policy is {info.policy}", "with --policy sarathi"
        raise _no_effect("tbt_target", why, remedy)
    return SchedulingParams(
        priority=request.priority or 0,
        tenant=value_or(key_name, tenant_of(request.user)),
        ttft_target=ttft_target,
        tbt_target=tbt_target,
    )


def tenant_of(user: Raw) -> str:
    """Return a name for the user of a request, which may be any JSON value."""
    if not is_given(user):
        return ""
    text = bytes(user)
    if len(text) > _MAX_TENANT:
        return hashlib.sha256(text).hexdigest()
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return text.decode(errors="replace")


def _no_effect(field: str, why: str, remedy: str) -> ApiError:
    return invalid(
        f"{field} has no effect: {why}. Omit it, or have the server started {remedy}.",
        field,
        code="unsupported_parameter",
    )
