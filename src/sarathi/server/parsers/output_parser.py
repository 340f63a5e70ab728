"""What an output parser is given and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from sarathi.engine.output_processor import Delta


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call. The first one of a call has its id and name."""

    index: int  # of the call in the output
    id: str = ""
    name: str = ""
    arguments: str = ""  # what it adds to the JSON text of the arguments


class ParsedText(msgspec.Struct, frozen=True):
    """A piece of output text, split by meaning: reasoning, then content, then tool calls."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    then: ParsedText | None = None  # what comes after the tool calls

    @property
    def parts(self) -> list[ParsedText]:
        """This piece and what comes after it."""
        found = [self]
        while (then := found[-1].then) is not None:
            found.append(then)
        return found


class ParsedDelta(Delta, frozen=True):
    """A delta whose `text` is the content alone."""

    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class OutputParser(Protocol):
    """Splits the text of one output, which comes in pieces. An instance serves one output."""

    in_reasoning: bool  # whether the next token belongs to the reasoning

    def push(self, text: str, token_ids: Sequence[int], /) -> ParsedText:
        """Return what is certain by now; the rest may be kept back for later calls.

        `text` is empty where tokens have added none.
        """

    def flush(self) -> ParsedText:
        """Return what was kept back. No more text follows."""


@dataclass(frozen=True)
class ParserFactory:
    """Makes a parser for each output of a job."""

    create: Callable[[], OutputParser]
    # Special tokens that the parser has to see, although outputs do not show special tokens.
    visible_ids: frozenset[int] = frozenset()
