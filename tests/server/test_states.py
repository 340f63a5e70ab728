"""The server while loading, serving and failed; keys; and the small routes."""

from __future__ import annotations

import pytest

from sarathi.fleet.fleet import ReplicaStatus
from tests.server.fake_engine import LIMIT, MODEL, VOCAB, FakeEngine, call, complete, error

POSTS = {
    "/v1/completions": {"prompt": "p"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/tokenize": {"prompt": "p"},
    "/detokenize": {"tokens": [97]},
}


def failed() -> FakeEngine:
    engine = FakeEngine()
    engine.error = "out of memory"
    return engine


def get(engine: FakeEngine, path: str, **options):
    return call(engine, "GET", path, **options)


def test_health_is_ok_when_loaded():
    response = get(FakeEngine(), "/health")
    replicas = {"ready": 1, "starting": 0, "draining": 0, "failed": 0}
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "replicas": replicas}


def test_health_while_loading():
    response = get(FakeEngine(info=None), "/health")
    assert response.status_code == 503
    assert response.json()["status"] == "loading"


def test_health_after_the_engine_failed_has_the_reason():
    response = get(failed(), "/health")
    assert response.status_code == 503
    assert response.json().items() >= {"status": "failed", "reason": "out of memory"}.items()


def test_health_while_all_engines_are_started_again():
    engine = FakeEngine()
    engine.replicas = [ReplicaStatus(0, "starting", 0, 1, "killed by SIGKILL")]
    response = get(engine, "/health")
    # Requests are accepted and wait.
    assert response.status_code == 200
    assert response.json()["status"] == "restarting"
    assert "SIGKILL" in response.json()["reason"]
    assert response.json()["replicas"]["starting"] == 1


@pytest.mark.parametrize("path", POSTS)
def test_requests_while_loading_get_retry_after(path):
    response = call(FakeEngine(info=None), "POST", path, POSTS[path])
    assert error(response, 503)["code"] == "model_loading"
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", POSTS)
def test_requests_after_the_engine_failed_get_the_reason(path):
    response = call(failed(), "POST", path, POSTS[path])
    assert "out of memory" in error(response, 503)["message"]


def test_models_while_loading_have_no_length_yet():
    (model,) = get(FakeEngine(info=None), "/v1/models").json()["data"]
    assert model["max_model_len"] is None


def test_models_lists_the_one_served():
    listing = get(FakeEngine(), "/v1/models").json()
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert model["id"] == MODEL
    assert model["object"] == "model"
    assert model["owned_by"] == "sarathi"
    assert model["max_model_len"] == LIMIT
    assert get(FakeEngine(), f"/v1/models/{MODEL}").json()["id"] == MODEL


def test_another_model_is_not_found():
    assert error(get(FakeEngine(), "/v1/models/org/other"), 404, "model")["code"] == (
        "model_not_found"
    )


def test_version():
    assert get(FakeEngine(), "/version").json()["version"]


def test_tokenize_and_back():
    reply = call(FakeEngine(), "POST", "/tokenize", {"prompt": "hé"}).json()
    expected = {"tokens": [104, 195, 169], "count": 3, "max_model_len": LIMIT, "token_strs": None}
    assert reply == expected
    back = call(FakeEngine(), "POST", "/detokenize", {"tokens": reply["tokens"]}).json()
    assert back == {"prompt": "hé"}


def test_tokenize_messages_as_a_chat_would():
    body = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False}
    tokens = call(FakeEngine(), "POST", "/tokenize", body).json()["tokens"]
    assert bytes(tokens) == b"user:hi|"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [VOCAB]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_wrong_tokenisation_requests(path, body, param):
    error(call(FakeEngine(), "POST", path, body), 400, param)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer one more"},
        {"authorization": "Basic one"},
        {"authorization": "one"},
        {"authorization": "Bearer "},
    ],
)
@pytest.mark.parametrize("path", [*POSTS, "/stats", "/metrics", "/v1/models", "/v1/nothing"])
def test_nothing_is_served_without_a_valid_key(path, headers):
    method = "POST" if path in POSTS else "GET"
    response = call(
        FakeEngine(), method, path, POSTS.get(path), headers=headers, api_keys=["one", "two"]
    )
    assert error(response, 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["one", "two"])
@pytest.mark.parametrize("path", [*POSTS, "/stats", "/metrics", "/v1/models"])
def test_any_of_the_keys_opens_everything(path, key):
    method = "POST" if path in POSTS else "GET"
    headers = {"authorization": f"Bearer {key}"}
    response = call(
        FakeEngine(), method, path, POSTS.get(path), headers=headers, api_keys=["one", "two"]
    )
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/version"])
def test_health_and_version_need_no_key(path):
    assert get(FakeEngine(), path, api_keys=["one"]).status_code == 200


def test_a_request_that_the_engine_refuses_is_a_client_error():
    engine = FakeEngine(script=lambda prompt, params: [])
    engine.on_silence = "the KV cache cannot hold this request"
    for stream in (False, True):
        assert "KV cache" in error(complete(engine, stream=stream), 400)["message"]


def test_the_special_tokens_are_told_as_vllm_tells_them() -> None:
    info = call(FakeEngine(), "GET", "/tokenizer_info").json()
    assert info["eos_token"] == "<256>"
    assert info["bos_token"] is None
    assert info["chat_template"] == "{{ messages }}"
    assert info["vocab_size"] == VOCAB
