from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from sarathi.sampling.params import MAX_LOGPROBS, MAX_N, SamplingError, SamplingParams

INTEGERS = ("max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs", "n")
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")
NULLABLE = ("max_tokens", "seed", "logprobs", "prompt_logprobs")


def refused(field: str, value: Any) -> SamplingError:
    with pytest.raises(SamplingError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(field)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("min_tokens", 17),  # above max_tokens
        ("temperature", -0.1),
        ("temperature", 100.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("presence_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 101),
        ("logprobs", -1),
        ("logprobs", MAX_LOGPROBS + 1),
        ("n", 0),
        ("n", MAX_N + 1),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: -100.5}),
        ("logit_bias", {-1: 1.0}),
        ("stop", ("ok", "")),
        ("stop_token_ids", (-1,)),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    refused(field, value)


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, True, "1", None, [1]])
def test_numbers_must_be_finite_numbers(field: str, value: Any) -> None:
    assert "expected a number" in str(refused(field, value))


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0, 1.5, True, "1", [1]])
def test_integers_must_be_integers(field: str, value: Any) -> None:
    assert "expected an integer" in str(refused(field, value))


@pytest.mark.parametrize("field", [field for field in INTEGERS if field not in NULLABLE])
def test_only_optional_integers_may_be_none(field: str) -> None:
    refused(field, None)


@pytest.mark.parametrize("field", NULLABLE)
def test_optional_integers_may_be_none(field: str) -> None:
    fields: dict[str, Any] = {field: None}
    assert getattr(SamplingParams(**fields), field) is None


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_flags_must_be_booleans(field: str, value: Any) -> None:
    refused(field, value)


@pytest.mark.parametrize(
    "value", [None, [1, 2], "x", {"1": 1.0}, {True: 1.0}, {1.0: 1.0}, {1: math.nan}, {1: True}]
)
def test_a_malformed_logit_bias_is_refused(value: Any) -> None:
    refused("logit_bias", value)


@pytest.mark.parametrize("value", [None, "stop", 5, (5,), ("a", None)])
def test_malformed_stop_strings_are_refused(value: Any) -> None:
    refused("stop", value)


@pytest.mark.parametrize("value", [None, 5, "12", (1.0,), (True,), ("1",)])
def test_malformed_stop_tokens_are_refused(value: Any) -> None:
    refused("stop_token_ids", value)


def test_several_choices_of_a_greedy_request_are_equal() -> None:
    first, second = SamplingParams(n=2, temperature=0).choices()
    assert first == second == SamplingParams(temperature=0)


def test_min_tokens_has_no_upper_limit_without_max_tokens() -> None:
    assert SamplingParams(max_tokens=None, min_tokens=10**6).min_tokens == 10**6


def test_the_message_has_the_accepted_range() -> None:
    message = str(refused("top_p", 1.5))
    assert message == "top_p is 1.5, expected a number greater than 0.0 and at most 1.0"


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0, top_k=-1, min_p=1, top_p=1, logprobs=0),
        SamplingParams(temperature=1, presence_penalty=-2, repetition_penalty=100),
        SamplingParams(
            seed=-(2**63), logit_bias={0: -100, 7: 100.0}, stop=("a", "b"), stop_token_ids=(0, 5)
        ),
    ],
)
def test_sound_parameters_survive_the_wire(params: SamplingParams) -> None:
    wire = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(wire, type=SamplingParams) == params


def test_greedy_means_temperature_zero() -> None:
    assert SamplingParams(temperature=0).greedy
    assert not SamplingParams(temperature=1e-6, top_k=1).greedy
