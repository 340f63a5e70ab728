"""What operators ask of the server: GET /health, /version and /stats, POST /scale."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from sarathi import __version__
from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine, ReplicaState, ReplicaStatus, by_state
from sarathi.server.request_body import Int64, decode, seconds
from sarathi.server.responses import invalid, json_response
from sarathi.server.service import RequestContext, Service
from sarathi.telemetry.stats import Stats, initial_stats


def stats_body(info: ModelInfo, engine: Engine) -> dict[str, object]:
    """Return the response to GET /stats: all fields of `Stats`, targets and replicas."""
    stats = current_stats(info, engine.stats)
    return {
        **msgspec.structs.asdict(stats),
        "prefix_hit_rate": stats.prefix_hit_rate,
        "tbt_target": info.tbt_target,  # seconds; null without one
        "token_budget": info.token_budget,  # tokens; null without one
        "replicas": by_state(engine.replicas),
        "replica_restarts": engine.restarts,
        "requests_resumed": engine.resumed,
    }


def current_stats(info: ModelInfo, stats: Stats | None) -> Stats:
    """Return the latest statistics, or those of an engine that has run nothing yet."""
    return initial_stats(info.num_blocks, info.num_stages) if stats is None else stats


class Health(Struct, frozen=True, omit_defaults=True):
    """Response of GET /health."""

    status: str  # "ok", "loading", "restarting" or "failed"
    reason: str | None = None
    replicas: dict[ReplicaState, int] | None = None  # how many are in each state


class Version(Struct, frozen=True):
    """Response of GET /version."""

    version: str


class ScaleRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /scale."""

    replicas: Int64
    drain_timeout: float | str | None = None


class Scaled(Struct, frozen=True):
    """Response of POST /scale."""

    replicas: list[ReplicaStatus]


async def health(service: Service, request: Request) -> Response:
    """Answer GET /health, with status 200 while requests are accepted and 503 otherwise."""
    engine = service.engine
    replicas = by_state(engine.replicas)
    if engine.error is not None:
        return json_response(Health("failed", engine.error, replicas), 503)
    if engine.info is None:
        return json_response(Health("loading", "the model is still loading", replicas), 503)
    if not replicas["ready"]:
        # Requests are accepted and wait; ending this process now would lose them.
        reasons = [replica.reason for replica in engine.replicas if replica.reason is not None]
        reason = f"all engines are being started again: {reasons[-1] if reasons else 'scaled'}"
        return json_response(Health("restarting", reason, replicas))
    return json_response(Health("ok", replicas=replicas))


async def version(service: Service, request: Request) -> Response:
    """Answer GET /version."""
    return json_response(Version(__version__))


async def scale(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /scale: set the number of engines.

    Raises:
        ApiError: the number is out of range, or no engine is ready yet or ever again.
    """
    service.ready()
    request = decode(call.body, ScaleRequest)
    drain_seconds = seconds("drain_timeout", request.drain_timeout)
    try:
        service.engine.scale(request.replicas, drain_seconds)
    except ValueError as error:
        raise invalid(f"{error}.", "replicas") from None
    return json_response(Scaled(list(service.engine.replicas)))
