"""The seam for output parsers, with a parser made here: text before `</think>` is reasoning."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sarathi.server.parsers.output_parser import OUTPUT_PARSERS, ParsedText, ParserFactory
from tests.server.fake_engine import MODEL, FakeEngine, call, events

END = "</think>"
OUTPUT = "hm, no</think>Hello"
MESSAGES = [{"role": "user", "content": "hi"}]


class ThinkParser:
    def __init__(self) -> None:
        self.in_reasoning = True
        self._kept = ""

    def push(self, text: str, token_ids: Sequence[int], /) -> ParsedText:
        if not self.in_reasoning:
            return ParsedText(content=text)
        self._kept += text
        before, end, after = self._kept.partition(END)
        if end:
            self.in_reasoning, self._kept = False, ""
            return ParsedText(after, before)
        certain = max(0, len(self._kept) - len(END) + 1)
        reasoning, self._kept = self._kept[:certain], self._kept[certain:]
        return ParsedText(reasoning=reasoning)

    def flush(self) -> ParsedText:
        return ParsedText(reasoning=self._kept)


@pytest.fixture(autouse=True)
def think(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTPUT_PARSERS, "think", ParserFactory(ThinkParser))  # type: ignore[arg-type]


def chat(engine: FakeEngine, **fields: object):
    body = {"model": MODEL, "messages": MESSAGES, **fields}
    return call(engine, "POST", "/v1/chat/completions", body, output_parser="think")


def test_a_whole_message_has_content_and_reasoning() -> None:
    reply = chat(FakeEngine(OUTPUT)).json()
    [choice] = reply["choices"]
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["reasoning_content"] == "hm, no"
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == len(OUTPUT) + 1


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_has_a_parser_for_each_choice(n: int) -> None:
    replies = events(chat(FakeEngine(OUTPUT), stream=True, n=n))
    for index in range(n):
        choices = [c for reply in replies for c in reply["choices"] if c["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "Hello"
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm, no"
        assert [choice["finish_reason"] for choice in choices][-1] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_parser_keeps_back_comes_at_the_end(stream: bool) -> None:
    response = chat(FakeEngine("hm</thi"), stream=stream)
    replies = events(response) if stream else [response.json()]
    messages = [c["delta" if stream else "message"] for r in replies for c in r["choices"]]
    assert "".join(one.get("reasoning_content") or "" for one in messages) == "hm</thi"
    assert not any(one.get("content") for one in messages)


@pytest.mark.parametrize("stream", [False, True])
def test_no_logprobs_are_lost_where_text_is_kept_back(stream: bool) -> None:
    response = chat(FakeEngine(OUTPUT), stream=stream, logprobs=True)
    replies = events(response) if stream else [response.json()]
    logprobs = [c["logprobs"] for r in replies for c in r["choices"] if c["logprobs"]]
    tokens = [at["token"] for one in logprobs for at in one["content"]]
    assert "".join(tokens) == OUTPUT + "<256>"


def test_completions_are_not_parsed() -> None:
    body = {"prompt": "p", "max_tokens": 50}
    engine = FakeEngine("a" + END)
    reply = call(engine, "POST", "/v1/completions", body, output_parser="think").json()
    assert reply["choices"][0]["text"] == "a" + END


def test_without_a_parser_all_text_is_content() -> None:
    body = {"model": MODEL, "messages": MESSAGES}
    reply = call(FakeEngine(OUTPUT), "POST", "/v1/chat/completions", body).json()
    message = reply["choices"][0]["message"]
    assert message["content"] == OUTPUT
    assert "reasoning_content" not in message


@pytest.mark.parametrize("n", [1, 3])
def test_a_parser_that_fails_leaves_nothing_running(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ThinkParser] = []

    def fail_at_last() -> ThinkParser:
        made.append(ThinkParser())
        if len(made) == n:
            raise RuntimeError("a bug")
        return made[-1]

    monkeypatch.setitem(OUTPUT_PARSERS, "think", ParserFactory(fail_at_last))  # type: ignore[arg-type]
    engine = FakeEngine(OUTPUT)
    assert chat(engine, n=n).status_code == 500
    assert all(generation.cancelled for generation in engine.generations)
