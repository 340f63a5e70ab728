"""All output parsers, by name, as `create_app` takes them.

No option of the server selects one yet: plain text is the only one.
"""

from __future__ import annotations

from collections.abc import Mapping

from sarathi.server.parsers.output_parser import ParserFactory

PLAIN_TEXT = "plain"

# None passes all text through as content: then no object and no call per token is added.
OUTPUT_PARSERS: Mapping[str, ParserFactory | None] = {PLAIN_TEXT: None}
