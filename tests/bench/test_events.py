from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.bench.client.answer import (
    Answer,
    ChunkUsage,
    EventError,
    EventSplitter,
    TokenTimes,
    error_message,
    read_chunk,
    server_timing,
    spread_over_tokens,
)

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def split(*pieces: bytes) -> list[bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_are_found_whatever_the_line_ends(end: bytes) -> None:
    lines = [
        b": ping",
        b"",
        b"event: x",
        b"id: 7",
        b"data: one",
        b"",
        b"data:two",
        b"data:  2",
        b"",
    ]
    assert split(b"".join(line + end for line in lines)) == [b"one", b"two\n 2"]


def test_an_event_that_is_not_ended_is_none() -> None:
    assert split(b"data: one\n\ndata: two\n") == [b"one"]


def test_fields_that_only_begin_like_data_are_ignored() -> None:
    assert split(b"database: x\n\ndata\n\n") == []


@given(
    events=st.lists(st.lists(st.sampled_from([b"", b"a", b" b: c", b"{}"]), min_size=1)),
    end=st.sampled_from([b"\n", b"\r\n"]),
    data=st.data(),
)
def test_events_do_not_depend_on_how_they_are_cut(
    events: list[list[bytes]], end: bytes, data: st.DataObject
) -> None:
    text = b"".join(b"".join(b"data: " + line + end for line in e) + end for e in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(*pieces) == [b"\n".join(event) for event in events]


def test_an_event_without_end_does_not_fill_the_memory() -> None:
    with pytest.raises(EventError, match="bytes"):
        split(*[b"x" * 2**16] * 100)


def test_a_chunk_has_text_reasons_and_usage() -> None:
    chunk = read_chunk(
        b'{"id":"1","choices":[{"index":0,"text":"ab","finish_reason":"length"}],"usage":'
        b'{"completion_tokens":3,"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}'
    )
    assert chunk.choices is not None
    assert (chunk.choices[0].length, chunk.choices[0].finish_reason) == (2, "length")
    assert chunk.usage is not None
    assert (chunk.usage.prompt_tokens, chunk.usage.cached_tokens) == (5, 4)


@pytest.mark.parametrize(
    ("delta", "length"),
    [
        ({"content": "abc"}, 3),
        ({"role": "assistant", "content": ""}, 0),
        ({"content": None, "reasoning_content": "ab"}, 2),
        ({"reasoning": "ab", "content": "c"}, 3),
        ({}, 0),
    ],
)
def test_thoughts_are_text_too(delta: dict[str, Any], length: int) -> None:
    chunk = read_chunk(json.dumps({"choices": [{"delta": delta}], "usage": None}).encode())
    assert chunk.choices is not None
    assert chunk.choices[0].length == length


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"[]",
        b"{}",
        b"5",
        b'{"choices": 3}',
        b'{"choices":[{"text": 5}]}',
        b'{"usage": {"completion_tokens": -1}}',
        b'{"usage": {"completion_tokens": 999999999999}}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_not_of_the_shape_is_malformed(event: bytes) -> None:
    with pytest.raises(EventError):
        read_chunk(event)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "full", "code": 3}}', "full"),
        (b'{"error": "full"}', "full"),
        (b'{"object": "error", "message": "full"}', "full"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": {"code": 3}}', '{"code":3}'),
        (b'{"detail": [{"loc": "x"}]}', '[{"loc":"x"}]'),
        (b"<html>", None),
        (b"[]", None),
    ],
)
def test_errors_are_understood_in_the_words_of_many_servers(
    body: bytes, message: str | None
) -> None:
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("queue;dur=12.5", 0.0125),
        ('cache;desc="a, b; queue;dur=1", queue;desc=x;dur=3', 0.003),
        ('db;dur=53 , QUEUE ; desc="waiting \\" here" ; DUR="7"', 0.007),
        ("queue;dur=1, queue;dur=2", 0.001),
        ("queue", None),
        ("queue;dur=", None),
        ("queue;dur=soon", None),
        ("queue;dur=-1", None),
        ("queue;dur=nan", None),
        ("prequeue;dur=1", None),
        (';,;"', None),
        ("", None),
    ],
)
def test_server_timing_is_read_leniently(header: str, seconds: float | None) -> None:
    assert server_timing(header, "queue") == (None if seconds is None else pytest.approx(seconds))


