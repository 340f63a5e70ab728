"""POST /scale."""

from __future__ import annotations

from typing import Any

import pytest

from sarathi.fleet.engine_client import RequestLostError
from tests.server.fake_engine import FakeEngine, call, complete, error


def scale(engine: FakeEngine, body: object, **options: Any):
    return call(engine, "POST", "/scale", body, **options)


def test_it_answers_with_the_state_of_each_replica():
    engine = FakeEngine()
    response = scale(engine, {"replicas": 2})
    assert response.status_code == 200
    first, second = response.json()["replicas"]
    assert (first["number"], second["number"]) == (0, 1)
    assert first.keys() == {"number", "state", "requests", "restarts", "reason"}
    assert engine.scaled == [(2, None)]


def test_the_drain_timeout_reaches_the_engine():
    engine = FakeEngine()
    assert scale(engine, {"replicas": 1, "drain_timeout": "90s"}).status_code == 200
    assert scale(engine, {"replicas": 1, "drain_timeout": 0.5}).status_code == 200
    assert engine.scaled == [(1, 90.0), (1, 0.5)]


@pytest.mark.parametrize("count", [0, 5, -1])
def test_a_number_out_of_range_is_refused_with_the_range(count):
    engine = FakeEngine()
    refusal = error(scale(engine, {"replicas": count}), 400, "replicas")
    assert "expected 1 to 4" in refusal["message"]
    assert engine.scaled == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "replicas"),
        ({"replicas": "two"}, "replicas"),
        ({"replicas": 1.5}, "replicas"),
        ({"replicas": 1, "drain_timeout": "soon"}, "drain_timeout"),
        ({"replicas": 1, "drain_timeout": -1}, "drain_timeout"),
        ({"replicas": 1, "colour": "red"}, "colour"),
    ],
)
def test_invalid_requests_are_refused(body, param):
    engine = FakeEngine()
    error(scale(engine, body), 400, param)
    assert engine.scaled == []


def test_it_needs_a_key_where_others_do():
    engine = FakeEngine()
    assert scale(engine, {"replicas": 2}, api_keys=["one"]).status_code == 401
    assert engine.scaled == []


def test_while_the_first_engine_loads_there_is_nothing_to_scale():
    assert scale(FakeEngine(info=None), {"replicas": 2}).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_engines_die_of_is_a_server_error(stream):
    engine = FakeEngine(script=lambda prompt, params: [])
    engine.lost = RequestLostError("the engine died 3 times")
    response = complete(engine, stream=stream)
    assert error(response, 500) == {
        "message": "The engine died 3 times.",
        "type": "server_error",
        "param": None,
        "code": "engine_died",
    }
