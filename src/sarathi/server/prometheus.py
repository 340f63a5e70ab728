"""GET /metrics: the engine's state and latencies in the text format of Prometheus.

Everything is read off the engine when somebody asks; nothing is counted here.
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
from sarathi.fleet.fleet import Engine
from sarathi.fleet.replica import by_state
from sarathi.server.stats_endpoint import current_stats
from sarathi.telemetry.histogram import Histogram
from sarathi.telemetry.request_latencies import Latencies
from sarathi.telemetry.stats import Stats


class Metrics:
    """The metrics of one engine, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EngineCollector(engine))

    def response(self) -> Response:
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
    yield _gauge("requests_running", "Requests that run", stats.running)
    yield _gauge("requests_waiting", "Requests that wait to run", stats.waiting)
    blocks = GaugeMetricFamily(
        "sarathi_kv_blocks", "Blocks of the KV cache by what they hold", labels=["state"]
    )
    blocks.add_metric(["free"], stats.free_blocks - stats.cached_blocks)
    blocks.add_metric(["cached"], stats.cached_blocks)
    blocks.add_metric(["used"], stats.total_blocks - stats.free_blocks)
    yield blocks
    yield _counter("iterations", "Iterations of the engine", stats.iterations)
    yield _counter("preemptions", "Requests put back to wait for memory", stats.preemptions)
    yield _counter("prompt_tokens", "Tokens of the prompts admitted", stats.prompt_tokens)
    yield _counter(
        "cached_prompt_tokens", "Of those, found in the prefix cache", stats.cached_tokens
    )
    yield _counter(
        "relegations", "Requests put last, late for their TTFT target", stats.relegations
    )
    for name, about, seconds in (
        ("busy", "Seconds in which a pipeline stage computed", stats.stage_busy),
        ("bubble", "Seconds in which it had nothing to compute, with work", stats.stage_bubble),
    ):
        stages = CounterMetricFamily(f"sarathi_stage_{name}_seconds", about, labels=["stage"])
        for stage, value in enumerate(seconds):
            stages.add_metric([str(stage)], value)
        yield stages
    error = Metric(
        "sarathi_latency_model_relative_error",
        "Error of the predicted iteration time over the latest iterations",
        "summary",
    )
    for quantile, value in (("0.5", stats.model_error_median), ("0.9", stats.model_error_p90)):
        error.add_sample(error.name, {"quantile": quantile}, value)
    yield error


def _of_requests(latencies: Latencies) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "sarathi_requests", "Requests that ended, by how they did", labels=["outcome"]
    )
    for outcome, count in latencies.requests.items():
        requests.add_metric([outcome], count)
    yield requests
    yield _counter("output_tokens", "Tokens that the engine gave", latencies.output_tokens)
    yield _histogram(
        "time_to_first_token_seconds",
        "From the arrival of a request to its first token",
        latencies.time_to_first_token,
    )
    yield _histogram(
        "time_between_tokens_seconds",
        "Gap between two consecutive tokens of a request",
        latencies.time_between_tokens,
    )
    yield _histogram(
        "request_max_gap_seconds",
        "Longest gap between tokens of a finished request",
        latencies.max_gap,
    )
    yield _histogram(
        "end_to_end_latency_seconds",
        "From the arrival of a finished request to its last token",
        latencies.end_to_end,
    )
    yield _histogram(
        "scheduling_delay_seconds",
        "From the arrival of a request to the iteration that first computes some of it",
        latencies.scheduling_delay,
    )


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sarathi_{name}", about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"sarathi_{name}", about, value=value)


def _histogram(name: str, about: str, histogram: Histogram) -> Metric:
    buckets = [
        ("+Inf" if bound == math.inf else str(bound), count)
        for bound, count in histogram.cumulative()
    ]
    return HistogramMetricFamily(f"sarathi_{name}", about, buckets=buckets, sum_value=histogram.sum)
