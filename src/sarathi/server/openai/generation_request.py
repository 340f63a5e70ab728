"""What the requests of OpenAI's generating endpoints have in common.

Fields are OpenAI's, vLLM's for sampling and priority, and latency targets. Null means absent. A
field has an effect; or none on the output, and is accepted; or is not supported, which its type
declares with `only`. An unknown field is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from sarathi.engine.messages import ModelInfo
from sarathi.sampling.grammar import Grammar
from sarathi.sampling.params import SamplingError, SamplingParams
from sarathi.scheduler import POLICIES, SchedulingParams
from sarathi.server.request_body import (
    MAX_OPEN_FIELD,
    Int32,
    Int64,
    ModelRequest,
    check_token_ids,
    only,
    seconds,
    value_or,
)
from sarathi.server.responses import ApiError, invalid, too_long

Label = Annotated[str, Meta(max_length=MAX_OPEN_FIELD)]
StopString = Annotated[str, Meta(max_length=1024)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=16)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """The field `stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # no effect: padding is never sent


class GenerationRequest(ModelRequest, kw_only=True):
    """The fields that completions and chat completions share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Those of `SamplingParams`, which checks their values, have the same names.
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
    stop: Stop | None = None
    stop_token_ids: list[Int64] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None

    # For the scheduler; see `scheduling_params`.
    priority: Int32 | None = None
    ttft_target: float | str | None = None
    tbt_target: float | str | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None

    # No effect: they concern billing, caching or filing, not the output.
    metadata: dict[str, Any] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None

    service_tier: Annotated[Any, only("auto", "default")] = None
    store: Annotated[Any, only(False)] = None
    response_format: Annotated[Any, only({"type": "text"})] = None


# Fields of a request that become the parameter of the same name as they are.
_SAMPLING_FIELDS = tuple(
    name
    for name in GenerationRequest.__struct_fields__
    if name in SamplingParams.__struct_fields__
    and name not in ("max_tokens", "stop", "stop_token_ids")
)


def sampling_params(
    request: GenerationRequest,
    info: ModelInfo,
    prompt_tokens: int,
    *,
    logprobs: int | None,
    grammar: Grammar | None = None,
    default_max_tokens: int | None = None,
    field_names: Mapping[str, str] | None = None,
) -> SamplingParams:
    """Return the sampling parameters; raise `ApiError` naming a field that is out of range.

    Args:
        logprobs: alternatives beside each token; None for no logprobs.
        grammar: that the output has to follow.
        default_max_tokens: without `max_tokens`; None: all that the model's length leaves.
        field_names: those of request fields that differ from their parameter's.
    """
    options = request.stream_options
    if options is not None and not request.stream:
        raise invalid("stream_options needs stream to be true.", "stream_options")
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise invalid(
            "continuous_usage_stats needs include_usage to be true.",
            "stream_options.continuous_usage_stats",
        )
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    check_token_ids("logit_bias", list(request.logit_bias or ()), info.vocab_size)
    check_token_ids("stop_token_ids", request.stop_token_ids or (), info.vocab_size)
    max_tokens, remaining = request.max_tokens, info.max_model_len - prompt_tokens
    if remaining < 1 or (max_tokens is not None and max_tokens > remaining):
        asked = f"{prompt_tokens} tokens of prompt"
        if max_tokens is not None:
            asked += f" and {max_tokens} of max_tokens"
        elif remaining == 0:
            asked += " and at least one of output"
        what = f"the request has {asked}. Shorten the prompt or lower max_tokens"
        raise too_long(info.max_model_len, what)
    if max_tokens is None:
        max_tokens = min(remaining, value_or(default_max_tokens, remaining))
    given = {name: getattr(request, name) for name in _SAMPLING_FIELDS} | {"logprobs": logprobs}
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            grammar=grammar,
            **{name: value for name, value in given.items() if value is not None},
        )
    except SamplingError as error:
        field = (field_names or {}).get(error.field, error.field)
        raise invalid(f"{field}{str(error).removeprefix(error.field)}.", field) from None


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
        tenant=value_or(key_name, request.user or ""),
        ttft_target=ttft_target,
        tbt_target=tbt_target,
    )


def _no_effect(field: str, why: str, remedy: str) -> ApiError:
    return invalid(
        f"{field} has no effect: {why}. Omit it, or have the server started {remedy}.",
        field,
        code="unsupported_parameter",
    )