def settled(
    *events: tuple[float, int, int | None], final: int | None = None
) -> tuple[list[float], bool]:
    """Of events as time, length of text, tokens by now; and of a last event with the usage."""
    times = TokenTimes()
    for now, length, count in events:
        times.add(now, length, None if count is None else ChunkUsage(count), choices=True)
    if final is not None:
        times.add(9.0, 0, ChunkUsage(final), choices=False)
    return times.settle()


def test_with_usage_in_every_event_times_are_exact() -> None:
    events = [(0.0, 0, 0), (1.0, 5, 1), (2.0, 9, 4), (3.0, 2, 4), (4.0, 0, 5), (5.0, 0, 5)]
    assert settled(*events, final=5) == ([1.0, 2.0, 2.0, 2.0, 4.0], False)


def test_tokens_that_no_event_brought_are_estimated() -> None:
    assert settled((1.0, 4, 1), final=2) == ([1.0, 9.0], True)
    assert settled((1.0, 0, None), final=2) == ([9.0, 9.0], True)


def test_with_usage_at_the_end_events_are_tokens_if_their_numbers_agree() -> None:
    assert settled((1.0, 3, None), (2.0, 3, None), final=2) == ([1.0, 2.0], False)


def test_usage_only_in_the_last_event_with_text_is_not_usage_in_every_event() -> None:
    assert settled((1.0, 3, None), (2.0, 3, None), (3.0, 3, 3)) == ([1.0, 2.0, 3.0], False)


def test_a_count_that_stays_zero_until_the_end_is_ignored() -> None:
    assert settled((1.0, 3, 0), (2.0, 3, 0), final=2) == ([1.0, 2.0], False)


def test_more_tokens_than_events_go_where_the_text_is_long() -> None:
    assert settled((1.0, 5, None), (2.0, 20, None), (3.0, 5, None), final=6) == (
        [1.0, 2.0, 2.0, 2.0, 2.0, 3.0],
        True,
    )


def test_fewer_tokens_than_events_are_parts_that_came_together() -> None:
    events = [(1.0, 2, None), (2.0, 2, None), (2.001, 2, None), (3.0, 2, None), (3.0, 2, None)]
    assert settled(*events, final=3) == ([1.0, 2.0, 3.0], True)


def test_without_usage_every_event_with_text_is_a_token() -> None:
    assert settled((1.0, 3, None), (2.0, 0, None), (3.0, 3, None)) == ([1.0, 3.0], True)


@given(
    pieces=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=40),
    tokens=st.integers(1, 300),
)
def test_times_are_as_many_as_tokens_and_all_of_them_times_of_events(
    pieces: list[tuple[float, int]], tokens: int
) -> None:
    times = sorted(time for time, _ in pieces)
    found = spread_over_tokens(times, [length for _, length in pieces], tokens)
    assert len(found) == tokens
    assert found == sorted(found)
    assert found[0] == times[0]
    assert set(found) <= set(times)
    if tokens >= len(times):
        assert set(found) == set(times)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 7))
def test_tokens_of_equal_length_are_found_exactly(counts: list[int], length: int) -> None:
    times = [float(i) for i in range(len(counts))]
    found = spread_over_tokens(times, [count * length for count in counts], sum(counts))
    assert found == [time for time, count in zip(times, counts, strict=True) for _ in range(count)]


def read(
    pieces: Sequence[bytes], asked: int = 2, exact: bool = False, close: bool = True
) -> Answer:
    """An answer of which a piece comes every second."""
    answer = Answer(asked, exact)
    for second, piece in enumerate(pieces):
        answer.feed(piece, float(second))
    if close:
        answer.end_of_data()
    return answer


def event(text: str, reason: str | None = None) -> bytes:
    return (
        b"data: %b\n\n"
        % json.dumps({"choices": [{"text": text, "finish_reason": reason}]}).encode()
    )


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = read([HEAD + b"\r\n", event("a"), event("b", "stop")])
    assert (answer.failure, answer.tokens) == (None, [1.0, 2.0])


