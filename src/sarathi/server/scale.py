"""POST /scale: how many engines there are to be."""

from __future__ import annotations

from starlette.types import ASGIApp

from sarathi.server.openai.api_errors import invalid
from sarathi.server.openai.request_bodies import ScaleRequest, decode
from sarathi.server.openai.response_bodies import Scaled
from sarathi.server.reply import json_response
from sarathi.server.service import RequestContext, Service
from sarathi.units import parse_duration


async def scale(service: Service, call: RequestContext) -> ASGIApp:
    """
    Raises:
        ApiError: the number is out of range, or there is no engine ready yet or ever again.
    """
    service.ready()
    request = decode(call.body, ScaleRequest)
    drain_seconds = None
    if request.drain_timeout is not None:
        try:
            drain_seconds = parse_duration(request.drain_timeout)
        except ValueError as error:
            raise invalid(f"drain_timeout {error}.", "drain_timeout") from None
    try:
        service.engine.scale(request.replicas, drain_seconds)
    except ValueError as error:
        raise invalid(f"{error}.", "replicas") from None
    return json_response(Scaled(list(service.engine.replicas)))
