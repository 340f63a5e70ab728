"""From the fields of a request to what the scheduler is asked: urgency, and for whom.

A field that the server as started cannot heed is refused: a caller who counts on it must know.
"""

from __future__ import annotations

from sarathi.engine.messages import ModelInfo
from sarathi.scheduler import POLICIES, SchedulingParams
from sarathi.server.openai.api_errors import ApiError, invalid
from sarathi.server.openai.request_bodies import GenerationRequest
from sarathi.units import parse_duration

MAX_USER = 256  # characters


def request_terms(request: GenerationRequest, info: ModelInfo, key: str | None) -> SchedulingParams:
    """
    Args:
        key: who asks as the server knows it, None where only the request itself tells.

    Raises:
        ApiError: status 400, naming the field that is out of range or has no effect.
    """
    user = request.user or ""
    if len(user) > MAX_USER:
        raise invalid(f"user has {len(user)} characters, expected at most {MAX_USER}.", "user")
    ttft_target = _seconds("ttft_target", request.ttft_target)
    tbt_target = _seconds("tbt_target", request.tbt_target)
    if request.priority and info.order != "priority":
        raise _without_effect(
            "priority", f"the order here is {info.order}", "with --order priority"
        )
    if ttft_target is not None and info.order != "slack":
        raise _without_effect(
            "ttft_target", f"the order here is {info.order}", "with --order slack"
        )
    if tbt_target is not None and info.tbt_target is None:
        if POLICIES[info.policy].stall_free:
            why, remedy = "the token budget is fixed", "without --token-budget"
        else:
            why, remedy = f"the policy is {info.policy}", "with --policy sarathi"
        raise _without_effect("tbt_target", why, remedy)
    return SchedulingParams(
        priority=request.priority or 0,
        tenant=user if key is None else key,
        ttft_target=ttft_target,
        tbt_target=tbt_target,
    )


def _seconds(field: str, duration: float | str | None) -> float | None:
    if duration is None:
        return None
    try:
        return parse_duration(duration)
    except ValueError as error:
        raise invalid(f"{field} {error}.", field) from None


def _without_effect(field: str, why: str, remedy: str) -> ApiError:
    return invalid(
        f"{field} has no effect: {why}. Omit it, or have the server started {remedy}.",
        field,
        code="unsupported_parameter",
    )
