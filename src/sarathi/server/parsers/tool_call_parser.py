"""Finds the tool calls in an output; which formats there are, `tool_formats` has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sarathi.server.parsers.call_grammar import Schema
from sarathi.server.parsers.output_parser import ParsedText, ToolCallDelta
from sarathi.server.parsers.text_scanner import Reading, TextScanner


class NotACallError(Exception):
    """What follows is not what a call would look like."""


class CallSyntax(Protocol):
    """How calls are written between the markers of a format."""

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        """Read the calls after the marker `begin`; raises `NotACallError` where there is none."""


class CallMarkers(Protocol):
    """The part of a format that says where calls are."""

    @property
    def begin(self) -> Sequence[str]:
        """Begin calls, anywhere in the text. None occurs within another."""

    @property
    def bare(self) -> Sequence[str]:
        """Begin calls, but only of known tools, and only where no other text has come yet."""

    @property
    def end(self) -> Sequence[str]:
        """May follow the calls."""

    @property
    def syntax(self) -> CallSyntax:
        """How calls are written."""


class CallSink:
    """Takes what is read, in order. What was begun is final: no text can be taken back."""

    def __init__(
        self, scanner: TextScanner, tools: Mapping[str, Schema], new_id: Callable[[], str]
    ) -> None:
        self.tools = tools  # the parameters of each, by name
        self.num_calls = 0
        self._scanner = scanner
        self._new_id = new_id
        self._content: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._before: list[ParsedText] = []  # of which each ends with calls that content follows

    def begin(self, name: str) -> None:
        """Begin a call; what was read so far is done with."""
        self._calls.append(ToolCallDelta(self.num_calls, self._new_id(), name))
        self.num_calls += 1
        self._scanner.drop()

    def add(self, arguments: str) -> None:
        """Add to the arguments of the last call."""
        index = self.num_calls - 1
        if self._calls and self._calls[-1].index == index:
            last = self._calls[-1]
            arguments = last.arguments + arguments
            self._calls[-1] = ToolCallDelta(index, last.id, last.name, arguments)
        else:
            self._calls.append(ToolCallDelta(index, arguments=arguments))

    def add_content(self, text: str) -> None:
        """Add ordinary text."""
        if self._calls:
            self._before.append(self._part())
        self._content.append(text)

    def take(self) -> ParsedText:
        """Return, and forget, what has come since this was called last."""
        parsed = self._part()
        while self._before:
            part = self._before.pop()
            parsed = ParsedText(part.content, "", part.tool_calls, then=parsed)
        return parsed

    def _part(self) -> ParsedText:
        part = ParsedText("".join(self._content), "", tuple(self._calls))
        self._content.clear()
        self._calls.clear()
        return part


class ToolCallParser:
    """Splits an output into content and tool calls of one format.

    A marker that nothing follows which looks like a call is ordinary text. Where a call has begun
    and does not go on as one, the call stays as it is, and the rest is text. Whitespace beside
    calls belongs to them.
    """

    in_reasoning = False

    def __init__(
        self, markers: CallMarkers, tools: Mapping[str, Schema], new_id: Callable[[], str]
    ) -> None:
        self._markers = markers
        self._scanner = TextScanner()
        self._calls = CallSink(self._scanner, tools, new_id)
        self._reading = self._read()
        next(self._reading)

    def push(self, text: str, token_ids: Sequence[int], /) -> ParsedText:
        if not text:
            return ParsedText()
        self._scanner.text += text
        next(self._reading, None)
        return self._calls.take()

    def flush(self) -> ParsedText:
        self._scanner.ended = True
        next(self._reading, None)
        return self._calls.take()

    def _read(self) -> Reading[None]:
        scanner, markers = self._scanner, self._markers
        beside_call = True  # or at the beginning: all but whitespace was part of calls
        while True:
            begin = ""
            if beside_call:
                yield from scanner.skip_space()
                begin = yield from scanner.take(*markers.begin, *markers.bare)
                if not begin:
                    beside_call = False
                    if scanner.at < len(scanner.text) or not self._calls.num_calls:
                        self._emit_read()
                    scanner.drop()
            if not begin:
                begin = yield from scanner.pass_until(markers.begin, self._calls.add_content)
                if not begin:
                    return
            beside_call = yield from self._read_calls(begin)

    def _read_calls(self, begin: str) -> Reading[bool]:
        """Read calls after a marker; return whether nothing but calls was found."""
        scanner, calls = self._scanner, self._calls
        after_marker, known = scanner.at, calls.num_calls
        try:
            yield from self._markers.syntax.read(scanner, calls, begin)
        except NotACallError:
            scanner.at = after_marker if calls.num_calls == known else 0
            self._emit_read()
            return False
        scanner.drop()
        yield from scanner.skip_space()
        if not (yield from scanner.take(*self._markers.end)):
            scanner.at = 0
        scanner.drop()
        return True

    def _emit_read(self) -> None:
        if self._scanner.at:
            self._calls.add_content(self._scanner.text[: self._scanner.at])
            self._scanner.drop()
