from __future__ import annotations

import json

import pytest

from tests.server.fake_engine import LIMIT, MODEL, VOCAB, FakeEngine, call, chat, complete, error

BODY = {"model": MODEL, "prompt": "p"}


def post(content: bytes, path: str = "/v1/completions", **options):
    return call(FakeEngine(), "POST", path, content=content, **options)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": "a"} {}',
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b'{"model": "\xff\xfe"}',
        b'{"\xff": 1}',
        b'{"model": "\\ud800"}',
        b'{"model": "\\ud800 and more text after it"}',
        b'{"model": "\\udc00 and more text after it"}',
        b'{"model": "a\x00b"}',
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
)
def test_invalid_json_is_refused(content, path):
    assert error(post(content, path), 400)["code"] == "invalid_json"


def test_nesting_without_end_is_refused():
    content = b'{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    assert error(post(content), 400)["code"] == "invalid_json"


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"3"])
def test_json_other_than_an_object_is_refused(content):
    assert "object" in error(post(content), 400)["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "five"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("max_tokens", -2),
        ("max_tokens", 10**400),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", 1e9),
        ("top_p", -0.1),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("top_p", "nan"),
        ("use_beam_search", True),
        ("best_of", 2),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 0.5),
        ("min_p", 2),
        ("seed", 0.5),
        ("seed", "x"),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("n", 0),
        ("n", 100_000),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {str(VOCAB): 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"word": 1}),
        ("logit_bias", {"5": "much"}),
        ("logit_bias", [5]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 2000),
        ("stop_token_ids", [VOCAB]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 5),
        ("stream", "yes"),
        ("echo", 2),
        ("ignore_eos", "no"),
        ("suffix", "end"),
        ("response_format", "json"),
        ("prompt", None),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", ["a", ""]),
        ("prompt", 5),
        ("prompt", {"text": "a"}),
        ("prompt", ["a", 1]),
        ("prompt", [1, [2]]),
        ("prompt", [VOCAB]),
        ("prompt", [-1]),
        ("prompt", [[1], [VOCAB]]),
        ("model", 5),
    ],
)
def test_values_out_of_range_or_type_are_refused_by_name(field, value):
    engine = FakeEngine()
    answer = error(complete(engine, **{"prompt": "p", field: value}), 400, field)
    assert field in answer["message"]
    assert engine.generations == []


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_floats_is_refused(number):
    error(post(b'{"prompt": "a", "temperature": %s}' % number.encode()), 400, "temperature")


def test_a_nested_type_error_is_named_with_its_path():
    error(complete(FakeEngine(), [[1, 2], [3, "x"]]), 400, "prompt[1][1]")
    error(complete(FakeEngine(), stop=["a", 1]), 400, "stop[1]")


@pytest.mark.parametrize("ask", [complete, chat])
@pytest.mark.parametrize("include_usage", [False, None])
def test_continuous_usage_needs_include_usage(ask, include_usage):
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    response = ask(FakeEngine(), stream=True, stream_options=options)
    assert (
        "include_usage" in error(response, 400, "stream_options.continuous_usage_stats")["message"]
    )


@pytest.mark.parametrize("ask", [complete, chat])
def test_an_unknown_model_is_not_found(ask):
    answer = error(ask(FakeEngine(), model="gpt-9"), 404, "model")
    assert answer["code"] == "model_not_found"
    assert "gpt-9" in answer["message"]


def test_a_prompt_beyond_the_models_length_is_refused_with_the_numbers():
    body = {"prompt": "x" * 95, "max_tokens": 6}
    answer = error(call(FakeEngine(), "POST", "/v1/completions", body, strict=True), 400)
    assert answer["code"] == "context_length_exceeded"
    assert all(number in answer["message"] for number in ("95", "6", str(LIMIT)))


def test_a_prompt_that_leaves_no_token_for_output_is_refused():
    answer = error(chat(FakeEngine(), [{"role": "user", "content": "x" * LIMIT}]), 400)
    assert answer["code"] == "context_length_exceeded"


def test_prompt_and_output_may_fill_the_models_length():
    assert complete(FakeEngine(), "x" * 95, max_tokens=5).status_code == 200


def test_a_body_beyond_the_limit_is_refused():
    body = json.dumps({"model": MODEL, "prompt": "x" * 2000}).encode()
    assert error(post(body, max_body=1000), 413)["code"] == "request_too_large"
    assert post(body, max_body=10_000).status_code == 400  # too many tokens, but not bytes


def test_a_body_without_a_length_is_measured_while_it_is_read():
    async def chunks():
        for _ in range(20):
            yield b"x" * 100

    error(post(chunks(), max_body=1000), 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("PUT", "/tokenize", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/", 405),
        ("GET", "/v2", 404),
        ("POST", "/v1/nothing", 404),
        ("POST", "/v1/completions//", 404),
    ],
)
def test_wrong_methods_and_paths_are_answered_in_the_same_form(method, path, status):
    response = call(FakeEngine(), method, path, BODY)
    error(response, status)
    if status == 405:
        assert response.headers["allow"]


def test_a_failure_of_the_server_is_answered_in_the_same_form():
    class Broken(FakeEngine):
        def submit(self, prompt_ids, params, scheduling):
            raise ZeroDivisionError

    answer = error(complete(Broken()), 500)
    assert "ZeroDivisionError" not in answer["message"]
