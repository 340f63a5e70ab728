"""What operators ask of the server: GET /health, /version, /stats and /metrics, POST /scale.

Everything is read from the engine on request; nothing is counted here. Statistics of the scheduler
are declared in `telemetry.stats`, histograms in `telemetry.request_latencies`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from sarathi import __version__
from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engines, by_state
from sarathi.server.request_body import Int64, decode, seconds
from sarathi.server.responses import invalid, json_response
from sarathi.server.service import RequestContext, Service
from sarathi.telemetry.request_latencies import Latencies
from sarathi.telemetry.stats import Stats, exposed, initial_stats


class ScaleRequest(Struct, kw_only=True):
    """Body of POST /scale."""

    replicas: Int64
    drain_timeout: float | str | None = None


async def health(service: Service, request: Request) -> Response:
    """Answer GET /health, with status 200 while requests are accepted and 503 otherwise."""
    engine = service.fleet
    replicas = by_state(engine.replicas)  # how many are in each state
    if engine.error is not None:
        body = {"status": "failed", "reason": engine.error, "replicas": replicas}
        return json_response(body, 503)
    if engine.info is None:
        reason = "the model is still loading"
        return json_response({"status": "loading", "reason": reason, "replicas": replicas}, 503)
    if not replicas["ready"]:
        # Requests are accepted and wait; ending this process now would lose them.
        reasons = [replica.reason for replica in engine.replicas if replica.reason is not None]
        reason = f"all engines are being started again: {reasons[-1] if reasons else 'scaled'}"
        return json_response({"status": "restarting", "reason": reason, "replicas": replicas})
    return json_response({"status": "ok", "replicas": replicas})


async def index(service: Service, request: Request) -> Response:
    """Answer GET /, for people and for clients that look whether there is a server."""
    paths = {"api": "/v1", "health": "/health", "metrics": "/metrics"}
    return json_response(
        {"name": "sarathi", "version": __version__, "model": service.model, **paths}
    )


async def version(service: Service, request: Request) -> Response:
    """Answer GET /version."""
    return json_response({"version": __version__})


async def scale(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /scale; raises `ApiError` for a wrong number, and without a ready engine."""
    service.ready()
    request, _ = decode(call.body, ScaleRequest)
    drain_seconds = seconds("drain_timeout", request.drain_timeout)
    try:
        service.fleet.scale(request.replicas, drain_seconds)
    except ValueError as error:
        raise invalid(f"{error}.", "replicas") from None
    return json_response({"replicas": list(service.fleet.replicas)})


async def stats(service: Service, request: Request) -> Response:
    """Answer GET /stats: all fields of `Stats`, targets and replicas."""
    info, engine = service.ready(), service.fleet
    latest = _latest_stats(info, engine)
    body = {
        **msgspec.structs.asdict(latest),
        "prefix_hit_rate": latest.prefix_hit_rate,
        "tbt_target": info.tbt_target,  # seconds; null without one
        "token_budget": info.token_budget,  # tokens; null without one
        "replicas": by_state(engine.replicas),
        "replica_restarts": engine.restarts,
        "requests_resumed": engine.resumed,
    }
    return json_response(body)


def _latest_stats(info: ModelInfo, engine: Engines) -> Stats:
    """Return the latest statistics, or those of an engine that has run nothing yet."""
    return engine.stats or initial_stats(info.num_blocks, info.num_stages)


async def metrics(service: Service, request: Request) -> Response:
    """Answer GET /metrics, in the text format of Prometheus."""
    text = generate_latest(_EngineCollector(service.fleet))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True)
class _EngineCollector(Collector):
    engine: Engines

    def collect(self) -> Iterator[Metric]:
        engine, info = self.engine, self.engine.info
        answers = info is not None and engine.error is None
        yield _metric("gauge", "engine_up", "1 while requests are answered, else 0", answers)
        states, sharing = by_state(engine.replicas), "Engines that share the requests, by state"
        yield _metric("gauge", "replicas", sharing, states, "state")
        restarted = "Engines started because one had died"
        yield _metric("counter", "replica_restarts", restarted, engine.restarts)
        resumed = "Requests that went on in another engine"
        yield _metric("counter", "requests_resumed", resumed, engine.resumed)
        if info is not None and answers:
            yield from _of_model(info)
            for declared, samples in exposed(_latest_stats(info, engine)):
                name, about = str(declared.name), declared.description
                yield _metric(declared.kind, name, about, samples, declared.label)
            yield from _of_requests(engine.latencies)


def _of_model(info: ModelInfo) -> Iterator[Metric]:
    facts = {
        "policy": info.policy,
        "order": info.order,
        "fair_by": info.fair_by or "",
        "precision": info.precision,
        "kv_precision": info.kv_precision,
        "quantization": info.quantization,
    }
    yield InfoMetricFamily("sarathi_engine", "How the engine was started", value=facts)
    for name, description, value in (
        ("tbt_target_seconds", "Time between tokens aimed at", info.tbt_target),
        ("token_budget", "Tokens that an iteration may carry", info.token_budget),
        ("max_batch_size", "Requests that may run at once", info.max_batch_size),
    ):
        if value is not None:
            yield _metric("gauge", name, description, value)


def _of_requests(latencies: Latencies) -> Iterator[Metric]:
    ended = "Requests that ended, by how they did"
    yield _metric("counter", "requests", ended, latencies.requests, "outcome")
    given = "Tokens that the engine gave"
    yield _metric("counter", "output_tokens", given, latencies.output_tokens)
    for histogram in latencies.histograms:
        buckets = [
            ("+Inf" if bound == math.inf else str(bound), count)
            for bound, count in histogram.cumulative()
        ]
        name = f"sarathi_{histogram.name}"
        yield HistogramMetricFamily(name, histogram.description, buckets, sum_value=histogram.sum)


def _metric(
    kind: str,
    name: str,
    description: str,
    value: float | Mapping[Any, float],
    label: str | None = None,
) -> Metric:
    """Return a metric with one value, or with a value for each value of its label."""
    metric = Metric(f"sarathi_{name}", description, kind)
    sample = f"{metric.name}_total" if kind == "counter" else metric.name
    samples = value if isinstance(value, Mapping) else {"": value}
    for label_value, number in samples.items():
        metric.add_sample(sample, {} if label is None else {label: label_value}, number)
    return metric
