"""What an output parser is given and returns, and all parsers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from sarathi.engine.output_processor import Delta


class ParsedText(msgspec.Struct, frozen=True):
    """A piece of output text, split by meaning."""

    content: str = ""
    reasoning: str = ""


class ParsedDelta(Delta, frozen=True):
    """A delta whose `text` is the content alone."""

    reasoning: str = ""


class OutputParser(Protocol):
    """Splits the text of one output, which comes in pieces. An instance serves one output."""

    def push(self, text: str, /) -> ParsedText:
        """Return what is certain by now; the rest may be kept back for later calls.

        `text` is empty where tokens have added none.
        """

    def flush(self) -> ParsedText:
        """Return what was kept back. No more text follows."""


ParserFactory = Callable[[], OutputParser]

PLAIN_TEXT = "plain"

# None passes all text through as content: then no object and no call per token is added.
OUTPUT_PARSERS: Mapping[str, ParserFactory | None] = {PLAIN_TEXT: None}
