"""Unknown fields change nothing, are named, and cost little."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.server.openai.chat_completions import ChatRequest
from sarathi.server.openai.completions import CompletionRequest
from sarathi.server.request_body import decode
from sarathi.server.unknown_fields import MAX_NAMES, unknown_fields
from tests.model_info import model_info
from tests.server.fake_engine import MODEL, VOCAB, FakeEngine, call, chat

PATH = "/v1/chat/completions"
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "b"},
    {"role": "user", "content": [{"type": "text", "text": "a"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}],
    },
    {"role": "tool", "content": "c", "tool_call_id": "1"},
]
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": MESSAGES,
    "stream_options": {"include_usage": False},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": {"y": 1}}}}],
    "tool_choice": "none",
    "chat_template_kwargs": {"suffix": "s"},
    "temperature": 0.5,
}
PLACES: dict[str, list[Any]] = {  # of objects whose fields are known, the keys that lead there
    "": [],
    "messages": ["messages", 0],
    "messages.content": ["messages", 1, "content", 0],
    "messages.tool_calls": ["messages", 2, "tool_calls", 0],
    "messages.tool_calls.function": ["messages", 2, "tool_calls", 0, "function"],
    "stream_options": ["stream_options"],
    "tools": ["tools", 0],
    "tools.function": ["tools", 0, "function"],
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=8,
)


def at(body: Any, keys: list[Any]) -> Any:
    for key in keys:
        body = body[key]
    return body


def answer(engine: FakeEngine, body: object) -> dict[str, Any]:
    response = call(engine, "POST", PATH, body)
    assert response.status_code == 200, response.text
    return {
        **response.json(),
        "id": "",
        "created": 0,
        "header": response.headers.get("x-sarathi-ignored"),
    }


@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(sorted(PLACES)), st.from_regex(r"x_[a-z0-9_]{0,8}", fullmatch=True)
        ),
        JSON,
        max_size=6,
    )
)
def test_the_reply_is_the_same_without_them(unknown):
    body = json.loads(json.dumps(BODY))
    for (place, name), value in unknown.items():
        at(body, PLACES[place])[name] = value
    info = model_info(max_model_len=4000, vocab_size=VOCAB)
    plain, engine = FakeEngine("d", info=info), FakeEngine("d", info=info)
    expected, reply = answer(plain, BODY), answer(engine, body)
    names = (reply.pop("header") or "").split(", ")
    assert expected.pop("header") is None
    assert reply == expected
    assert engine.generations[0].prompt == plain.generations[0].prompt
    assert engine.params == plain.params
    assert sorted(filter(None, names)) == sorted(
        f"{place}.{name}".lstrip(".") for place, name in unknown
    )


def test_each_is_named_once_without_indices():
    messages = [{"role": "user", "content": "a", "id": i} for i in range(5)]
    body = msgspec.json.encode({"messages": messages, "id": 1})
    assert unknown_fields(body, ChatRequest, complete=False) == ["id", "messages.id"]


def test_the_header_is_bounded_and_cannot_be_injected():
    names = ["a\r\nSet-Cookie: x", "x" * 5000, "\u2028", "a, b", "", *(f"n{i}" for i in range(99))]
    response = chat(FakeEngine(), **dict.fromkeys(names, 1))
    assert response.status_code == 200
    header = response.headers["x-sarathi-ignored"]
    assert header.startswith("a??Set-Cookie:?x, " + "x" * 64 + ", ?, a??b, , n0, ")
    assert len(header.split(", ")) == MAX_NAMES
    assert "set-cookie" not in response.headers


def test_each_is_logged_once(caplog):
    engine = FakeEngine()
    body = {"messages": [{"role": "user", "content": "a", "mood": 1}], "a\nb": 1}
    with caplog.at_level(logging.INFO, "sarathi"):
        response = call(engine, "POST", PATH, body)
    logged = [record.getMessage() for record in caplog.records]
    assert [("a?b" in each, "messages.mood" in each) for each in logged] == [
        (True, False),
        (False, True),
    ]
    assert not any("\n" in each for each in logged)
    assert response.status_code == 200


def test_an_error_of_a_known_field_comes_first():
    response = chat(FakeEngine(), mood=1, temperature="hot")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"


def _unique(count: int) -> bytes:
    return b",".join(b'"%x":1' % number for number in range(count))


SIZE = 8 * 2**20
USER = b'{"role":"user","content":"a"'
HOSTILE: dict[str, Callable[[], bytes]] = {
    "unknown fields": lambda: b'{"messages":[%s}],%s}' % (USER, _unique(800_000)),
    "a large one": lambda: b'{"context":[%s1],"messages":[%s}]}' % (b"1," * 4_000_000, USER),
    "messages": lambda: b'{"messages":[%s]}' % b",".join([USER + b"}"] * (SIZE // 32)),
    "messages with them": lambda: (
        b'{"messages":[%s]}' % b",".join(USER + b',"%x":1}' % i for i in range(SIZE // 45))
    ),
    "messages full of them": lambda: (
        b'{"messages":[%s]}' % b",".join([USER + b"," + _unique(6000) + b"}"] * 130)
    ),
    "parts": lambda: (
        b'{"messages":[{"role":"user","content":[%s]}]}'
        % b",".join([b'{"text":"","a":1}'] * (SIZE // 18))
    ),
    "a field without effect": lambda: (
        b'{"metadata":[%s{}],"messages":[%s}]}' % (b"{}," * 2_700_000, USER)
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_large_bodies_take_a_bounded_time(name):
    """It is that of reading such a body as lists and dictionaries."""
    body = HOSTILE[name]()
    began = time.process_time()
    json.loads(body)
    reading = time.process_time() - began
    began = time.process_time()
    _, ignored = decode(body, ChatRequest, strict=False)
    assert time.process_time() - began < max(2 * reading, 1.0)
    assert len(ignored) <= MAX_NAMES
    assert bool(ignored) == (name not in ("messages", "a field without effect"))


@pytest.mark.parametrize("size", [10, 70_000, 2_000_000])
def test_one_of_a_large_object_is_found(size):
    value = "x" * size
    body = msgspec.json.encode({"prompt": value, "known": 0, "logprobs": None})
    assert unknown_fields(body, CompletionRequest, complete=True) == ["known"]
    assert unknown_fields(body, CompletionRequest, complete=False) == ["known"]
    messages = [{"role": "user", "content": value, "mood": value}] * 2
    body = msgspec.json.encode({"messages": messages})
    assert unknown_fields(body, ChatRequest, complete=True) == ["messages.mood"]
    assert unknown_fields(body, ChatRequest, complete=False) == ["messages.mood"]


def test_names_and_values_with_known_names_inside_are_not_confused():
    body = b' \n{"messages": [{"role": "user", "content": "[{}]"}], "x": {"messages": 1}, '
    body += b'"\\u0061": 1}'
    assert unknown_fields(body, ChatRequest, complete=False) == ["x", "a"]


class Leaf(msgspec.Struct, tag_field="type", tag="leaf"):
    size: int | Literal["big"] = 0


class Tree(msgspec.Struct, tag_field="type", tag="tree", rename="camel"):
    left_side: Annotated[list[Tree | Leaf], msgspec.Meta(max_length=9)] | str | None = None
    other: tuple[Leaf, ...] | bool = True


class Forest(msgspec.Struct):
    trees: list[Tree | Leaf]
    first: Tree | int | float | None = None


LEAF: dict[str, Any] = {"type": "leaf", "size": 3}


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        (LEAF, []),
        ({**LEAF, "left": 1}, ["trees.left"]),
        ({"type": "tree", "leftSide": "a", "other": False}, []),
        ({"type": "tree", "leftSide": [LEAF, {"type": "tree"}], "other": [LEAF]}, []),
        ({"type": "tree", "left_side": None}, ["trees.left_side"]),
        ({"type": "tree", "leftSide": [{**LEAF, "a": 1}]}, ["trees.leftSide.a"]),
        ({"type": "tree", "other": [{**LEAF, "a": 1}]}, ["trees.other.a"]),
    ],
)
@pytest.mark.parametrize("first", [None, 1, 1.5, {"type": "tree"}])
def test_structs_in_unions_and_lists(tree, found, first):
    body = msgspec.json.encode({"trees": [LEAF, tree], "first": first})
    assert unknown_fields(body, Forest, complete=False) == found
    assert unknown_fields(body, Forest, complete=True) == found


def test_random_order_changes_nothing():
    items = list({**BODY, "x_1": 1, "x_2": [{}]}.items())
    for seed in range(5):
        random.Random(seed).shuffle(items)
        found = unknown_fields(json.dumps(dict(items)).encode(), ChatRequest, complete=False)
        assert sorted(found) == ["x_1", "x_2"]
