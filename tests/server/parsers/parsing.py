"""Running output parsers on texts in pieces, and putting together what they return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from sarathi.server.parsers.output_parser import OutputParser, ParsedText, ToolCallDelta


class Parsed(msgspec.Struct, frozen=True):
    """What a whole output was parsed to."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]  # names and arguments


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    ends = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(ends)]


def parse(parser: OutputParser, parts: Sequence[str]) -> Parsed:
    found = [parser.push(part, [1]) for part in parts] + [parser.flush()]
    return put_together([one for parsed in found for one in parsed.parts])


def put_together(found: Sequence[ParsedText]) -> Parsed:
    deltas: list[ToolCallDelta] = [call for one in found for call in one.tool_calls]
    calls: list[list[str]] = []
    for delta in deltas:
        if delta.id:
            assert delta.index == len(calls)
            assert delta.name
            calls.append([delta.name, ""])
        assert delta.index == len(calls) - 1  # one after the other
        assert not (delta.name and not delta.id)
        calls[-1][1] += delta.arguments
    return Parsed(
        "".join(one.content for one in found),
        "".join(one.reasoning for one in found),
        tuple((name, arguments) for name, arguments in calls),
    )
