"""Random outputs of a model, as an output parser hands them on: in pieces, split by meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import strategies as st

from sarathi.engine.output_processor import Delta
from sarathi.server.conversation import EncodedConversation, encode_conversation
from sarathi.server.generation_core import Choices, TokenUsage
from sarathi.server.output_blocks import BlockTranslator
from sarathi.server.parsers.output_parser import (
    ParsedDelta,
    ParsedText,
    ParserFactory,
    ToolCallDelta,
)

USAGE = TokenUsage(11, 7, 4, 2)

_TEXT = st.text('ab{} \n"\\é\U0001f600', max_size=8)
_ARGUMENTS = st.dictionaries(_TEXT, st.integers() | _TEXT, max_size=3)


def _cut(draw: st.DrawFn, text: str) -> list[str]:
    """The pieces of a text, cut at random positions."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def parsed_outputs(draw: st.DrawFn) -> list[Delta]:
    """The deltas of one output: any sequence of reasoning, texts and complete tool calls."""
    pieces: list[tuple[str, Any]] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["reasoning", "text", "call"]), max_size=5)):
        if kind != "call":
            pieces += [(kind, piece) for piece in _cut(draw, draw(_TEXT))]
            continue
        first, *rest = _cut(draw, json.dumps(draw(_ARGUMENTS)))
        pieces.append((kind, ToolCallDelta(calls, f"call_{calls}", f"tool{calls}", first)))
        pieces += [(kind, ToolCallDelta(calls, arguments=piece)) for piece in rest]
        calls += 1
    # Neighbours may come in one delta, if they are in the order of its fields.
    order = ["reasoning", "text", "call"]
    deltas: list[list[tuple[str, Any]]] = [[]]
    for kind, piece in pieces:
        fits = not deltas[-1] or order.index(deltas[-1][-1][0]) <= order.index(kind)
        if not (fits and draw(st.booleans())):
            deltas.append([])
        deltas[-1].append((kind, piece))
    reason = draw(st.sampled_from(["stop", "stop", "length"]))
    return [
        ParsedDelta(
            text="".join(piece for kind, piece in group if kind == "text"),
            token_ids=[1],
            logprobs=[],
            offsets=[],
            finish_reason=cast("Any", reason if index == len(deltas) - 1 else None),
            reasoning="".join(piece for kind, piece in group if kind == "reasoning"),
            tool_calls=tuple(piece for kind, piece in group if kind == "call"),
        )
        for index, group in enumerate(deltas)
    ]


class SplitParser:
    """Splits "reasoning|text!arguments of a call"."""

    def __init__(self) -> None:
        self.in_reasoning = True
        self._in_call = False

    def push(self, text: str, token_ids: Sequence[int], /) -> ParsedText:
        content = reasoning = ""
        calls = []
        for character in text:
            if character == "|":
                self.in_reasoning = False
            elif character == "!":
                self._in_call = True
                calls.append(ToolCallDelta(0, "call_0", "add"))
            elif self._in_call:
                calls.append(ToolCallDelta(0, arguments=character))
            elif self.in_reasoning:
                reasoning += character
            else:
                content += character
        return ParsedText(content, reasoning, tuple(calls))

    def flush(self) -> ParsedText:
        return ParsedText()


@pytest.fixture
def split_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of conversations are parsed by `SplitParser`."""

    async def encode(*args: Any) -> EncodedConversation:
        encoded = await encode_conversation(*args)
        return replace(encoded, parser=ParserFactory(SplitParser))

    monkeypatch.setattr("sarathi.server.conversation_reply.encode_conversation", encode)


def stream_of(translator: BlockTranslator, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """The events that a translator makes of an output."""
    choices = cast("Choices", SimpleNamespace(usage=USAGE))
    sent = b"".join(translator.events(0, delta, choices) for delta in deltas)
    return read_events((sent + translator.end(USAGE)).decode())


def read_events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events, each of which has to be named after its type."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    found = []
    for event in events:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found