def test_a_provisional_answer_is_not_the_answer() -> None:
    first = b"HTTP/1.1 100 Continue\r\nserver-timing: queue;dur=1\r\n\r\n"
    answer = read([first, HEAD + b"\r\n", event("a", "stop")])
    assert (answer.failure, answer.tokens, answer.scheduling_delay) == (None, [2.0], None)


def test_done_alone_is_not_the_end_of_the_message() -> None:
    chunk = event("a") + b"data: [DONE]\n\n"
    body = b"%x\r\n%b\r\n" % (len(chunk), chunk)
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    cut = read([head, body])
    assert cut.failure == "dropped"
    assert read([head, body, b"0\r\n\r\n"], close=False).failure is None


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([], "dropped"),
        ([b"HTTP/1.1 200"], "dropped"),
        ([HEAD + b"\r\n"], "malformed"),
        ([HEAD + b"\r\n", event("a")], "dropped"),
        ([HEAD + b"content-length: 0\r\n\r\n"], "malformed"),
        ([HEAD.replace(b"text/event-stream", b"application/json") + b"\r\n{}"], "malformed"),
        ([HEAD + b"\r\ndata: {\n\n"], "malformed"),
        ([HEAD + b'\r\ndata: {"error": "out of memory"}\n\n'], "error_event"),
        ([b"SSH-2.0-OpenSSH\r\n"], "malformed"),
        ([b"HTTP/1.1 503 Busy\r\ncontent-length: 99\r\n\r\nwait"], "status_503"),
        ([b"HTTP/1.1 307 Away\r\nlocation: https://x\r\n\r\n"], "status_307"),
        ([b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], "status_101"),
    ],
)
def test_an_answer_fails_by_its_kind(pieces: list[bytes], kind: str) -> None:
    assert read(pieces).failure == kind


def test_the_detail_is_the_servers_message_on_one_short_line() -> None:
    body = json.dumps({"error": {"message": "too\nlong " * 100}}).encode()
    detail = read([b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\n\r\n" % len(body) + body]).detail
    assert detail is not None
    assert detail.startswith("too long too long")
    assert len(detail) == 300


def test_too_few_tokens_are_a_failure_only_where_the_server_counts_them() -> None:
    usage = b'data: {"choices":[],"usage":{"completion_tokens":1}}\n\n'
    short = read([HEAD + b"\r\n", event("a", "stop"), usage], exact=True)
    assert short.failure == "short"
    assert short.tokens == [1.0]
    assert read([HEAD + b"\r\n", event("a", "stop")], exact=True).failure is None


def counted(tokens: int) -> bytes:
    return b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n' % tokens


@pytest.mark.parametrize(
    ("pieces", "tokens"), [([event("a")] * 21, 21), ([event("a") * 30], 21), ([counted(21)], 0)]
)
def test_far_more_tokens_than_asked_for_are_malformed(pieces: list[bytes], tokens: int) -> None:
    answer = read([HEAD + b"\r\n", *pieces, event("a")], close=False)
    assert answer.over
    assert answer.failure == "malformed"
    assert answer.detail == "more than 20 tokens came; 2 were asked for"
    assert len(answer.tokens) == tokens


def test_some_more_tokens_than_asked_for_are_taken_as_they_are() -> None:
    answer = read([HEAD + b"\r\n", *[event("a")] * 19, event("b", "stop"), counted(20)])
    assert (answer.failure, len(answer.tokens)) == (None, 20)


@given(st.lists(st.integers(0, 400), max_size=5))
def test_an_answer_does_not_depend_on_how_it_is_cut(cuts: list[int]) -> None:
    stream = event("a") + event("bc", "length") + b"data: [DONE]\r\n\r\n"
    text = HEAD + b"content-length: %d\r\n\r\n" % len(stream) + stream
    places = sorted(min(cut, len(text)) for cut in cuts)
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    answer = read(pieces, close=False)
    assert answer.over
    assert answer.failure is None
    assert len(answer.tokens) == 2
