"""Streams with the usage so far in every chunk."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.fake_engine import EOS, FakeEngine, chat, complete, events

OPTIONS = {"include_usage": True, "continuous_usage_stats": True}


def scripted(*steps: list[int]) -> FakeEngine:
    return FakeEngine(script=lambda prompt, params: [list(step) for step in steps])


def counts(replies: list[Any]) -> list[int]:
    return [reply["usage"]["completion_tokens"] for reply in replies]


def test_every_chunk_counts_the_tokens_so_far():
    *replies, last = events(complete(FakeEngine("Hi"), "abc", stream=True, stream_options=OPTIONS))
    assert [reply["usage"] for reply in replies] == [
        {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
        for count in (1, 2, 3)
    ]
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_the_chunk_with_the_role_counts_the_token_that_it_comes_with():
    replies = events(chat(FakeEngine("Hi"), stream=True, stream_options=OPTIONS))
    assert replies[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert counts(replies) == [1, 1, 2, 3, 3]


def test_tokens_that_come_together_are_all_counted():
    engine = scripted([72, 105], [33, EOS])
    assert counts(events(complete(engine, stream=True, stream_options=OPTIONS))) == [2, 4, 4]


def test_tokens_whose_character_is_incomplete_are_counted_with_the_next_chunk():
    replies = events(complete(FakeEngine("H€!"), stream=True, stream_options=OPTIONS))
    texts = [reply["choices"][0]["text"] for reply in replies[:-1]]
    assert texts == ["H", "€", "!", ""]
    assert counts(replies) == [1, 4, 5, 6, 6]


def test_tokens_that_a_stop_string_holds_back_are_counted_with_the_next_chunk():
    engine = FakeEngine("abcabd")
    replies = events(complete(engine, stream=True, stop="abd", stream_options=OPTIONS))
    texts = [reply["choices"][0]["text"] for reply in replies[:-1]]
    assert texts == ["abc", ""]
    assert counts(replies) == [3, 6, 6]


@pytest.mark.parametrize("n", [1, 2])
def test_a_chunk_counts_its_own_choice_and_prompt_and_the_last_one_all(n):
    engine = FakeEngine(script=lambda prompt, params: [[b] for b in prompt] + [[EOS]])
    *replies, last = events(
        complete(engine, ["abc", "d"], n=n, stream=True, stream_options=OPTIONS)
    )
    ends = {
        reply["choices"][0]["index"]: reply["usage"]
        for reply in replies
        if reply["choices"][0]["finish_reason"]
    }
    assert [ends[index]["prompt_tokens"] for index in range(2 * n)] == [3] * n + [1] * n
    assert [ends[index]["completion_tokens"] for index in range(2 * n)] == [4] * n + [2] * n
    assert last["usage"]["prompt_tokens"] == 4
    assert last["usage"]["completion_tokens"] == 6 * n


@pytest.mark.parametrize("options", [{"continuous_usage_stats": False}, {}, None])
def test_without_it_chunks_have_no_usage(options):
    replies = events(complete(FakeEngine("Hi"), stream=True, stream_options=options))
    assert all("usage" not in reply for reply in replies)
