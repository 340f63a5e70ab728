"""The scheduling parameters of a request: priority, targets and tenant."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from sarathi.scheduler import SchedulingParams
from tests.server.fake_engine import INFO, MODEL, FakeEngine, call, chat, complete, error


def engine(**info) -> FakeEngine:
    return FakeEngine(info=msgspec.structs.replace(INFO, **info))


EFFECTIVE: dict[str, dict[str, Any]] = {
    "priority": {"order": "priority"},
    "ttft_target": {"order": "slack"},
    "tbt_target": {"tbt_target": 0.1},
}
NO_DURATIONS: list[Any] = [
    *(0, 0.0, -1, 86_401, 10**400, True, [1], {}),
    *("", "0", "-1s", "fast", "ms", "100 years", "1e3", "inf", "nan", "2d", "25h"),
    *("1" * 100_000, "100\x00ms", "\uff11s"),
]
BOTH_ENDPOINTS = pytest.mark.parametrize("ask", [complete, chat])


@BOTH_ENDPOINTS
def test_a_request_without_such_fields_has_the_defaults(ask):
    one = engine()
    assert ask(one).status_code == 200
    assert one.scheduling == SchedulingParams()


@BOTH_ENDPOINTS
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("priority", -(2**31), -(2**31)),
        ("priority", 2**31 - 1, 2**31 - 1),
        ("priority", 0, 0),
        ("ttft_target", "1.5s", 1.5),
        ("ttft_target", 86_400, 86_400.0),
        ("tbt_target", "100ms", 0.1),
        ("tbt_target", 0.05, 0.05),
        ("tbt_target", "0.05", 0.05),
        ("tbt_target", None, None),
    ],
)
def test_scheduling_params_reach_the_engine(ask, field, value, expected):
    one = engine(**EFFECTIVE[field])
    assert ask(one, **{field: value}).status_code == 200
    assert getattr(one.scheduling, field) == expected


def test_all_choices_of_a_request_have_its_scheduling_params():
    one = engine(order="priority")
    complete(one, ["a", "b"], n=2, priority=3)
    assert [generation.scheduling.priority for generation in one.generations] == [3] * 4


@BOTH_ENDPOINTS
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 2**31),
        ("priority", -(2**31) - 1),
        ("priority", 10**400),
        ("priority", 1.5),
        ("priority", "one"),
        ("priority", True),
        ("priority", [1]),
        *itertools.product(("ttft_target", "tbt_target"), NO_DURATIONS),
    ],
)
def test_malformed_fields_are_refused_by_name(ask, field, value):
    one = engine(**EFFECTIVE.get(field, {}))
    answer = error(ask(one, **{field: value}), 400, field)
    assert field in answer["message"]
    assert len(answer["message"]) < 300
    assert one.generations == []


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
@pytest.mark.parametrize("field", ["ttft_target", "tbt_target"])
def test_numbers_beyond_floats_are_refused(field, number):
    content = b'{"prompt": "a", "%s": %s}' % (field.encode(), number.encode())
    response = call(engine(**EFFECTIVE[field]), "POST", "/v1/completions", content=content)
    assert response.status_code == 400


def test_an_error_lists_the_accepted_forms_of_a_duration():
    one = engine(order="slack")
    message = error(complete(one, ttft_target="soon"), 400, "ttft_target")["message"]
    assert all(form in message for form in ("'soon'", "seconds", "100ms", "1.5s", "2m"))


@BOTH_ENDPOINTS
@pytest.mark.parametrize(
    ("field", "value", "info", "flag"),
    [
        ("priority", 1, {"order": "fcfs"}, "--order priority"),
        ("priority", -1, {"order": "slack"}, "--order priority"),
        ("ttft_target", 1, {"order": "fcfs"}, "--order slack"),
        ("ttft_target", "1s", {"order": "priority"}, "--order slack"),
        ("tbt_target", 1, {"tbt_target": None, "token_budget": 64}, "without --token-budget"),
        ("tbt_target", 1, {"tbt_target": None, "policy": "orca"}, "--policy sarathi"),
    ],
)
def test_a_field_without_effect_is_refused_with_the_flag_that_helps(ask, field, value, info, flag):
    one = engine(**info)
    answer = error(ask(one, **{field: value}), 400, field)
    assert answer["code"] == "unsupported_parameter"
    assert flag in answer["message"]
    assert one.generations == []


def test_priority_zero_is_accepted_everywhere():
    assert complete(engine(), priority=0).status_code == 200


def tenant(api_keys: list[str], key: str | None, user: str | None) -> str:
    one = engine(fair_by="tenant")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": MODEL, "prompt": "p", "user": user}
    response = call(one, "POST", "/v1/completions", body, headers=headers, api_keys=api_keys)
    assert response.status_code == 200
    return one.scheduling.tenant


@pytest.mark.parametrize(
    ("api_keys", "key", "user", "name"),
    [
        ([], None, None, ""),
        ([], None, "u" * 256, "u" * 256),
        (["secret"], "secret", None, ""),
        (["secret"], "secret", "me", "me"),
        (["secret", "other"], "secret", "me", "key 1"),
        (["secret", "other"], "other", "key 1", "key 2"),
        (["secret", "other"], "other", None, "key 2"),
    ],
)
def test_the_tenant_is_the_key_if_there_are_several_and_else_the_user(api_keys, key, user, name):
    assert tenant(api_keys, key, user) == name
