"""GET /stats, GET /metrics, and cached tokens in the usage."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sarathi.fleet.fleet import ReplicaState, ReplicaStatus
from sarathi.telemetry.stats import Stats
from tests.server.fake_engine import INFO, FakeEngine, call, chat, complete, events

STATS = Stats(
    running=1,
    waiting=2,
    free_blocks=30,
    cached_blocks=10,
    total_blocks=50,
    preemptions=3,
    iterations=40,
    prompt_tokens=200,
    cached_tokens=50,
    relegations=4,
    model_error_median=0.02,
    model_error_p90=0.08,
    stage_busy=[5.0, 4.0],
    stage_bubble=[0.5, 1.5],
)
REPLICAS = {
    "sarathi_replicas[ready]": 1,
    "sarathi_replicas[starting]": 0,
    "sarathi_replicas[draining]": 0,
    "sarathi_replicas[failed]": 0,
    "sarathi_replica_restarts_total": 0,
    "sarathi_requests_resumed_total": 0,
}
IDLE = {"running": 0, "waiting": 0, "free_blocks": INFO.num_blocks, "preemptions": 0}


def after_work(**info) -> FakeEngine:
    engine = FakeEngine(info=msgspec.structs.replace(INFO, **info))
    engine.stats = STATS
    return engine


def metrics(engine: FakeEngine, *, histograms: bool = False) -> dict[str, float]:
    """Name and labels, as they are written, to value."""
    response = call(engine, "GET", "/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f"[{label}]" for label in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        if (family.type == "histogram") is histograms
        for sample in family.samples
        if sample.name != "sarathi_engine_info"
    }


def test_stats_before_the_first_iteration():
    stats = call(FakeEngine(), "GET", "/stats").json()
    assert stats.items() >= IDLE.items()
    assert stats["total_blocks"] == INFO.num_blocks
    assert stats["prefix_hit_rate"] is None


def test_stats_have_all_that_the_engine_reports():
    stats = call(after_work(), "GET", "/stats").json()
    assert stats == {
        **msgspec.structs.asdict(STATS),
        "prefix_hit_rate": 0.25,
        "tbt_target": 0.1,
        "token_budget": None,
        "replicas": {"ready": 1, "starting": 0, "draining": 0, "failed": 0},
        "replica_restarts": 0,
        "requests_resumed": 0,
    }


def test_stats_of_a_fixed_budget():
    stats = call(after_work(tbt_target=None, token_budget=64), "GET", "/stats").json()
    assert (stats["tbt_target"], stats["token_budget"]) == (None, 64)


def test_metrics_have_all_that_the_engine_reports():
    assert metrics(after_work()) == {
        **REPLICAS,
        "sarathi_engine_up": 1,
        "sarathi_tbt_target_seconds": 0.1,
        "sarathi_max_batch_size": 8,
        "sarathi_requests_running": 1,
        "sarathi_requests_waiting": 2,
        "sarathi_kv_blocks[free]": 20,
        "sarathi_kv_blocks[cached]": 10,
        "sarathi_kv_blocks[used]": 20,
        "sarathi_iterations_total": 40,
        "sarathi_preemptions_total": 3,
        "sarathi_prompt_tokens_total": 200,
        "sarathi_cached_prompt_tokens_total": 50,
        "sarathi_relegations_total": 4,
        "sarathi_stage_busy_seconds_total[0]": 5.0,
        "sarathi_stage_busy_seconds_total[1]": 4.0,
        "sarathi_stage_bubble_seconds_total[0]": 0.5,
        "sarathi_stage_bubble_seconds_total[1]": 1.5,
        "sarathi_latency_model_relative_error[0.5]": 0.02,
        "sarathi_latency_model_relative_error[0.9]": 0.08,
        "sarathi_requests_total[stop]": 0,
        "sarathi_requests_total[length]": 0,
        "sarathi_requests_total[cancelled]": 0,
        "sarathi_requests_total[failed]": 0,
        "sarathi_output_tokens_total": 0,
    }


def test_metrics_count_requests_by_outcome():
    engine = after_work()
    for value, outcome in enumerate(engine.latencies.requests, 1):
        engine.latencies.requests[outcome] = value
    engine.latencies.time_to_first_token.observe(1.0)
    engine.latencies.time_between_tokens.observe(1.0)
    found = metrics(engine)
    assert found["sarathi_requests_total[stop]"] == 1
    assert found["sarathi_requests_total[length]"] == 2
    assert found["sarathi_requests_total[cancelled]"] == 3
    assert found["sarathi_requests_total[failed]"] == 4
    assert found["sarathi_output_tokens_total"] == 2


@pytest.mark.parametrize(
    ("name", "histogram"),
    [
        ("time_to_first_token", "time_to_first_token"),
        ("time_between_tokens", "time_between_tokens"),
        ("request_max_gap", "max_gap"),
        ("end_to_end_latency", "end_to_end"),
        ("scheduling_delay", "scheduling_delay"),
    ],
)
def test_metrics_have_the_latencies_as_histograms(name, histogram):
    engine = after_work()
    for value in (0.0, 0.1, 0.125, 10000.0):
        getattr(engine.latencies, histogram).observe(value)
    found = metrics(engine, histograms=True)
    name = f"sarathi_{name}_seconds"
    at_most = {"0.001": 1, "0.075": 1, "0.1": 2, "0.15": 3, "600.0": 3, "+Inf": 4}
    assert {bound: found[f"{name}_bucket[{bound}]"] for bound in at_most} == at_most
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == (4, 10000.225)
    assert sum(value for key, value in found.items() if key.endswith("_count")) == 4


def test_metrics_name_a_fixed_budget_instead_of_a_target():
    found = metrics(after_work(tbt_target=None, token_budget=64))
    assert found["sarathi_token_budget"] == 64
    assert "sarathi_tbt_target_seconds" not in found


def test_metrics_follow_the_engine():
    engine = FakeEngine()
    assert metrics(engine)["sarathi_iterations_total"] == 0
    assert metrics(engine)["sarathi_stage_bubble_seconds_total[0]"] == 0
    engine.stats = STATS
    assert metrics(engine)["sarathi_iterations_total"] == 40


def test_metrics_have_the_engine_s_options():
    text = call(after_work(order="slack"), "GET", "/metrics").text
    assert 'order="slack"' in text
    assert 'policy="sarathi"' in text


@pytest.mark.parametrize("reason", [None, "out of memory"])
def test_metrics_of_an_engine_that_does_not_answer(reason):
    engine = after_work() if reason else FakeEngine(info=None)
    engine.error = reason
    found = metrics(engine)
    assert found.pop("sarathi_engine_up") == 0
    assert found.keys() == REPLICAS.keys()


def test_metrics_count_replicas_by_state():
    engine = after_work()
    states: tuple[ReplicaState, ...] = ("ready", "ready", "starting", "draining")
    engine.replicas = [ReplicaStatus(n, state, 0, 0) for n, state in enumerate(states)]
    engine.restarts, engine.resumed = 3, 7
    found = metrics(engine)
    assert [found[name] for name in REPLICAS] == [2, 1, 1, 0, 3, 7]


@pytest.mark.parametrize("ask", [complete, chat])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_usage_has_the_cached_tokens_of_the_first_choice(ask, n, stream):
    engine = FakeEngine("Hi", cached=lambda prompt: 5)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = ask(engine, n=n, stream=stream, **options)
    last = events(response)[-1] if stream else response.json()
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}


def test_cached_tokens_are_those_of_all_prompts():
    engine = FakeEngine("Hi", cached=len)
    usage = complete(engine, ["a", "bc", "def"], n=2).json()["usage"]
    assert usage["prompt_tokens"] == 6
    assert usage["prompt_tokens_details"] == {"cached_tokens": 6}
