"""GET /metrics: the engine's state and latencies in the text format of Prometheus.

Everything is read from the engine on request; nothing is counted here. Metrics of the scheduler
are declared in `telemetry.stats`, histograms in `telemetry.request_latencies`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.responses import Response

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine, by_state
from sarathi.server.operations import current_stats
from sarathi.telemetry.request_latencies import Histogram, Latencies
from sarathi.telemetry.stats import Stats, exposed


class Metrics:
    """The metrics of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EngineCollector(engine))

    def response(self) -> Response:
        """Return the current values."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True)
class _EngineCollector(Collector):
    engine: Engine

    def collect(self) -> Iterator[Metric]:
        info = self.engine.info
        answers = info is not None and self.engine.error is None
        yield _gauge("engine_up", "1 while requests are answered, else 0", answers)
        yield from _of_replicas(self.engine)
        if info is not None and answers:
            stats = current_stats(info, self.engine.stats)
            yield from _of_model(info)
            yield from _of_scheduler(stats)
            yield from _of_requests(self.engine.latencies)


def _of_model(info: ModelInfo) -> Iterator[Metric]:
    facts = {
        "policy": info.policy,
        "order": info.order,
        "fair_by": info.fair_by or "",
        "precision": info.precision,
        "kv_precision": info.kv_precision,
    }
    yield InfoMetricFamily("sarathi_engine", "How the engine was started", value=facts)
    if info.tbt_target is not None:
        yield _gauge("tbt_target_seconds", "Time between tokens aimed at", info.tbt_target)
    if info.token_budget is not None:
        yield _gauge("token_budget", "Tokens that an iteration may carry", info.token_budget)
    yield _gauge("max_batch_size", "Requests that may run at once", info.max_batch_size)


def _of_replicas(engine: Engine) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "sarathi_replicas", "Engines that share the requests, by state", labels=["state"]
    )
    for state, number in by_state(engine.replicas).items():
        states.add_metric([state], number)
    yield states
    yield _counter("replica_restarts", "Engines started because one had died", engine.restarts)
    yield _counter("requests_resumed", "Requests that went on in another engine", engine.resumed)


def _of_scheduler(stats: Stats) -> Iterator[Metric]:
    for metric, samples in exposed(stats):
        name, labels = f"sarathi_{metric.name}", [metric.label] if metric.label else []
        family: CounterMetricFamily | GaugeMetricFamily | Metric
        if metric.kind == "summary":
            family = Metric(name, metric.description, "summary")
            for label, value in samples.items():
                family.add_sample(name, {str(metric.label): label}, value)
        else:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, metric.description, labels=labels)
            for label, value in samples.items():
                family.add_metric([label] if labels else [], value)
        yield family


def _of_requests(latencies: Latencies) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "sarathi_requests", "Requests that ended, by how they did", labels=["outcome"]
    )
    for outcome, count in latencies.requests.items():
        requests.add_metric([outcome], count)
    yield requests
    yield _counter("output_tokens", "Tokens that the engine gave", latencies.output_tokens)
    for histogram in latencies.histograms:
        yield _histogram(histogram)


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sarathi_{name}", description, value=value)


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(f"sarathi_{name}", description, value=value)


def _histogram(histogram: Histogram) -> Metric:
    buckets = [
        ("+Inf" if bound == math.inf else str(bound), count)
        for bound, count in histogram.cumulative()
    ]
    return HistogramMetricFamily(
        f"sarathi_{histogram.name}", histogram.description, buckets=buckets, sum_value=histogram.sum
    )
