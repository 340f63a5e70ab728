"""POST /v1/embeddings, in the forms that clients use."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.server.fake_engine import LIMIT, MODEL, VOCAB, FakeEngine, call, error


def embed(engine: FakeEngine, value: Any = "abc", **fields: Any) -> Any:
    return call(engine, "POST", "/v1/embeddings", {"model": MODEL, "input": value, **fields})


def vectors(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


def test_the_reply_is_openais():
    reply = embed(FakeEngine(), ["abc", "de"]).json()
    assert reply["object"] == "list"
    assert reply["model"] == MODEL
    assert [(each["object"], each["index"]) for each in reply["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert reply["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_every_form_of_input(value, ids):
    engine = FakeEngine()
    assert embed(engine, value).status_code == 200
    assert [generation.prompt for generation in engine.generations] == ids
    assert all(generation.params.max_tokens == 0 for generation in engine.generations)


def test_the_last_token_is_pooled_unless_the_mean_is_asked_for():
    last = vectors(embed(FakeEngine()))
    assert (last == vectors(embed(FakeEngine(), pooling="last"))).all()
    assert last[0].tolist() == [1, *[0] * 7]
    assert vectors(embed(FakeEngine(), pooling="mean"))[0, :2] == pytest.approx(
        np.array([3, 1]) / 10**0.5
    )


def test_base64_has_the_same_numbers():
    (each,) = embed(FakeEngine(), encoding_format="base64", pooling="mean").json()["data"]
    decoded = np.frombuffer(base64.b64decode(each["embedding"]), "<f4")
    assert (decoded == vectors(embed(FakeEngine(), pooling="mean"))[0]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", None),
        ("input", ""),
        ("input", []),
        ("input", ["a", ""]),
        ("input", ["a", 1]),
        ("input", [VOCAB]),
        ("input", ["a"] * 2049),
        ("dimensions", 7),
        ("pooling", "max"),
        ("encoding_format", "hex"),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    engine = FakeEngine()
    error(
        embed(
            engine,
            **{"value": "a", **({"value": value} if field == "input" else {})},
            **({} if field == "input" else {field: value}),
        ),
        400,
        field,
    )
    assert not engine.generations


def test_fields_that_change_nothing():
    fields = {"dimensions": 8, "user": "me", "encoding_format": "float"}
    assert embed(FakeEngine(), **fields).status_code == 200


def test_a_text_may_fill_the_model():
    assert embed(FakeEngine(), "x" * LIMIT).status_code == 200
    error(embed(FakeEngine(), "x" * (LIMIT + 1)), 400)


def test_nothing_goes_on_after_a_failure():
    engine = FakeEngine()
    engine.error = "it died"
    error(embed(engine), 503)


# A letter of two tokens: that the second is too long shows only once it is tokenised.
@pytest.mark.parametrize("value", ["a" * (LIMIT + 1), ["b", "é" * LIMIT], [1] * (LIMIT + 1)])
def test_a_text_beyond_the_models_length_has_openais_code(value):
    engine = FakeEngine()
    reply = error(embed(engine, value), 400)
    assert reply["code"] == "context_length_exceeded"
    assert engine.generations == []
    assert embed(engine, "a" * LIMIT).status_code == 200
