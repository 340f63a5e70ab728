"""Grammars that the output of a request has to follow, and where they come from.

All are kept in the dialect of Lark that llguidance reads. Making one does not check it, which takes
the tokenizer (`grammar_compiler.check_grammar`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

# How `%json` is read. There is one form of white space, that of `json.dumps`: models, small ones
# above all, can otherwise go on with it for ever. Of `oneOf`, several may match.
JSON_FORM = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
}
# The conversion visits rules times as many pieces of the text in the worst case.
_MAX_GBNF_WORK = 4_000_000
_IS_LARK = re.compile(r"^\s*(%llguidance\b|\??start\b[^:]*:(?!:=))", re.MULTILINE)


class GrammarError(ValueError):
    """A grammar is malformed, too large or too complex, or the output cannot go on with it."""


class Grammar(msgspec.Struct, frozen=True):
    """What an output may be, in the dialect of Lark that llguidance reads."""

    lark: str  # its start rule is `start`
    after: str = ""  # the grammar begins after the first occurrence of this text, if not empty


def json_object() -> Grammar:
    """Return the grammar of any JSON object."""
    return json_schema({"type": "object"})


def json_schema(schema: Mapping[str, Any] | bool, *, lenient: bool = False) -> Grammar:
    """Return the grammar of JSON that follows a schema, as `json.dumps` writes it.

    As in the standard, an object may have more keys than those of its `properties` unless
    `additionalProperties` forbids it. One of the schemas of `oneOf` has to match, or several. With
    `lenient`, keywords that are not supported are ignored, instead of being an error.
    """
    form = {**JSON_FORM, "lenient": lenient}
    try:
        schema = {"allOf": [schema]} if isinstance(schema, bool) else schema
        text = json.dumps({**schema, "x-guidance": form}, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    return Grammar(f"start: %json {text}\n")


def regex(pattern: str) -> Grammar:
    r"""Return the grammar of texts that match a regular expression as a whole.

    The syntax is that of Rust's `regex`, without look-around and references back; `\d` is an ASCII
    digit.
    """
    from llguidance import regex_to_lark

    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    try:
        return Grammar(f"start: TEXT\nTEXT: /{regex_to_lark(pattern, 'd')}/\n")
    except UnicodeEncodeError:
        raise GrammarError("the pattern is not valid Unicode") from None


def choice(values: Sequence[str]) -> Grammar:
    """Return the grammar of a list of texts; `GrammarError` if it is empty."""
    if not values:
        raise GrammarError("there is nothing to choose from")
    return Grammar(f"start: TEXT\nTEXT: /{'|'.join(map(_literal, values))}/\n")


def _literal(text: str) -> str:
    """Return a regular expression for a text, without the characters that have a meaning in it."""
    if not text:
        return "()"
    plain = (c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)
    return "".join(plain)


def lark(text: str) -> Grammar:
    """Return a grammar in Lark's syntax, or in that of llama.cpp's GBNF.

    Raises:
        GrammarError: it has neither a rule `start` nor GBNF's `root ::=`, or is malformed GBNF.
    """
    if _IS_LARK.search(text):
        return Grammar(text)
    if "::=" not in text:
        raise GrammarError("it has no rule `start:`, as Lark has it, or `root ::=`, as GBNF")
    if text.count("::=") * len(text) > _MAX_GBNF_WORK:
        raise GrammarError("it has too many rules for GBNF; write it in Lark's syntax")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return Grammar(gbnf_to_lark(text))
    except Exception as error:  # the library raises nothing more specific
        raise GrammarError(f"it is not valid GBNF: {error}") from None
